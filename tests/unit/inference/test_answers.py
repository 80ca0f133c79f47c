"""Inside the worker: what becomes of pieces, of events and of a backend that fails."""

from __future__ import annotations

import io
import json
import queue
import threading
import time
from typing import IO, Any, cast

import pytest

from uait_server_ext.inference import protocol, worker
from uait_server_ext.inference.answers import Answer, generation_of
from uait_server_ext.inference.backends.base import (
    Ended,
    Event,
    Failed,
    Generation,
    Loaded,
    Outcome,
    Piece,
)
from uait_server_ext.inference.models import (
    ChatRequest,
    CompletionRequest,
    Message,
    TokenLogprob,
    ToolCall,
    ToolDefinition,
)

PATIENCE_SECONDS = 60.0
CLOCK = ToolDefinition(name="clock", parameters={"type": "object", "properties": {}})
CALL = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


def asked(**more: Any) -> ChatRequest:
    return ChatRequest(messages=[Message(role="user", content="x")], **more)


def frames_of(answer: Answer, pieces: list[str], reason: Any = "stop") -> list[dict[str, Any]]:
    """Return the frames of an answer given in pieces, as the worker's loop makes them."""
    made = []
    for text in pieces:
        logprob = [TokenLogprob(token=text, logprob=-0.5)]
        if (frame := answer.piece(Piece(1, text, logprob))) is not None:
            made.append(frame)
        if answer.stopped:
            reason = "cancelled"
            break
    return made + answer.end(Outcome(reason, 3, 4, 2))


def test_a_stop_string_ends_an_answer_and_the_end_counts_its_tokens() -> None:
    *deltas, done = frames_of(Answer(1, asked(stop=["END"]), None), ["a E", "ND", "b"])
    assert "".join(frame["text"] for frame in deltas) == "a "
    assert (done["type"], done["finish_reason"]) == ("done", "stop")
    assert (done["prompt_tokens"], done["completion_tokens"], done["cached_tokens"]) == (3, 4, 2)


def test_every_logprob_arrives_once_also_of_text_held_back() -> None:
    *deltas, done = frames_of(Answer(1, asked(stop=["END"]), None), ["a E", "N", "D b", " c"])
    tokens = [token["token"] for frame in deltas for token in frame.get("logprobs", [])]
    assert tokens == ["a E", "N", "D b"]
    assert done["type"] == "done"


def test_a_cancelled_answer_says_only_that() -> None:
    answer = Answer(1, asked(), None)
    assert answer.end(Outcome("cancelled", 3, 1)) == [{"type": "cancelled", "id": 1}]


def test_calls_of_tools_are_no_text() -> None:
    pieces = ["I look. ", "<tool", *CALL.removeprefix("<tool").partition("name")]
    *deltas, done = frames_of(Answer(1, asked(tools=[CLOCK]), None), pieces)
    assert "".join(frame["text"] for frame in deltas).strip() == "I look."
    assert done["finish_reason"] == "tool_calls"
    (call,) = (ToolCall.model_validate(call) for call in done["tool_calls"])
    assert (call.name, json.loads(call.arguments)) == ("clock", {})
    assert call.id.startswith("call_")


def test_without_tools_what_looks_like_a_call_is_text() -> None:
    for request in (asked(), asked(tools=[CLOCK], tool_choice="none")):
        *deltas, done = frames_of(Answer(1, request, None), [CALL])
        assert "".join(frame["text"] for frame in deltas) == CALL
        assert (done["finish_reason"], done["tool_calls"]) == ("stop", [])


def test_messages_reach_templates_in_their_form() -> None:
    call = ToolCall(id="c1", name="clock", arguments='{"zone": "CET"}')
    request = ChatRequest(
        messages=[
            Message(role="user", content="What time is it?", images=["data:image/png;base64,"]),
            Message(role="assistant", tool_calls=[call]),
            Message(role="tool", content="noon", tool_call_id="c1"),
        ]
    )
    user, assistant, tool = generation_of(request, None, None).messages
    assert user["images"] == ["data:image/png;base64,"]
    assert assistant["content"] == ""
    assert assistant["tool_calls"][0]["function"] == {
        "name": "clock",
        "arguments": {"zone": "CET"},
    }
    assert tool == {"role": "tool", "content": "noon", "tool_call_id": "c1"}


