"""A small server that speaks the OpenAI chat protocol over real sockets, with scripted faults.

    python tests/unit/routing/mock_provider.py --port 9000 --words 16

Each request takes the next behaviour of `script`, then `usual`. A behaviour is a word, with a
number after a colon where it takes one: `slow:0.5`, `cut:3`, `429:2`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import deque
from typing import Any

PIECES = ("cut", "end", "error", "stall", "garble")


def answer_to(body: dict[str, Any], who: str, words: int = 4) -> str:
    """Return the only right answer: who gives it, and to what."""
    said = body["messages"][-1]["content"]
    text = f"{who} answers {said}"
    return " ".join([text, *(f"word{n}" for n in range(words))])


class MockProvider:
    """One provider; `async with` starts and stops it."""

    def __init__(self, who: str = "mock", usual: str = "ok", *, port: int = 0, words: int = 4):
        self.who = who
        self.usual = usual
        self.script: deque[str] = deque()
        self.calls: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.keep_calls = True
        self.under_way = 0
        self.words = words
        self.text: str | None = None
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> MockProvider:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    int(line.split(":")[1])
                    for line in head.split("\r\n")
                    if line.lower().startswith("content-length:")
                )
                body = json.loads(await reader.readexactly(length))
                if self.keep_calls:
                    self.calls.append(body)
                    self.heads.append(head)
                self.under_way += 1
                try:
                    again = await self._answer(body, writer)
                finally:
                    self.under_way -= 1
                if not again:
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        """Answer one request; tell whether the connection can be used again."""
        behaviour = self.script.popleft() if self.script else self.usual
        kind, _, number = behaviour.partition(":")
        if kind == "hang":
            await asyncio.sleep(3600)
        if kind == "slow":
            await asyncio.sleep(float(number or 1))
            kind = "ok"
        if kind.isdecimal():
            refuse(writer, int(kind), "scripted refusal", number)
            return True
        if kind == "oom":
            refuse(writer, 500, "CUDA out of memory. Tried to allocate 2.00 GiB")
            return True
        if kind == "html":
            send(writer, 200, "text/html", b"<html>a proxy's page</html>")
            return True
        if kind == "reset":
            writer.transport.abort()
            return False
        if not body.get("stream"):
            self._whole(body, writer)
            return True
        return await self._stream(kind, number, body, writer)

    def _whole(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        """Answer without a stream."""
        text = answer_to(body, self.who, self.words)
        answer = {
            "id": "chatcmpl-mock",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14},
        }
        send(writer, 200, "application/json", json.dumps(answer).encode())

    async def _stream(
        self, kind: str, number: str, body: dict[str, Any], writer: asyncio.StreamWriter
    ) -> bool:
        most = int(number or 2) if kind in PIECES else 1 << 30
        text = self.text if self.text is not None else answer_to(body, self.who, self.words)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        words = text.split(" ")
        for place, word in enumerate(words):
            if place >= most:
                break
            piece = word if place == 0 else f" {word}"
            event(writer, {"choices": [{"index": 0, "delta": {"content": piece}}]})
            if kind == "paced":
                await writer.drain()
                await asyncio.sleep(float(number or 0.01))
        if kind == "stall":
            await writer.drain()
            await asyncio.sleep(3600)
        if kind == "cut":
            await writer.drain()
            writer.transport.abort()
            return False
        if kind == "error":
            event(writer, {"error": {"message": "the GPU fell off the bus"}})
        elif kind == "garble":
            chunk(writer, b"data: {not json at all\n\n")
        elif kind != "end":  # `end`: the stream ends well, the answer does not
            finish: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": "stop"}
            if kind == "tool":
                calls = [
                    {"index": 0, "id": "call_1", "function": {"name": "add", "arguments": '{"a"'}},
                    {"index": 0, "function": {"arguments": ": 1}"}},
                ]
                for call in calls:
                    event(writer, {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})
                finish["finish_reason"] = "tool_calls"
            if kind == "filtered":
                finish["finish_reason"] = "content_filter"
            event(writer, {"choices": [finish]})
            if kind != "no-usage":
                usage = {"prompt_tokens": 10, "completion_tokens": len(words), "total_tokens": 0}
                event(writer, {"choices": [], "usage": usage})
            chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


def event(writer: asyncio.StreamWriter, data: dict[str, Any]) -> None:
    """Write one event."""
    full = {"id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    chunk(writer, b"data: " + json.dumps(full | data).encode() + b"\n\n")


def chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write one chunk of a chunked body."""
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


def refuse(writer: asyncio.StreamWriter, status: int, message: str, retry_after: str = "") -> None:
    """Answer with an error of the protocol."""
    body = json.dumps({"error": {"message": message, "type": "mock", "code": None}}).encode()
    extra = f"Retry-After: {retry_after}\r\n" if retry_after else ""
    send(writer, status, "application/json", body, extra)


def send(
    writer: asyncio.StreamWriter, status: int, kind: str, body: bytes, extra: str = ""
) -> None:
    """Write a whole answer."""
    writer.write(
        f"HTTP/1.1 {status} Status\r\nContent-Type: {kind}\r\n{extra}"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--words", type=int, default=16)
    parser.add_argument("--usual", default="ok")
    options = parser.parse_args()
    mock = MockProvider(usual=options.usual, port=options.port, words=options.words)
    mock.keep_calls = False
    async with mock:
        print(mock.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
