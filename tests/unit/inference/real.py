"""A service with the real embedded models, its event loop in a thread of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from anyio.from_thread import BlockingPortal, start_blocking_portal

from tests.unit.inference.conftest import LOG
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import Catalogue
from uait_server_ext.inference.models import ChatDone, ChatRequest, Message, TextDelta
from uait_server_ext.inference.service import Inference


class RealModels:
    """Asks real models and waits for the answers."""

    def __init__(self, portal: BlockingPortal, inference: Inference) -> None:
        self.portal = portal
        self.inference = inference

    def ask(self, text: str, model: str = "auto", **more: Any) -> tuple[ChatDone, list[str]]:
        """Return the last event and the pieces of text that came before it."""

        async def main() -> tuple[ChatDone, list[str]]:
            pieces = []
            async for event in self.inference.chat(request_of(text, model, **more)):
                if isinstance(event, TextDelta):
                    pieces.append(event.text)
                else:
                    return event, pieces
            raise AssertionError("the stream ended without a done event")

        return self.portal.call(main)

    def worker(self) -> psutil.Process:
        """Return the newest model worker."""
        children = psutil.Process().children()
        return max(children, key=lambda child: (child.create_time(), child.pid))


def request_of(text: str, model: str = "auto", **more: Any) -> ChatRequest:
    """Return a request with one user message."""
    return ChatRequest(messages=[Message(role="user", content=text)], model=model, **more)


@contextmanager
def real_models(root: Path) -> Iterator[RealModels]:
    """Run a service over the real model cache."""
    inference = Inference(
        cache=ModelCache(root), catalogue=Catalogue.load(), auto_pull=False, log=LOG
    )
    with start_blocking_portal() as portal:
        portal.call(inference.start)
        try:
            yield RealModels(portal, inference)
        finally:
            portal.call(inference.stop)
