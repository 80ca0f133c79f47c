"""The models of this machine as a provider: `Inference`, asked with the target's own name."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Protocol

from uait_server_ext.inference.models import ChatEvent, ChatRequest
from uait_server_ext.routing.models import Caller, Target


class LocalModels(Protocol):
    """What routing needs of `inference.service.Inference`."""

    def check(self, model: str) -> None:
        """Raise `ModelNotFound` where no chat model has that id."""
        ...

    def chat(self, request: ChatRequest, *, caller: str = "") -> AsyncIterator[ChatEvent]:
        """Stream a completion; closing the iterator cancels it."""
        ...


class LocalProvider:
    """Calls of local models; fair between callers, as the scheduler sees to."""

    def __init__(self, inference: LocalModels) -> None:
        self._inference = inference

    async def chat(
        self, target: Target, request: ChatRequest, caller: Caller
    ) -> AsyncGenerator[ChatEvent, None]:
        """Make one call; see `Provider.chat`."""
        if request.model != target.name:
            request = request.model_copy(update={"model": target.name})
        events = self._inference.chat(request, caller=caller.principal)
        try:
            async for event in events:
                yield event
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()

    async def close(self) -> None:
        """Do nothing: the models belong to the server, not to the router."""
