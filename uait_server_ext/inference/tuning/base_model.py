"""Load the model that is tuned, put low-rank adapters in, take answers from it, write it out.

Runs in the trainer's main thread only. On a CPU weights are unpacked to 32 bits, the only type for
which MLX has a fast path there: a step is then about ten times faster than on packed weights.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from uait_server_ext.errors import InvalidInput
from uait_server_ext.inference import machine
from uait_server_ext.inference.backends.blas import load_fast_blas
from uait_server_ext.inference.cache import ModelCache

from .batches import Tokenizer
from .models import TuneSettings

AT_ONCE = 8  # answers made together when scoring
UNPACKED_SHARE = 0.5  # of this machine's memory that unpacked weights may take
FLOAT32_BYTES = 4
MOST_TOKENS = 2048
ADAPTER_WEIGHTS = "adapters.safetensors"  # the names that mlx_lm reads
ADAPTER_CONFIG = "adapter_config.json"


@dataclass
class BaseModel:
    """A loaded model; ``packed`` says that its weights are quantised as they stand in memory."""

    model: Any
    wrapper: Any
    tokenizer: Tokenizer
    config: dict[str, Any]
    folder: Path
    packed: bool
    parameters: int
    note: str | None

    @property
    def method(self) -> Literal["lora", "qlora"]:
        """What adapters on it are called."""
        return "qlora" if self.packed else "lora"

    def longest(self, settings: TuneSettings) -> int:
        """Return how many tokens an example may have.

        Raises:
            InvalidInput: the settings want more than the model's context holds.
        """
        context = int(self.config.get("max_position_embeddings") or MOST_TOKENS)
        if settings.max_tokens is None:
            return min(context, MOST_TOKENS)
        if settings.max_tokens > context:
            raise InvalidInput(
                f"`max_tokens` is {settings.max_tokens:,}; the model's context holds {context:,}."
            )
        return settings.max_tokens


def prepare_machine(cache: ModelCache) -> str | None:
    """Make MLX fast where it has no accelerator; before it is imported. Return a note for people.

    Compilation is off on a CPU: it gains nothing and writes shared libraries into a predictable
    folder.
    """
    if machine.has_accelerator():
        return None
    os.environ["MLX_DISABLE_COMPILE"] = "1"
    return load_fast_blas(cache)


def load_base(
    folder: Path, method: Literal["auto", "lora", "qlora"], note: str | None
) -> BaseModel:
    """Load the model in an MLX folder, its weights packed or not as the method wants them.

    Raises:
        InvalidInput: the method does not fit the model or the machine.
    """
    import mlx.core as mx
    import mlx_lm

    utils: Any = importlib.import_module("mlx_lm.utils")  # its functions are not annotated
    loaded: Any = mlx_lm.load(str(folder), return_config=True)
    model, wrapper, config = loaded
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    packed = bool(config.get("quantization") or config.get("quantization_config"))
    parameters = int(utils.get_total_parameters(model))
    if method == "qlora" and not packed:
        raise InvalidInput(
            "QLoRA needs a base model with packed (quantised) weights, and this one's are not. Use "
            "the method `lora`."
        )
    if packed and (method == "lora" or (method == "auto" and on_cpu)):
        if parameters * FLOAT32_BYTES > machine.memory_bytes() * UNPACKED_SHARE:
            raise InvalidInput(
                f"The unpacked weights would take {parameters * FLOAT32_BYTES / 1e9:,.1f} GB, more "
                "than half of this machine's memory. Use the method `qlora`, or a smaller model."
            )
        utils.dequantize_model(model)
        packed = False
    if on_cpu:
        model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return BaseModel(
        model, wrapper, Tokenizer(wrapper), dict(config), folder, packed, parameters, note
    )


def add_adapter(model: Any, settings: TuneSettings) -> dict[str, Any]:
    """Put a low-rank adapter that changes nothing yet into a model; only it can learn from now on.

    Returns its configuration in the form that mlx_lm reads.
    """
    import mlx.core as mx
    from mlx_lm.tuner.utils import linear_to_lora_layers

    low_rank = {"rank": settings.rank, "scale": settings.scale, "dropout": settings.dropout}
    model.freeze()
    mx.random.seed(settings.seed)
    linear_to_lora_layers(model, settings.layers, low_rank)
    mx.eval(model.parameters())
    return {
        "fine_tune_type": "lora",
        "num_layers": settings.layers,
        "lora_parameters": low_rank,
    }


def trained_parameters(model: Any) -> int:
    """Return how many numbers can learn."""
    from mlx.utils import tree_flatten

    arrays: Any = tree_flatten(model.trainable_parameters())
    return sum(int(array.size) for _, array in arrays)


def write_adapter(folder: Path, config: dict[str, Any], weights: dict[str, Any]) -> None:
    """Write an adapter as mlx_lm reads it."""
    import mlx.core as mx

    mx.save_safetensors(str(folder / ADAPTER_WEIGHTS), weights)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=1), "utf-8")


def answers(
    base: BaseModel, prompts: Sequence[Sequence[int]], max_tokens: int, heed: Callable[[], None]
) -> list[str]:
    """Return the model's greedy answers; ``heed`` is called between groups of them."""
    generate: Any = importlib.import_module("mlx_lm.generate")
    base.model.eval()
    said: list[str] = []
    for start in range(0, len(prompts), AT_ONCE):
        heed()
        group = [list(prompt) for prompt in prompts[start : start + AT_ONCE]]
        made = generate.batch_generate(base.model, base.wrapper, group, max_tokens=max_tokens)
        said += [text.strip() for text in made.texts]
    return said


def fuse(base: BaseModel, adapter: Path, target: Path, *, unpacked: bool) -> None:
    """Write the model with an adapter worked into its weights; ``target`` is an empty folder."""
    import mlx.core as mx
    from mlx.utils import tree_unflatten

    utils: Any = importlib.import_module("mlx_lm.utils")
    tuner: Any = importlib.import_module("mlx_lm.tuner.utils")
    model = tuner.load_adapters(base.model, str(adapter))
    fused = [
        (name, module.fuse(dequantize=unpacked))
        for name, module in model.named_modules()
        if hasattr(module, "fuse")
    ]
    model.update_modules(tree_unflatten(fused))
    config = dict(base.config)
    if unpacked:
        if base.packed:
            utils.dequantize_model(model)
        model.set_dtype(mx.float16)
        config.pop("quantization", None)
        config.pop("quantization_config", None)
    utils.save(target, base.folder, model, base.wrapper, config, donate_model=False)
