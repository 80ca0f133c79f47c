"""The reading process: a file at which it hangs or dies is reported, the next is read."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager

import psutil
import pytest

from uait_server_ext.errors import UnsupportedDocument
from uait_server_ext.knowledge.reader import MODULE, Reader


@asynccontextmanager
async def a_reader(seconds: float = 60.0):
    reader = Reader(max_file_bytes=1_000_000, seconds_each=seconds)
    try:
        yield reader
    finally:
        await reader.close()


@pytest.fixture
def good(tmp_path):
    file = tmp_path / "good.md"
    file.write_text("# Good\n\nText.")
    return file


def processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if MODULE in child.cmdline()]


async def test_a_hanging_file_is_given_up_and_the_next_is_read(good, tmp_path):
    async with a_reader(seconds=4) as reader:
        os.mkfifo(tmp_path / "hangs.md")
        began = time.monotonic()
        with pytest.raises(UnsupportedDocument, match="took longer than 4 s"):
            await reader.read(tmp_path / "hangs.md", None)
        assert time.monotonic() - began < 20
        assert (await reader.read(good, None)).title == "Good"


async def test_a_crash_is_reported_and_the_next_is_read(good, tmp_path):
    async with a_reader() as reader:
        os.mkfifo(tmp_path / "crashes.md")
        reading = asyncio.create_task(reader.read(tmp_path / "crashes.md", None))
        await asyncio.sleep(0.5)
        (process,) = processes()
        process.kill()
        with pytest.raises(UnsupportedDocument, match="crashed its reader"):
            await reading
        assert (await reader.read(good, None)).title == "Good"


async def test_cancelling_ends_the_process(tmp_path):
    async with a_reader() as reader:
        os.mkfifo(tmp_path / "hangs.md")
        reading = asyncio.create_task(reader.read(tmp_path / "hangs.md", None))
        await asyncio.sleep(0.5)
        assert processes()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert not processes()


async def test_a_file_that_is_gone_says_so(tmp_path):
    async with a_reader() as reader:
        with pytest.raises(UnsupportedDocument, match="No such file"):
            await reader.read(tmp_path / "gone.md", None)


async def test_the_process_imports_nothing_of_the_server(good, tmp_path, monkeypatch):
    """Neither the folder it is started in nor the server's modules are loaded by it."""
    async with a_reader() as reader:
        (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
        monkeypatch.chdir(tmp_path)
        assert (await reader.read(good, None)).title == "Good"
        (process,) = processes()
        loaded = {path for path in (file.path for file in process.memory_maps()) if ".so" in path}
        assert not [path for path in loaded if any(name in path for name in HEAVY)]


HEAVY = ("duckdb", "numpy", "pydantic", "tantivy", "usearch", "onnxruntime", "mlx", "zmq")
