"""Look at a model folder that somebody wants to import, without running or unpickling any of it.

What is taken are weights in the safetensors format, JSON, and the tokenizer's own files. A folder
that needs code of its own (``auto_map``, ``model_file``) or has pickled weights only is refused.
"""

from __future__ import annotations

import importlib.util
import json
import re
import struct
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from uait_server_ext.errors import InvalidInput

from .catalogue import Capability, ModelFormat
from .models import ModelKind

TAKEN = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "sentence_bert_config.json",
)
PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
CODE_KEYS = ("auto_map", "model_file", "custom_pipelines")
MOST_HEADER_BYTES = 100_000_000  # the format's own bound
# types that mlx-lm runs with the file of another
SAME_AS = {
    "mistral": "llama",
    "phi-msft": "phixtral",
    "falcon_mamba": "mamba",
    "kimi_k2": "deepseek_v3",
}
OVERHEAD_BYTES = 250_000_000  # of the process and its libraries
LICENCE = re.compile(r"^license:\s*['\"]?([\w.+ -]+?)['\"]?\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Facts:
    """What a catalogue entry says of a model, read from its files."""

    kind: ModelKind
    format: ModelFormat
    files: tuple[Path, ...]
    context_tokens: int
    memory_bytes: int
    capabilities: tuple[Capability, ...]
    licence: str = "unknown"
    dimension: int | None = None
    pooling: str = "mean"


def inspect_folder(folder: Path) -> Facts:
    """Return what the folder of a model says of itself, checked.

    Raises:
        InvalidInput: it is no model, or none that is safe or possible to run here; says why.
    """
    config = _json(folder / "config.json")
    tokenizer_config = _json(folder / "tokenizer_config.json", needed=False)
    for name, found in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
        if code := [key for key in CODE_KEYS if found.get(key)]:
            raise InvalidInput(
                f"{folder / name} asks for code of the model's own ({', '.join(code)}), which is "
                "never run here. Take a version of the model that needs none."
            )
    files = tuple(
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in TAKEN)
    )
    weights = [path for path in files if path.suffix == ".safetensors"]
    _check_weights(folder, weights)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise InvalidInput(f"{folder} has no tokenizer ({' or '.join(TOKENIZERS)}).")
    size = sum(path.stat().st_size for path in weights)
    if config.get("model_type") == "bert":
        return _encoder(folder, config, files, size)
    return _chat(folder, config, tokenizer_config, files, size)


def _encoder(folder: Path, config: dict[str, Any], files: tuple[Path, ...], size: int) -> Facts:
    """Facts of a BERT: an embedding model, or a cross-encoder that reranks."""
    if not (folder / "tokenizer.json").is_file():
        raise InvalidInput(f"{folder} has no tokenizer.json, which an encoder needs.")
    context = _json(folder / "sentence_bert_config.json", needed=False).get("max_seq_length")
    positions = int(config.get("max_position_embeddings", 512))
    reranks = any("SequenceClassification" in x for x in config.get("architectures") or ())
    if reranks and int(config.get("num_labels", len(config.get("id2label") or "x"))) != 1:
        raise InvalidInput(
            f"{folder} sorts texts into classes; a reranker gives one score. Import a "
            "cross-encoder with one label."
        )
    kind: ModelKind = "rerank" if reranks else "embedding"
    return Facts(
        kind=kind,
        format="bert",
        files=files,
        context_tokens=min(positions, int(context or positions)),
        memory_bytes=2 * size + OVERHEAD_BYTES,
        capabilities=(kind,),
        licence=_licence(folder),
        dimension=None if reranks else int(config["hidden_size"]),
        pooling="mean" if reranks else _pooling(folder),
    )


