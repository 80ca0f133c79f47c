"""`%kb` and `%models` in a real shell against a server on a real socket."""

from __future__ import annotations

import io
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uait_kernel.errors import InvalidInput, NotFound, StreamBroken, UsageMistake

if TYPE_CHECKING:
    from tests.kernel.conftest import Handler, MagicShell, ProtocolServer


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Make a folder with a space and umlauts in its name, and one file that cannot be read."""
    folder = tmp_path / "meine Bücher & more"
    folder.mkdir()
    for name in ("a.md", "b.md", "scan.bad"):
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize("given", ["relative", "absolute", "value", "home", "bare words"])
def test_add_sends_an_absolute_path(
    shell: MagicShell,
    connected: ProtocolServer,
    documents: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: str,
) -> None:
    monkeypatch.chdir(documents.parent)
    monkeypatch.setenv("HOME", str(documents.parent))
    shell.run(f"folder = {str(documents)!r}")
    written = {
        "relative": f'"{documents.name}"',
        "absolute": f"'{documents}'",
        "value": "{{folder}}",
        "home": f'"~/{documents.name}"',
        "bare words": documents.name,
    }[given]
    shell.run(f"summary = %kb add {written} -c books")
    assert connected.requests[-1] == (
        "POST",
        "collections/books/ingest",
        {"path": str(documents)},
    )
    summary = shell.user_ns["summary"]
    assert (summary.added, summary.chunks, summary.embedded) == (2, 7, 5)


def test_add_lists_files_that_cannot_be_read(
    shell: MagicShell,
    connected: ProtocolServer,
    documents: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    summary = shell.run(f"%kb add '{documents}'")
    (failure,) = summary.failed
    assert failure.path.endswith("scan.bad")
    shown = capsys.readouterr().out
    assert "'default': 2 added, 1 not readable." in shown
    assert "scan.bad: scan.bad is not readable: it is binary." in shown
    assert "Out[2]: IngestSummary('default', done, added=2, changed=0" in shown
    again = shell.run(f"%kb add '{documents}'")
    assert (again.unchanged, again.added) == (2, 0)
    assert summary.json["failed"][0]["error"] == failure.error


def test_add_counts_on_one_line_of_a_terminal(
    shell: MagicShell,
    connected: ProtocolServer,
    documents: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from uait_kernel.display import live

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(live, "FRAME_SECONDS", 0.0)
    monkeypatch.setattr(live, "DRAWING_SHARE", 1e9)
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    shell.run(f"%kb add '{documents}'")
    frames = terminal.getvalue().split("\r\x1b[K")
    assert frames[0] == "Adding to 'default': looking for files"
    assert all(len(frame) < 40 for frame in frames[:-1])
    assert frames[-1].startswith("'default': 2 added, 1 not readable.\n")


def test_add_without_anything_says_what_is_missing(
    shell: MagicShell, connected: ProtocolServer
) -> None:
    for line in ("%kb add", "%kb add ''", "%kb search", '%kb search " "'):
        with pytest.raises(UsageMistake, match="This needs"):
            shell.run(line)
    assert not connected.requests


def test_add_of_nothing_is_the_servers_error(
    shell: MagicShell, connected: ProtocolServer, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="There is no file or folder"):
        shell.run(f"%kb add {tmp_path}/missing")


def test_resume_goes_on_without_a_path(shell: MagicShell, connected: ProtocolServer) -> None:
    shell.run("%kb resume -c books")
    assert connected.requests[-1] == ("POST", "collections/books/ingest", {})


def test_an_interrupt_stops_adding_and_says_how_to_go_on(
    shell: MagicShell,
    connected: ProtocolServer,
    documents: Path,
    within: Callable[[threading.Event], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    connected.pause = threading.Event()

    def interrupt() -> None:
        connected.paused.wait(5)
        time.sleep(0.5)  # let the client read what was sent
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        shell.run(f"%kb add '{documents}' -c books")
    thread.join()
    within(connected.cancelled)
    shown = capsys.readouterr().out
    assert re.search(r"Stopped after (\d) of 3 files; 'books': \1 added\.", shown)
    assert "`%kb resume -c books` goes on." in shown
    assert shown.endswith("KeyboardInterrupt: adding was stopped.\n")


def test_a_server_that_goes_while_adding(
    shell: MagicShell,
    connected: ProtocolServer,
    documents: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fault(handler: Handler) -> None:
        handler.begin_stream()
        handler.event({"type": "started", "collection": "default", "files": 9})
        handler.event({"type": "file", "path": "a.md", "state": "added"})
        handler.connection.close()

    connected.faults["ingest"] = fault
    with pytest.raises(StreamBroken):
        shell.run(f"%kb add '{documents}'")
    assert "Broken off after 1 of 9 files; 'default': 1 added." in capsys.readouterr().out


def test_search(
    shell: MagicShell, connected: ProtocolServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hits = shell.run("%kb search what's installed? -k 2 --mode text")
    assert connected.requests[-1] == (
        "POST",
        "collections/default/search",
        {"query": "what's installed?", "k": 2, "mode": "text"},
    )
    assert "1. docs/page 1.md, lines 1-1 (1.00)" in capsys.readouterr().out
    assert (len(hits), hits[0].path, hits[-1].score) == (2, "docs/page 1.md", 0.5)
    assert [hit["chunk_id"] for hit in hits.json] == [1, 2]
    assert repr(hits) == "Hits(2 of \"what's installed?\" in 'default')"


@pytest.mark.parametrize("line", ["%kb status", "%kb status default", "%kb status -c default"])
def test_status(
    shell: MagicShell,
    connected: ProtocolServer,
    capsys: pytest.CaptureFixture[str],
    line: str,
) -> None:
    status = shell.run(line)
    shown = capsys.readouterr().out
    assert (status.documents, status.pending[0].path) == (1, "docs/late.md")
    assert "docs/bad.pdf: The PDF has no text." in shown
    assert "`%kb resume -c default` goes on" in shown
    assert status.json["name"] == "default"


def test_list(
    shell: MagicShell, connected: ProtocolServer, capsys: pytest.CaptureFixture[str]
) -> None:
    connected.collections["books"] = []
    assert [status.name for status in shell.run("%kb list")] == ["books", "default"]
    assert "books" in capsys.readouterr().out


def test_delete_wants_to_be_told_twice(
    shell: MagicShell, connected: ProtocolServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageMistake, match="`%kb delete default --yes` to do it"):
        shell.run("%kb delete default")
    assert connected.collections
    assert shell.run("%kb delete default --yes") is None
    assert "Deleted the collection 'default'." in capsys.readouterr().out
    assert not connected.collections
    with pytest.raises(NotFound):
        shell.run("%kb delete default --yes")
    with pytest.raises(UsageMistake, match="needs the name"):
        shell.run("%kb delete --yes")


def test_a_value_cannot_confirm_a_deletion(shell: MagicShell, connected: ProtocolServer) -> None:
    shell.run("name = '--yes'")
    with pytest.raises(UsageMistake):
        shell.run("%kb delete {{name}}")
    assert connected.collections


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%kb serach x", "Did you mean `%kb search`?"),
        ("%kb frobnicate", "It has add, resume, search, status, list, delete."),
        ("%kb status one two", "'one two' is not one name"),
        ("%kb list x", "'x' has no meaning here"),
        ("%kb resume x", "'x' has no meaning here"),
        ("%kb search x --mode quick", "'quick' is none of hybrid, text, dense"),
        ("%kb search x -k 0", "no whole number from 1 to 100"),
        ("%kb add {{nothing}}", "names 'nothing'"),
        ("%kb list -c x", "%kb has no option -c"),
        ("%models x", "'x' has no meaning here"),
    ],
)
def test_mistakes(shell: MagicShell, connected: ProtocolServer, line: str, message: str) -> None:
    with pytest.raises(UsageMistake) as caught:
        shell.run(line)
    assert message in str(caught.value)
    assert not connected.requests


@pytest.mark.parametrize("line", ["%kb", "%kb -h", "%kb --help"])
def test_help_of_all_verbs(
    shell: MagicShell, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    shell.run(line)
    shown = capsys.readouterr().out
    for verb in ("add PATH", "resume", "search QUERY", "status", "list", "delete NAME --yes"):
        assert f"%kb {verb}" in shown


@pytest.mark.parametrize("verb", ["add", "resume", "search", "status", "list", "delete"])
def test_help_of_one_verb(shell: MagicShell, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    shell.run(f"%kb {verb} -h")
    assert f"usage: %kb {verb}" in capsys.readouterr().out


def test_models(
    shell: MagicShell, connected: ProtocolServer, capsys: pytest.CaptureFixture[str]
) -> None:
    models = shell.run("%models")
    assert [(model.id, model.default) for model in models] == [("echo", True), ("minilm", True)]
    assert models.json[1]["dimension"] == 384
    shown = capsys.readouterr().out
    assert "The default (auto). Repeats the prompt." in shown
    assert "Slow without AVX2." in shown
    shell.run("%models -h")
    assert "usage: %models" in capsys.readouterr().out


def test_a_semicolon_silences(
    shell: MagicShell,
    connected: ProtocolServer,
    documents: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shell.run("%models ;")
    shell.run(f"%kb add '{documents}';")
    shell.run("%kb status;")
    shell.run("%kb delete default --yes;")
    assert capsys.readouterr().out.split() == ["Out[2]:", "Out[3]:", "Out[4]:"]
    assert connected.bodies("ingest") == [{"path": str(documents)}]
