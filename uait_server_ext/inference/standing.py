"""How models stand: for people, for the health report, for metrics."""

from __future__ import annotations

from . import machine
from .catalogue import CatalogueEntry
from .choice import Choice, Chooser, missing, too_large
from .models import ModelInfo, ModelState, ServiceState
from .runner import ModelRunner
from .tally import ModelStatistics

STATES: dict[str, ModelState] = {"loading": "loading", "loaded": "loaded", "failed": "failed"}


def model_info(
    entry: CatalogueEntry,
    *,
    chooser: Chooser,
    here: bool,
    default: bool,
    runners: list[ModelRunner],
) -> ModelInfo:
    """Return one model of the catalogue and how it stands on this machine."""
    backend = chooser.backend(entry)
    absent = missing(backend) or too_large(entry)
    states = {STATES[runner.state] for runner in runners if runner.state in STATES}
    known: ModelState = "pulled" if here else "not-pulled"
    speeds = [speed for r in runners if (speed := r.tally.tokens_per_second) is not None]
    return ModelInfo(
        id=entry.id,
        kind=entry.kind,
        description=entry.description,
        source=entry.source,
        digest=entry.digest,
        capabilities=list(entry.capabilities),
        adapters=chooser.adapters(entry),
        licence=entry.licence,
        size_bytes=entry.size_bytes,
        memory_bytes=entry.memory_bytes,
        context_tokens=entry.context_tokens,
        dimension=entry.dimension,
        state=next((s for s in ("loaded", "loading", "failed") if s in states), known),
        backend=None if absent else backend,
        default=default,
        note=absent or _note(entry, backend, chooser, runners),
        loaded_bytes=sum(runner.loaded_bytes for runner in runners),
        under_way=sum(runner.turns.under_way for runner in runners),
        waiting=sum(runner.turns.waiting for runner in runners),
        tokens_per_second=max(speeds, default=None),
    )


def service_state(name: str, choice: Choice, runner: ModelRunner | None) -> ServiceState:
    """Return how the part of the service that a default model serves stands."""
    what = f"{choice.entry.id} on {choice.backend}"
    if runner is None or runner.state == "stopped":
        return ServiceState(name, "ready", f"{what}, loaded on first use")
    if runner.state == "loading":
        return ServiceState(name, "starting", f"{what} is being loaded")
    if runner.state == "failed":
        return ServiceState(name, "failed", runner.reason)
    turns = runner.turns
    return ServiceState(
        name, "ready", f"{what}: {turns.under_way} under way, {turns.waiting} waiting"
    )


def statistics(runner: ModelRunner) -> ModelStatistics:
    """Return what one model has done and does."""
    return ModelStatistics(
        model=runner.entry.id,
        backend=runner.backend,
        state=runner.state,
        loaded_bytes=runner.loaded_bytes,
        slots=runner.turns.slots,
        under_way=runner.turns.under_way,
        waiting=runner.turns.waiting,
        tally=runner.tally,
    )


def _note(
    entry: CatalogueEntry, backend: str, chooser: Chooser, runners: list[ModelRunner]
) -> str | None:
    for runner in runners:
        if note := runner.reason or runner.ready.get("note"):
            return str(note)
    if backend == "mlx" and not machine.has_accelerator():
        return "MLX has no Metal or CUDA here and runs on the CPU: expect it to be slow."
    if entry.format == "gguf" and backend == "llamacpp" and chooser.configured == "auto":
        return "llama.cpp, because MLX has no Metal or CUDA here."
    return None