def _chat(
    folder: Path,
    config: dict[str, Any],
    tokenizer_config: dict[str, Any],
    files: tuple[Path, ...],
    size: int,
) -> Facts:
    kind = str(config.get("model_type", ""))
    sees = "vision_config" in config
    if not runs_in_mlx(kind, sees):
        raise InvalidInput(
            f"{folder} is a model of type '{kind}', which "
            f"{'mlx-vlm' if sees else 'mlx-lm'} cannot run. Update it, or choose another model."
        )
    template = folder / "chat_template.jinja"
    text = template.read_text("utf-8") if template.is_file() else ""
    text = text or str(tokenizer_config.get("chat_template") or "")
    text = text or str(_json(folder / "chat_template.json", needed=False).get("chat_template", ""))
    parts = config.get("text_config") or config
    return Facts(
        kind="chat",
        format="mlx",
        files=files,
        context_tokens=int(parts.get("max_position_embeddings") or 4096),
        memory_bytes=round(1.2 * size) + OVERHEAD_BYTES,
        capabilities=chat_capabilities(text, sees=sees),
        licence=_licence(folder),
    )


def chat_capabilities(template: str, *, sees: bool = False) -> tuple[Capability, ...]:
    """Return what a chat template makes of a model; without one it only goes on with a text."""
    if not template:
        return ("completion",)
    found: list[Capability] = ["chat"]
    if re.search(r"\btools\b", template):
        found.append("tools")
    if sees:
        found.append("vision")
    return tuple(found)


def runs_in_mlx(model_type: str, sees: bool = False) -> bool:
    """Say whether MLX's libraries have a file for this type; True where they are not installed."""
    package = importlib.util.find_spec("mlx_vlm" if sees else "mlx_lm")
    if package is None or package.origin is None:
        return True
    models = Path(package.origin).parent / "models"
    name = SAME_AS.get(model_type, model_type)
    return bool(re.fullmatch(r"\w+", name)) and (
        (models / f"{name}.py").is_file() or (models / name).is_dir()
    )


def _check_weights(folder: Path, weights: list[Path]) -> None:
    if not weights:
        pickled = [p.name for p in folder.iterdir() if any(fnmatch(p.name, x) for x in PICKLED)]
        raise InvalidInput(
            f"{folder} has its weights in a pickle ({', '.join(sorted(pickled))}), which can run "
            "any code when it is read. Convert them to safetensors, or take a version that has "
            "them."
            if pickled
            else f"{folder} has no weights (*.safetensors)."
        )
    for path in weights:
        check_safetensors(path)
    named = _json(folder / "model.safetensors.index.json", needed=False).get("weight_map", {})
    if missing := sorted(set(named.values()) - {path.name for path in weights}):
        raise InvalidInput(f"{folder} lacks weights that its index names: {', '.join(missing)}.")


def check_safetensors(path: Path) -> None:
    """Check that a file has the form of the safetensors format and is whole.

    Raises:
        InvalidInput: it has not, or is cut short.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 2 <= length <= min(MOST_HEADER_BYTES, size - 8):
                raise ValueError("its header has no plausible length")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (struct.error, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInput(f"{path} is no safetensors file: {error}.") from error
    if 8 + length + end != size:
        raise InvalidInput(
            f"{path} has {size:,} bytes and its header describes {8 + length + end:,}: it is "
            "damaged or not whole. Copy it again."
        )


def _pooling(folder: Path) -> str:
    """Return how a sentence encoder makes one vector of a text's.

    Raises:
        InvalidInput: in a way that is not offered here.
    """
    pooling = _json(folder / "1_Pooling" / "config.json", needed=False)
    modes = [name for name, on in pooling.items() if name.startswith("pooling_mode") and on is True]
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if not modes:
        return "mean"
    if len(modes) > 1 or modes[0] not in known:
        raise InvalidInput(f"{folder} pools vectors by {', '.join(modes)}: only mean and cls work.")
    return known[modes[0]]


def _licence(folder: Path) -> str:
    try:
        head = (folder / "README.md").read_text("utf-8", "replace")[:4000]
    except OSError:
        return "unknown"
    found = LICENCE.search(head) if head.startswith("---") else None
    return found.group(1) if found else "unknown"


def _json(path: Path, *, needed: bool = True) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if needed:
            raise InvalidInput(
                f"{path.parent} is no model folder: it has no {path.name}."
            ) from None
        return {}
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{path} holds no JSON object.")
    return found
