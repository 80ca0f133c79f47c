"""The child side of a model worker: ``python -m uait_server_ext.inference.worker``.

The main thread loads one model and serves all its requests, step by step; MLX must stay in the main
thread. A second thread reads frames, so that a cancel is heard between two steps and the process
ends at once when its parent is gone. Frames go over private descriptors: standard output is pointed
at standard error first, because libraries print.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import queue
import threading
import time
import traceback
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from uait_server_ext.errors import ModelUnavailable, UaitError
from uait_server_ext.inference import machine, protocol
from uait_server_ext.inference.answers import Answer, generation_of, read_request
from uait_server_ext.inference.backends.base import (
    ChatBackend,
    EmbeddingBackend,
    Ended,
    Event,
    Failed,
    Loaded,
    Piece,
    RerankBackend,
)
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import CatalogueEntry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BACKENDS = {
    "echo": ("echo", "EchoChat"),
    "llamacpp": ("llamacpp", "LlamaCppChat"),
    "mlx": ("mlx", "MlxChat"),
    "mlx-vlm": ("mlx_vision", "VisionChat"),
    "onnxruntime": ("embedding", "OnnxEmbedder"),
}


NICENESS = 5  # the server, which answers everybody, goes before a model that takes all cores
SIGN_SECONDS = 1.0  # without a word while requests are under way


class Backend(ChatBackend, EmbeddingBackend, RerankBackend, Protocol):
    """A backend of any kind; the parent only sends requests of the right one."""


class Worker:
    """One loaded model behind a pair of streams."""

    def __init__(self, requests: IO[bytes], replies: IO[bytes]) -> None:
        self._requests = requests
        self._replies = replies
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._answers: dict[int, Answer] = {}
        self._said_at = 0.0

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
        self._send({"type": "ready", **loaded.message(), "memory_bytes": machine.own_memory()})
        while self._read_inbox(backend):
            if not self._idle(backend):
                self._deliver(backend, self._step(backend))
                if time.monotonic() - self._said_at > SIGN_SECONDS:
                    self._send({"type": "alive"})

    def _listen(self) -> None:
        try:
            while (frame := protocol.read(self._requests)) is not None:
                self._inbox.put(frame.message)
        except BaseException as error:  # no memory for a frame: nobody would hear the next ones
            traceback.print_exception(error)
            os._exit(1)
        os._exit(0)  # the parent is gone: whatever the main thread does is for nobody

    def _read_inbox(self, backend: Backend) -> bool:
        """Take what has come, waiting only where nothing is under way; False: stop."""
        while self._idle(backend) or not self._inbox.empty():
            message = self._inbox.get()
            match message["type"]:
                case "stop":
                    return False
                case "cancel":
                    if message["id"] in self._answers:
                        backend.cancel(message["id"])
                case _:
                    self._begin(backend, message)
        return True

    def _idle(self, backend: Backend) -> bool:
        """Say whether nothing is to be done; a backend may be tidying up after the last answer."""
        return not self._answers and not getattr(backend, "busy", False)

    def _begin(self, backend: Backend, message: dict[str, Any]) -> None:
        number = message["id"]
        try:
            match message["type"]:
                case "embed":
                    self._send_numbers(number, *backend.embed(message["texts"]))
                case "rank":
                    self._send_numbers(number, *backend.rank(message["query"], message["texts"]))
                case _:
                    request = read_request(message)
                    template = backend.loaded.template
                    generation = generation_of(request, template, message.get("adapter"))
                    backend.start(number, generation)
                    self._answers[number] = Answer(number, request, template)
        except Exception as error:
            self._send({"type": "error", "id": number, **_described(error)})

    def _step(self, backend: ChatBackend) -> list[Event]:
        try:
            return backend.step()
        except Exception as error:  # the model is in no known state: fail clearly, begin anew
            for number in self._answers:
                self._send({"type": "error", "id": number, **_described(error)})
            raise

    def _deliver(self, backend: ChatBackend, events: list[Event]) -> None:
        for event in events:
            answer = self._answers[event.number]
            match event:
                case Piece() if not answer.stopped:
                    self._show(backend, answer, event)
                case Ended():
                    for frame in answer.end(event.outcome):
                        self._replies.write(protocol.encode(frame))
                case Failed():
                    frame = {"type": "error", "id": event.number, **_described(event.error)}
                    self._replies.write(protocol.encode(frame))
            if not isinstance(event, Piece):
                del self._answers[event.number]
        if events:
            self._flush()

    def _show(self, backend: ChatBackend, answer: Answer, piece: Piece) -> None:
        if (frame := answer.piece(piece)) is not None:
            self._replies.write(protocol.encode(frame))
        if answer.stopped:
            backend.cancel(piece.number)

    def _send(self, message: dict[str, Any], body: bytes = b"") -> None:
        self._replies.write(protocol.encode(message, body))
        self._flush()

    def _flush(self) -> None:
        self._replies.flush()
        self._said_at = time.monotonic()

    def _send_numbers(
        self, number: int, numbers: npt.NDArray[np.float32], tokens: list[int]
    ) -> None:
        shape = list(numbers.shape)
        head = {"type": "vectors", "id": number, "shape": shape, "tokens": tokens}
        self._send(head, numbers.astype("<f4").tobytes())


def _load(message: dict[str, Any]) -> Backend:
    module, name = BACKENDS[message["backend"]]
    entry = CatalogueEntry.model_validate(message["entry"])
    cache = ModelCache(Path(message["cache"]))
    package = importlib.import_module(f"uait_server_ext.inference.backends.{module}")
    cache.use(entry)
    more = {}
    if message["draft"] is not None:
        more["draft"] = CatalogueEntry.model_validate(message["draft"])
    backend: Backend = getattr(package, name)(entry, cache, message["threads"], **more)
    return backend


def _described(error: Exception) -> dict[str, Any]:
    if isinstance(error, UaitError):
        return {"code": error.code, "detail": error.detail, "extensions": error.extensions}
    if isinstance(error, MemoryError):
        said = "The model ran out of memory. Shorten the prompt, or ask fewer at once."
        return {"code": ModelUnavailable.code, "detail": said, "extensions": {}}
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
    os.nice(NICENESS)
    Worker(*_private_streams()).run()
