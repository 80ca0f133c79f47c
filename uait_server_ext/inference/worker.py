"""The child side of a model worker: ``python -m uait_server_ext.inference.worker``.

The main thread loads one model and answers one request after another; MLX must stay in the main
thread. A second thread reads frames, so that a cancel is heard while the model runs and the process
ends at once when its parent is gone. Frames go over private descriptors: standard output is pointed
at standard error first, because libraries print.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import queue
import threading
import traceback
from pathlib import Path
from typing import IO, Any, Protocol

from uait_server_ext.errors import UaitError
from uait_server_ext.inference import protocol
from uait_server_ext.inference.backends.base import (
    ChatBackend,
    EmbeddingBackend,
    Generation,
    Loaded,
)
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import CatalogueEntry
from uait_server_ext.inference.models import ChatRequest
from uait_server_ext.inference.stops import StopFilter

BACKENDS = {
    "echo": ("echo", "EchoChat"),
    "llamacpp": ("llamacpp", "LlamaCppChat"),
    "mlx": ("mlx", "MlxChat"),
    "onnxruntime": ("embedding", "OnnxEmbedder"),
}


class Backend(ChatBackend, EmbeddingBackend, Protocol):
    """A backend of either kind; the parent only sends requests of the right one."""


class Worker:
    """One loaded model behind a pair of streams."""

    def __init__(self, requests: IO[bytes], replies: IO[bytes]) -> None:
        self._requests = requests
        self._replies = replies
        self._writing = threading.Lock()
        self._waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._cancelled: set[int] = set()

    def run(self) -> None:
        """Load, then answer until told to stop."""
        first = protocol.read(self._requests)
        if first is None:
            return
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            backend = _load(first.message)
        except Exception as error:
            self._send({"type": "failed", **_described(error)})
            return
        loaded: Loaded = backend.loaded
        self._send({"type": "ready", **loaded.message()})
        while (message := self._waiting.get()) is not None:
            self._answer(backend, message)

    def _listen(self) -> None:
        while (frame := protocol.read(self._requests)) is not None:
            match frame.message["type"]:
                case "cancel":
                    self._cancelled.add(frame.message["id"])
                case "stop":
                    self._waiting.put(None)
                case _:
                    self._waiting.put(frame.message)
        os._exit(0)  # the parent is gone: whatever the main thread does is for nobody

    def _answer(self, backend: Backend, message: dict[str, Any]) -> None:
        request = message["id"]
        try:
            if message["type"] == "chat":
                self._chat(backend, request, ChatRequest.model_validate(message["request"]))
            else:
                vectors = backend.embed(message["texts"])
                head = {"type": "vectors", "id": request, "shape": list(vectors.shape)}
                self._send(head, vectors.astype("<f4").tobytes())
        except Exception as error:
            self._send({"type": "error", "id": request, **_described(error)})
        finally:
            self._cancelled.discard(request)

    def _chat(self, backend: ChatBackend, number: int, request: ChatRequest) -> None:
        stops = StopFilter(request.stop)

        def show(text: str) -> None:
            if text:
                self._send({"type": "delta", "id": number, "text": text})

        def emit(text: str) -> bool:
            if text:
                show(stops.push(text))
            return number not in self._cancelled and not stops.stopped

        generation = Generation(
            messages=[message.model_dump() for message in request.messages],
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
        )
        outcome = None
        if emit(""):
            outcome = backend.generate(generation, emit)
        if outcome is None or number in self._cancelled:
            self._send({"type": "cancelled", "id": number})
            return
        show(stops.rest())
        self._send(
            {
                "type": "done",
                "id": number,
                "finish_reason": "stop" if stops.stopped else outcome.finish_reason,
                "prompt_tokens": outcome.prompt_tokens,
                "completion_tokens": outcome.completion_tokens,
            }
        )

    def _send(self, message: dict[str, Any], body: bytes = b"") -> None:
        with self._writing:
            self._replies.write(protocol.encode(message, body))
            self._replies.flush()


def _load(message: dict[str, Any]) -> Backend:
    module, name = BACKENDS[message["backend"]]
    entry = CatalogueEntry.model_validate(message["entry"])
    cache = ModelCache(Path(message["cache"]))
    package = importlib.import_module(f"uait_server_ext.inference.backends.{module}")
    backend: Backend = getattr(package, name)(entry, cache, message["threads"])
    return backend


def _described(error: Exception) -> dict[str, Any]:
    if isinstance(error, UaitError):
        return {"code": error.code, "detail": error.detail, "extensions": error.extensions}
    traceback.print_exception(error)
    return {"code": "internal", "detail": f"{type(error).__name__}: {error}", "extensions": {}}


def _private_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Take standard input and output away from everything else in this process."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return os.fdopen(requests, "rb"), os.fdopen(replies, "wb")


if __name__ == "__main__":
    faulthandler.enable()
    Worker(*_private_streams()).run()
