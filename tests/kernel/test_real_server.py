"""The magics against the real server with its real models."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uait_kernel.client import Client
from uait_kernel.errors import InvalidInput, NotFound, ServerError

if TYPE_CHECKING:
    from tests.kernel.conftest import MagicShell
    from uait_server_ext.workflows.server import OwnServer

pytestmark = pytest.mark.slow

DOCUMENTS = {
    "bees.md": "# Bees\n\nA honey bee colony has one queen, who lays up to 2,000 eggs a day.\n",
    "tides of the sea.txt": "Tides are caused by the gravity of the Moon and the Sun.\n",
    "Brücken/brücke.md": "# Brücken\n\nThe Golden Gate Bridge was opened in 1937.\n",
    "broken.pdf": "this is no PDF",
}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with documents; one of them cannot be read."""
    folder = tmp_path_factory.mktemp("a folder of documents")
    for name, text in DOCUMENTS.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def named_server(
    uait_server: OwnServer, fresh_session: None, monkeypatch: pytest.MonkeyPatch
) -> OwnServer:
    """Name the real server in the environment."""
    monkeypatch.setenv("UAIT_URL", uait_server.url)
    monkeypatch.setenv("UAIT_TOKEN", uait_server.token)
    return uait_server


@pytest.fixture
def client(uait_server: OwnServer) -> Client:
    return Client(uait_server.url, uait_server.token)


@pytest.fixture
def collection(
    shell: MagicShell, named_server: OwnServer, documents: Path, client: Client
) -> Iterator[str]:
    """Put the documents into a collection with `%kb add`."""
    summary = shell.run(f"%kb add '{documents}' -c kernel-tests")
    assert summary.state == "done"
    assert summary.added == 3
    assert [Path(failure.path).name for failure in summary.failed] == ["broken.pdf"]
    assert summary.failed[0].error
    yield "kernel-tests"
    client.delete("kernel-tests")


def test_from_documents_to_an_answer(
    shell: MagicShell,
    collection: str,
    documents: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = shell.run(
        f"%%ask -c {collection} --max-tokens 24 --to kept\nHow many eggs does a queen lay a day?"
    )
    assert not answer.declined
    assert answer.citations[0].path.endswith("bees.md")
    assert "2,000 eggs" in (answer.extract or "")
    assert answer.phrasing
    assert answer.model
    assert answer.usage.completion_tokens > 0
    assert shell.user_ns["kept"] is answer
    assert "bees.md" in capsys.readouterr().out

    declined = shell.run(f"%ask -c {collection} Who won the chess championship of 1972?")
    assert declined.declined
    assert declined.phrasing is None

    hits = shell.run(f"%kb search -c {collection} -k 2 When was the Golden Gate Bridge opened?")
    assert "1937" in hits[0].text
    assert Path(hits[0].path).name == "brücke.md"

    again = shell.run(f"%kb add '{documents}' -c {collection}")
    assert (again.unchanged, again.added, again.embedded) == (3, 0, 0)
    status = shell.run(f"%kb status {collection}")
    assert status.documents == 3
    assert status.pending == ()
    assert collection in [one.name for one in shell.run("%kb list")]


def test_chat_and_models(shell: MagicShell, named_server: OwnServer) -> None:
    models = shell.run("%models")
    assert any(model.default and model.kind == "chat" for model in models)
    answer = shell.run("%ask --chat -m echo repeat these words")
    assert "repeat these words" in answer
    assert (answer.model, answer.state) == ("echo", "done")


def test_the_servers_refusals_have_their_kind(client: Client) -> None:
    with pytest.raises(NotFound) as caught:
        client.search("x", "no-such-collection")
    assert caught.value.code == "collection-not-found"
    with pytest.raises(NotFound) as caught, client.chat([_message("x")], model="none") as events:
        list(events)
    assert caught.value.code == "model-not-found"
    with pytest.raises(InvalidInput):
        client.search("x", "Not A Name")
    with pytest.raises(InvalidInput):
        client.chat([_message("x")], max_tokens=10**9)


def test_a_wrong_token_is_refused(uait_server: OwnServer) -> None:
    with pytest.raises(ServerError) as caught:
        Client(uait_server.url, "wrong").models()
    assert caught.value.status in (401, 403)
    assert "set UAIT_TOKEN" in str(caught.value)


def test_a_closed_stream_leaves_the_server_well(client: Client) -> None:
    with client.chat([_message("Tell a long story.")], max_tokens=512) as events:
        assert next(iter(events))["type"] == "delta"
    finished = threading.Event()

    def ask_again() -> None:
        with client.chat([_message("Say yes.")], max_tokens=4) as events:
            assert list(events)[-1]["type"] == "done"
        finished.set()

    thread = threading.Thread(target=ask_again, daemon=True)
    thread.start()
    assert finished.wait(60), "the stopped answer still holds the model"


def test_the_runtime_file_gives_the_token(
    uait_server: OwnServer,
    jupyter_folders: dict[str, str],
    fresh_session: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import uait_kernel

    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", jupyter_folders["JUPYTER_RUNTIME_DIR"])
    monkeypatch.setenv("UAIT_URL", uait_server.url)
    assert len(uait_kernel.models()) > 0
    monkeypatch.delenv("UAIT_URL")
    monkeypatch.setenv("JPY_PARENT_PID", str(uait_server.pid))
    assert uait_kernel.connect().url == uait_server.url


def _message(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}
