"""What is killed comes back: the model worker, and the server in the middle of an ingest."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uait_kernel.client import Client
from uait_kernel.errors import UaitClientError
from uait_server_ext.workflows.server import OwnServer

pytestmark = pytest.mark.slow
CHAT = "smollm2-135m-instruct"


def children(pid: int) -> dict[int, str]:
    """Return the command lines of a process's descendants (Linux)."""
    found: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            found[int(child)] = command
            found |= children(int(child))
    return found


def workers(server: OwnServer) -> set[int]:
    return {pid for pid, cmd in children(server.pid).items() if "inference.worker" in cmd}


def story(client: Client, max_tokens: int = 400) -> Any:
    messages = [{"role": "user", "content": "Tell a long story about a lighthouse keeper."}]
    return client.chat(messages, model=CHAT, max_tokens=max_tokens)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker through /proc")
def test_a_killed_model_worker_fails_one_answer_and_no_more(uait_server: OwnServer) -> None:
    client = Client(uait_server.url, uait_server.token)
    before = workers(uait_server)
    events = story(client)
    first = next(iter(events))
    assert first["type"] == "delta"
    # Where it was loaded before, nobody can tell it from the others: all are killed.
    for pid in workers(uait_server) - before or workers(uait_server):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(UaitClientError, match="worker") as caught:
        for _ in events:
            pass
    assert "again" in str(caught.value)
    last = list(story(client, max_tokens=5))[-1]
    assert last["type"] == "done"
    assert last["usage"]["completion_tokens"] <= 5
    os.kill(uait_server.pid, 0)


def test_a_client_that_goes_away_frees_the_worker(uait_server: OwnServer) -> None:
    client = Client(uait_server.url, uait_server.token)
    events = story(client, max_tokens=1500)
    next(iter(events))
    events.close()
    began = time.monotonic()
    list(story(client, max_tokens=1))
    assert time.monotonic() - began < 5


def test_a_killed_server_loses_no_acknowledged_document(
    start_server: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(120):
        text = (
            f"# Report {number}\n\n"
            + f"The budget of project {number} is {number * 7} euros. " * 30
        )
        (folder / f"report-{number:03}.md").write_text(text)
    acknowledged: list[str] = []
    with start_server() as server:
        client = Client(server.url, server.token)

        def ingest() -> None:
            try:
                for event in client.ingest(str(folder), "reports"):
                    if event["type"] == "file" and event["state"] == "added":
                        acknowledged.append(event["path"])
            except UaitClientError:
                pass  # the server was killed, as planned

        thread = threading.Thread(target=ingest)
        thread.start()
        while len(acknowledged) < 20:
            time.sleep(0.01)
        os.kill(server.pid, signal.SIGKILL)
        thread.join(30)
    assert 20 <= len(acknowledged) < 120
    with start_server() as server:
        client = Client(server.url, server.token)
        status = client.status("reports")
        assert status.documents >= len(acknowledged)
        assert len(status.pending) == 120 - status.documents
        hits = client.search("budget of project 3", "reports", k=20, mode="text")
        assert hits
        done = list(client.ingest(None, "reports"))[-1]
        assert done["failed"] == 0
        assert done["added"] == 120 - status.documents
        status = client.status("reports")
        assert status.documents == 120
        assert not status.pending
