"""Pulls from a model hub: they go on where they were broken off, verified, whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.unit.inference.hub_server import COMMIT, Hub, running_hub
from uait_server_ext.errors import ModelUnavailable
from uait_server_ext.inference import hub as hub_module
from uait_server_ext.inference import machine
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import CatalogueEntry
from uait_server_ext.inference.hub_fetch import is_wanted, matches
from uait_server_ext.inference.models import PullProgress

WEIGHTS = os.urandom(1 << 20) * 3
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "modeling_tiny.py": b"raise SystemExit",
    "pytorch_model.bin": b"\x80\x04pickle",
    "README.md": b"# Tiny",
}
ENTRY = CatalogueEntry(
    id="tiny",
    kind="chat",
    format="mlx",
    description="For a test.",
    licence="MIT",
    size_bytes=len(WEIGHTS),
    memory_bytes=1,
    context_tokens=16,
    hub="someone/tiny",
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    if not machine.has_module("huggingface_hub"):
        pytest.skip("the hub's client is not installed here")
    with running_hub(dict(FILES)) as running:
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield running


def blobs() -> list[Path]:
    return sorted((hub_module.repository_folder("someone/tiny") / "blobs").iterdir())


def test_a_pull_that_is_broken_off_goes_on_where_it_was(cache: ModelCache, hub: Hub) -> None:
    def give_up(heard: PullProgress) -> None:
        if heard.done_bytes > 0:
            raise ModelUnavailable("enough")

    hub.cut_after = 1 << 20
    # the hub's client tries again by itself, each time a megabyte further, until we give up
    with pytest.raises(ModelUnavailable, match="enough"):
        cache.pull(ENTRY, give_up)
    assert not cache.has(ENTRY)
    (part,) = [path for path in blobs() if path.suffix == ".part"]
    kept = part.stat().st_size
    assert WEIGHTS.startswith(part.read_bytes())

    hub.cut_after = None
    hub.ranges.clear()
    heard: list[PullProgress] = []
    cache.pull(ENTRY, heard.append)
    assert ("model.safetensors", f"bytes={kept}-") in hub.ranges or kept == 0
    assert heard[-1].stage == "done"
    assert cache.has(ENTRY)
    folder = cache.source(ENTRY)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert not [path for path in blobs() if path.suffix == ".part"]

    hub.ranges.clear()
    cache.pull(ENTRY)  # again: nothing is fetched
    assert hub.ranges == []

    assert cache.remove(ENTRY) == sum(
        len(FILES[name]) for name in ("config.json", "model.safetensors", "tokenizer.json")
    )
    assert not cache.has(ENTRY)
    assert not hub_module.repository_folder("someone/tiny").exists()


def test_what_does_not_match_its_digest_is_not_kept(cache: ModelCache, hub: Hub) -> None:
    folder = hub_module.repository_folder("someone/tiny") / "blobs"
    folder.mkdir(parents=True)
    digest = hub.siblings()[2]["lfs"]["sha256"]  # type: ignore[index]
    (folder / f"{digest}.part").write_bytes(b"not the first bytes of it")
    with pytest.raises(ModelUnavailable, match="does not match the digest"):
        cache.pull(ENTRY)
    assert not cache.has(ENTRY)
    cache.pull(ENTRY)
    assert (cache.source(ENTRY) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_repository_without_safetensors_is_refused(cache: ModelCache, hub: Hub) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(ModelUnavailable, match="no weights in the safetensors format"):
        cache.pull(ENTRY)


def test_too_little_disk_is_said_before_the_download(
    cache: ModelCache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int = 10

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage())
    with pytest.raises(ModelUnavailable, match="of free disk"):
        cache.pull(ENTRY)
    assert hub.ranges == []


def test_a_pinned_revision_is_another_than_the_newest(tmp_path: Path, hub: Hub) -> None:
    folder = hub_module.repository_folder("someone/tiny")
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_text("")
    assert hub_module.snapshot("someone/tiny") is None
    assert hub_module.snapshot("someone/tiny", COMMIT) == snapshot


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("model-00001-of-00002.safetensors", True),
        ("tokenizer.model", True),
        ("chat_template.jinja", True),
        ("modeling.py", False),
        ("pytorch_model.bin", False),
        ("onnx/model.onnx", False),
        ("../../x.json", False),
    ],
)
def test_only_data_is_wanted(name: str, wanted: bool) -> None:
    assert is_wanted(name) is wanted


def test_digests_are_those_of_the_hub(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"hello\n")
    assert matches(path, "ce013625030ba8dba906f756967f9e9ca394464a")  # git hash-object
    assert matches(path, "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03")
    assert not matches(path, "0" * 40)
