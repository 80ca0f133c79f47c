"""Hub models: found in the hub client's own cache, fetched by the hub's client."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.unit.inference.conftest import LOG
from tests.unit.inference.packages import hide
from uait_server_ext.errors import DependencyMissing, ModelUnavailable
from uait_server_ext.inference import hub, machine
from uait_server_ext.inference.backends.mlx import FORM
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import Catalogue, CatalogueEntry
from uait_server_ext.inference.gguf_convert import to_mlx
from uait_server_ext.inference.models import ChatRequest, Message
from uait_server_ext.inference.service import Inference


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, with no way to the hub."""
    folder = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture
def entry() -> CatalogueEntry:
    return Catalogue.load().get("qwen3-4b-instruct-2507")


def downloaded(repository: str, files: dict[str, str]) -> Path:
    """Lay files out as the hub's client does."""
    folder = hub.repository_folder(repository)
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    for name, text in files.items():
        (snapshot / name).write_text(text)
    return snapshot


def test_a_downloaded_model_is_found(
    hub_cache: Path, cache: ModelCache, entry: CatalogueEntry
) -> None:
    assert entry.hub
    assert not cache.has(entry)
    folder = downloaded(entry.hub, {"config.json": "{}", "model.safetensors": ""})
    assert cache.has(entry)
    assert cache.source(entry) == folder


def test_a_model_with_a_missing_shard_is_not_here(
    hub_cache: Path, cache: ModelCache, entry: CatalogueEntry
) -> None:
    assert entry.hub
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {"config.json": "{}", "model-1.safetensors": ""}
    folder = downloaded(entry.hub, {**files, "model.safetensors.index.json": json.dumps(index)})
    assert not cache.has(entry)
    (folder / "model-2.safetensors").write_text("")
    assert cache.has(entry)


@pytest.mark.parametrize(
    ("variables", "below"),
    [
        ({"HF_HUB_CACHE": "h"}, "h"),
        ({"HF_HOME": "h"}, "h/hub"),
        ({"XDG_CACHE_HOME": "h"}, "h/huggingface/hub"),
        ({"HOME": "h"}, "h/.cache/huggingface/hub"),
    ],
)
def test_the_hub_cache_is_where_its_client_keeps_it(
    variables: dict[str, str], below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert hub.repository_folder("a/b") == tmp_path / below / "models--a--b"


def test_without_a_network_a_pull_says_so(
    hub_cache: Path, cache: ModelCache, entry: CatalogueEntry
) -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(ModelUnavailable, match=r"Could not fetch .*Qwen3-4B.*Check the network"):
        cache.pull(entry)


def test_without_the_hub_client_the_error_names_the_extra(
    hub_cache: Path, cache: ModelCache, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "huggingface_hub")
    with pytest.raises(DependencyMissing, match="linux-cpu"):
        cache.pull(entry)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_downloaded_model_answers_without_a_network(
    hub_cache: Path, model_cache: Path, cache: ModelCache
) -> None:
    if not machine.has_module("mlx_lm"):
        pytest.skip("MLX is not installed here")
    embedded = Catalogue.load().get("smollm2-135m-instruct")
    converted = ModelCache(model_cache).derived(embedded, FORM, to_mlx)
    folder = downloaded("someone/smol", {})
    for path in converted.iterdir():
        (folder / path.name).symlink_to(path)
    entry = CatalogueEntry(
        id="smol",
        kind="chat",
        format="mlx",
        description="From the hub.",
        licence="Apache-2.0",
        memory_bytes=1,
        context_tokens=512,
        hub="someone/smol",
    )
    catalogue = Catalogue([*Catalogue.load().entries, entry])

    async def main() -> str:
        inference = Inference(cache=cache, catalogue=catalogue, log=LOG)
        request = ChatRequest(
            messages=[Message(role="user", content="What is the capital of France?")],
            model="smol",
            max_tokens=16,
        )
        try:
            return "".join([e.text async for e in inference.chat(request) if e.type == "delta"])
        finally:
            await inference.stop()

    assert "Paris" in asyncio.run(main())
