"""Chat about images with a tiny Qwen2-VL of random weights, where mlx-vlm is installed."""

from __future__ import annotations

import base64
import importlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx_vlm")

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from uait_server_ext.errors import ContextTooLong, InvalidInput
from uait_server_ext.inference.backends.base import Ended, Generation, Piece
from uait_server_ext.inference.backends.mlx_vision import VisionChat
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import CatalogueEntry, Imported, LocalFile

SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|placeholder|>"),
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}"
)
PIXELS = {"min_pixels": 3136, "max_pixels": 12544}


def write_model(folder: Path) -> None:
    os.environ["MLX_DISABLE_COMPILE"] = "1"
    import mlx.core as mx
    from mlx.utils import tree_flatten

    qwen2_vl: Any = importlib.import_module("mlx_vlm.models.qwen2_vl")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    number = tokenizer.token_to_id
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    sight = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2}
    config: dict[str, Any] = {
        "model_type": "qwen2_vl",
        "image_token_id": number("<|image_pad|>"),
        "video_token_id": number("<|video_pad|>"),
        "vision_start_token_id": number("<|vision_start|>"),
        "eos_token_id": [number("<|im_end|>")],
        "vocab_size": tokenizer.get_vocab_size(),
        **sizes,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "vision_config": {"model_type": "qwen2_vl", "patch_size": 14, "in_channels": 3, **sight},
    }
    files = {
        "config.json": config,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 512,
            "chat_template": TEMPLATE,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
            **PIXELS,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), "utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    made = qwen2_vl.ModelConfig.from_dict(dict(config))
    made.text_config = qwen2_vl.TextConfig.from_dict(config)
    made.vision_config = qwen2_vl.VisionConfig.from_dict(config["vision_config"])
    mx.random.seed(7)
    weights: Any = tree_flatten(qwen2_vl.Model(made).parameters())
    mx.save_safetensors(str(folder / "model.safetensors"), dict(weights), {"format": "mlx"})


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> VisionChat:
    cache = ModelCache(tmp_path_factory.mktemp("models"))
    kept = cache.keep("tiny", "source", write_model)
    files = tuple(LocalFile(name=n, size=s, sha256=d) for n, (s, d) in kept.items())
    entry = CatalogueEntry(
        id="tiny",
        kind="chat",
        format="mlx",
        description="For a test.",
        licence="BSD-3-Clause",
        size_bytes=sum(file.size for file in files),
        memory_bytes=1,
        context_tokens=300,
        capabilities=("chat", "vision"),
        imported=Imported(path="tiny", files=files),
    )
    return VisionChat(entry, cache, 1)


def picture(color: str) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def turn(text: str, *colors: str) -> dict[str, Any]:
    return {"role": "user", "content": text, "images": [picture(color) for color in colors]}


def ask(backend: VisionChat, *messages: dict[str, Any], **more: Any) -> tuple[str, Ended]:
    backend.start(1, Generation(messages=list(messages), max_tokens=8, **more))
    text, events = "", []
    while backend.busy:
        events += backend.step()
    text = "".join(event.text for event in events if isinstance(event, Piece))
    last = events[-1]
    assert isinstance(last, Ended)
    return text, last


def test_what_is_seen_changes_the_answer(backend: VisionChat) -> None:
    red, ended = ask(backend, turn("What is this?", "red"))
    blue, _ = ask(backend, turn("What is this?", "blue"))
    assert red != blue
    assert ask(backend, turn("What is this?", "red"))[0] == red
    assert ended.outcome.completion_tokens == 8
    assert ended.outcome.finish_reason == "length"


def test_each_image_stands_in_its_own_turn(backend: VisionChat) -> None:
    answer = {"role": "assistant", "content": "A colour."}
    one, first = ask(backend, turn("a", "red"), answer, turn("b", "blue"))
    two, second = ask(backend, turn("a", "blue"), answer, turn("b", "red"))
    assert first.outcome.prompt_tokens == second.outcome.prompt_tokens
    assert one != two


def test_a_marker_in_a_message_makes_no_image(backend: VisionChat) -> None:
    text, ended = ask(backend, turn("a <|image_pad|> b"))
    assert ended.outcome.completion_tokens
    assert text is not None


def test_a_cancelled_answer_ends(backend: VisionChat) -> None:
    backend.start(1, Generation(messages=[turn("a", "red")], max_tokens=100))
    backend.start(2, Generation(messages=[turn("b")], max_tokens=2))
    backend.step()
    backend.cancel(1)
    (ended,) = backend.step()
    assert isinstance(ended, Ended)
    assert (ended.number, ended.outcome.finish_reason) == (1, "cancelled")
    while backend.busy:
        events = backend.step()
    assert isinstance(events[-1], Ended)
    assert events[-1].number == 2


@pytest.mark.parametrize(
    "more", [{"tools": [{"type": "function"}]}, {"logprobs": 1}, {"adapter": Path("x")}]
)
def test_what_it_cannot_do_is_refused(backend: VisionChat, more: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="cannot have"):
        ask(backend, turn("a", "red"), **more)
    assert not backend.busy


def test_images_count_against_the_context(backend: VisionChat) -> None:
    with pytest.raises(ContextTooLong):
        ask(backend, turn("a" * 290, "red"))
    with pytest.raises(InvalidInput, match="damaged"):
        ask(backend, {"role": "user", "content": "a", "images": ["data:image/png;base64,AAAA"]})
    assert not backend.busy
