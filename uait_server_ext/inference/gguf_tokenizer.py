"""Write the tokenizer and chat template that a GGUF file carries as ordinary tokenizer files.

Two kinds, each proven against llama.cpp's own reading of the same file: byte-level BPE with the
ways of cutting text named in ``CUTS``, and SentencePiece BPE with byte fallback as Gemma has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

CONTROL, USER_DEFINED, BYTE = 3, 4, 6  # GGUF's token types
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
TEMPLATE = "tokenizer.chat_template"
SPACE = "\u2581"  # SentencePiece's mark

LLAMA3_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = ("smollm", "gpt-2", "llama-bpe")


def write_tokenizer(fields: dict[str, Any], target: Path) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and, if any, ``chat_template.jinja``.

    Raises ``ValueError`` for a tokenizer of another kind.
    """
    check_tokenizer(fields)
    byte_level = fields["tokenizer.ggml.model"] == "gpt2"
    tokenizer = _byte_level(fields) if byte_level else _sentencepiece(fields)
    _add_tokens(tokenizer, fields)
    tokenizer.save(str(target / "tokenizer.json"))
    tokens = fields["tokenizer.ggml.tokens"]
    names = {
        name: tokens[fields[key]]
        for name, stem in SPECIAL.items()
        if (key := f"tokenizer.ggml.{stem}_token_id") in fields
    }
    config = {
        **names,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields[f"{fields['general.architecture']}.context_length"],
        "clean_up_tokenization_spaces": False,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=1), "utf-8")
    if template := fields.get(TEMPLATE):
        (target / "chat_template.jinja").write_text(template, "utf-8")


def check_tokenizer(fields: dict[str, Any]) -> None:
    """Raise ``ValueError`` for a tokenizer that cannot be converted."""
    model, cut = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    if model == "gpt2" and cut in CUTS:
        return
    if model == "llama" and not fields.get("tokenizer.ggml.add_space_prefix", True):
        return
    raise ValueError(f"a GGUF with a tokenizer that cannot be converted: {(model, cut)}")


def _byte_level(fields: dict[str, Any]) -> Tokenizer:
    """GPT-2's byte-level BPE."""
    cut = fields["tokenizer.ggml.pre"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=_vocabulary(fields),
            merges=merges,
            # Llama 3 takes a piece that is a token as it is, though no merges lead to it
            ignore_merges=cut == "llama-bpe",
        )
    )
    first: dict[str, Any] = {
        "smollm": pre_tokenizers.Digits(individual_digits=True),
        "llama-bpe": pre_tokenizers.Split(Regex(LLAMA3_CUT), "isolated"),
    }
    own = [first[cut]] if cut in first else []
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut != "llama-bpe")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*own, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = _begin(fields) or processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _sentencepiece(fields: dict[str, Any]) -> Tokenizer:
    """SentencePiece's BPE: its merges follow from the scores of the pieces."""
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=_vocabulary(fields),
            merges=[pair for _, pair in sorted(_merges(fields), key=lambda merge: -merge[0])],
            unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    if begin := _begin(fields):
        tokenizer.post_processor = begin
    return tokenizer


def _merges(fields: dict[str, Any]) -> Iterator[tuple[float, tuple[str, str]]]:
    """Yield every pair of pieces that makes a piece, with its score; of one score in file order."""
    vocabulary = _vocabulary(fields)
    kinds = fields["tokenizer.ggml.token_type"]
    scores = fields["tokenizer.ggml.scores"]
    for token, kind, score in zip(vocabulary, kinds, scores, strict=True):
        if kind in (CONTROL, BYTE):
            continue
        pairs = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [(a, b) for a, b in pairs if a in vocabulary and b in vocabulary]
        for pair in sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]])):
            yield score, pair


def _vocabulary(fields: dict[str, Any]) -> dict[str, int]:
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError("a GGUF with the same token twice")
    return vocabulary


def _begin(fields: dict[str, Any]) -> Any:
    """Return what puts the token of a beginning before a text, where the model wants one."""
    key = "tokenizer.ggml.bos_token_id"
    if not fields.get("tokenizer.ggml.add_bos_token") or key not in fields:
        return None
    token = fields["tokenizer.ggml.tokens"][fields[key]]
    return processors.TemplateProcessing(
        single=f"{token} $A",
        pair=f"{token} $A {token}:1 $B:1",
        special_tokens=[(token, fields[key])],
    )


def _add_tokens(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    special, others = [], []
    kinds = fields["tokenizer.ggml.token_type"]
    for token, kind in zip(fields["tokenizer.ggml.tokens"], kinds, strict=True):
        if kind == CONTROL:
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == USER_DEFINED:
            others.append(AddedToken(token, special=False, normalized=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(others)
