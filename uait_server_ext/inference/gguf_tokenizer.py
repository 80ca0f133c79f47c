"""Write the tokenizer and chat template that a GGUF file carries as ordinary tokenizer files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

CONTROL, USER_DEFINED = 3, 4  # GGUF's token types
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def write_tokenizer(fields: dict[str, Any], target: Path) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``.

    Raises ``ValueError`` for a tokenizer other than SmolLM's byte-level BPE.
    """
    _byte_level(fields).save(str(target / "tokenizer.json"))
    tokens = fields["tokenizer.ggml.tokens"]
    names = {
        name: tokens[fields[key]]
        for name, stem in SPECIAL.items()
        if (key := f"tokenizer.ggml.{stem}_token_id") in fields
    }
    config = {
        **names,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=1), "utf-8")
    template = fields["tokenizer.chat_template"]
    (target / "chat_template.jinja").write_text(template, "utf-8")


def _byte_level(fields: dict[str, Any]) -> Tokenizer:
    kind = fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]
    if kind != ("gpt2", "smollm") or fields.get("tokenizer.ggml.add_bos_token"):
        raise ValueError(f"a GGUF with a tokenizer that cannot be converted: {kind}")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    for token, token_type in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True):
        if token_type in (CONTROL, USER_DEFINED):
            special = token_type == CONTROL
            add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
            add([AddedToken(token, special=special, normalized=False)])
    return tokenizer