def test_a_raw_completion_has_a_prompt_and_no_messages() -> None:
    made = generation_of(CompletionRequest(prompt="Once", seed=3), None, "/models/x/adapter-a")
    assert (made.prompt, made.messages, made.seed) == ("Once", [], 3)
    assert made.adapter is not None
    assert made.adapter.name == "adapter-a"


class Backend:
    """Plays a script: what comes once so many requests have started, or an error."""

    loaded = Loaded(100, streams=4)
    busy = True

    def __init__(self, *script: tuple[int, list[Event] | Exception]) -> None:
        self.script = list(script)
        self.started: list[int] = []
        self.cancelled: list[int] = []
        self.played = threading.Event()

    def start(self, number: int, request: Generation) -> None:
        self.started.append(number)

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)

    def step(self) -> list[Event]:
        if not self.script or len(self.started) < self.script[0][0]:
            time.sleep(0.001)
            return []
        _, step = self.script.pop(0)
        if not self.script:
            self.played.set()
        if isinstance(step, Exception):
            raise step
        return step


class Requests(io.RawIOBase):
    """What the parent sends; it never ends, as the worker would end its process then."""

    def __init__(self) -> None:
        self.sent: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._left = b""

    def read(self, size: int = -1) -> bytes:
        """Return so many bytes, waiting for them."""
        while len(self._left) < size:
            self._left += self.sent.get()
        read, self._left = self._left[:size], self._left[size:]
        return read


class Bench:
    """A worker in a thread of this process, with a backend of the test."""

    def __init__(self, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(worker, "_load", lambda message: backend)
        self._backend = backend
        self._requests = Requests()
        self.replies = io.BytesIO()
        self.error: Exception | None = None
        self._worker = worker.Worker(cast("IO[bytes]", self._requests), self.replies)
        self._thread = threading.Thread(target=self._run)
        self.send({"type": "load"})
        self._thread.start()

    def _run(self) -> None:
        try:
            self._worker.run()
        except Exception as error:
            self.error = error

    def send(self, message: dict[str, Any]) -> None:
        self._requests.sent.put(protocol.encode(message))

    def ask(self, number: int, **more: Any) -> None:
        self.send({"type": "chat", "id": number, "request": asked(**more).model_dump()})

    def frames(self) -> list[dict[str, Any]]:
        """Let the backend play to its end, stop the worker, and return what it said."""
        assert self._backend.played.wait(PATIENCE_SECONDS)
        self.send({"type": "stop"})
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        self.replies.seek(0)
        said = iter(lambda: protocol.read(self.replies), None)
        return [frame.message for frame in said if frame.message["type"] != "ready"]


def test_a_step_that_raises_fails_every_request_and_ends_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(Backend((2, MemoryError())), monkeypatch)
    bench.ask(1)
    bench.ask(2)
    frames = bench.frames()
    assert isinstance(bench.error, MemoryError)
    assert {frame["code"] for frame in frames} == {"model-unavailable"}
    assert [(frame["type"], frame["id"]) for frame in frames] == [("error", 1), ("error", 2)]


def test_a_stream_that_fails_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend(
        (2, [Piece(1, "a"), Failed(1, ValueError("bad")), Piece(2, "b")]),
        (2, [Ended(2, Outcome("stop", 1, 1))]),
    )
    bench = Bench(backend, monkeypatch)
    bench.ask(1)
    bench.ask(2)
    kinds = [(frame["type"], frame["id"]) for frame in bench.frames()]
    assert kinds == [("delta", 1), ("error", 1), ("delta", 2), ("done", 2)]


def test_a_stop_string_lets_go_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend(
        (1, [Piece(1, "one END")]),
        (1, [Piece(1, " two"), Ended(1, Outcome("cancelled", 1, 3))]),
    )
    bench = Bench(backend, monkeypatch)
    bench.ask(1, stop=["END"])
    delta, done = bench.frames()
    assert delta["text"] == "one "
    assert (done["finish_reason"], done["completion_tokens"]) == ("stop", 3)
    assert backend.cancelled == [1]
