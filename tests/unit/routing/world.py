"""A router over mock providers and a stand-in for the models of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from tests.unit.routing.mock_provider import MockProvider
from uait_server_ext.errors import ModelNotFound
from uait_server_ext.inference.models import (
    ChatDone,
    ChatEvent,
    ChatRequest,
    Message,
    TextDelta,
    Usage,
)
from uait_server_ext.routing.config import parse, routing_of
from uait_server_ext.routing.models import Caller, Failover, RoutedDone, RoutedEvent
from uait_server_ext.routing.providers import Provider
from uait_server_ext.routing.providers.local import LocalProvider
from uait_server_ext.routing.providers.openai_http import OpenAIProvider
from uait_server_ext.routing.service import Router

Result = TypeVar("Result")
ADA, BEN = Caller("user_ada"), Caller("user_ben")

PROVIDER = """
[providers.{name}]
url = "{url}"
privacy = "{privacy}"
first_token_seconds = {patience}
idle_seconds = {patience}
attempts = {attempts}
breaker = {{ open_seconds = {open_seconds} }}
[providers.{name}.models.m]
price = {{ input = 1.0, output = 2.0 }}
"""


class LocalModels:
    """Stands for `Inference`: says what it was asked, or fails as it is told."""

    def __init__(self) -> None:
        self.requests: list[ChatRequest] = []
        self.callers: list[str] = []
        self.errors: list[Exception] = []
        self.cut_after: int | None = None
        self.closed = 0

    def check(self, model: str) -> None:
        if model not in ("auto", "small"):
            raise ModelNotFound(f"no chat model {model}")

    async def chat(
        self, request: ChatRequest, *, caller: str = ""
    ) -> AsyncGenerator[ChatEvent, None]:
        self.requests.append(request)
        self.callers.append(caller)
        if self.errors:
            raise self.errors.pop(0)
        text = f"local answers {request.messages[-1].content}"
        try:
            for word in text.split(" "):
                yield TextDelta(text=word if word == "local" else f" {word}")
                await asyncio.sleep(0)
        finally:
            self.closed += 1
        yield ChatDone(
            text=text,
            model="small",
            backend="echo",
            finish_reason="stop",
            usage=Usage(prompt_tokens=3, completion_tokens=4),
            first_token_seconds=0.0,
            seconds=0.0,
        )


class World:
    """A router; `async with` starts its providers."""

    def __init__(self, *names: str, rest: str = "", **settings: Any) -> None:
        self.mocks = {name: MockProvider(name) for name in names}
        self.local = LocalModels()
        self.rest = rest
        self.settings = {
            "privacy": "local",
            "patience": 5.0,
            "attempts": 1,
            "open_seconds": 5.0,
        } | settings
        self.options: dict[str, Any] = {}

    async def __aenter__(self) -> World:
        self._stack = AsyncExitStack()
        for mock in self.mocks.values():
            await self._stack.enter_async_context(mock)
        text = "".join(
            PROVIDER.format(name=name, url=mock.url, **self.settings)
            for name, mock in self.mocks.items()
        )
        if self.mocks and "[[tiers]]" not in self.rest:
            models = [f"{name}/m" for name in self.mocks]
            text += f'\n[[tiers]]\nname = "large"\nmodels = {models}\n'
        self.routing = routing_of(parse(text + self.rest))
        providers: dict[str, Provider] = {"local": LocalProvider(self.local)}
        for name in self.mocks:
            providers[name] = OpenAIProvider(name, self.routing.provider(name))
        self.router = Router(self.local, providers, self.routing, **self.options)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.router.stop()
        await self._stack.aclose()

    async def ask(self, request: ChatRequest, caller: Caller = ADA) -> RoutedDone:
        """Return the last event."""
        return last(await self.events(request, caller))

    async def events(self, request: ChatRequest, caller: Caller = ADA) -> list[RoutedEvent]:
        """Return all events."""
        return [event async for event in self.router.chat(request, caller)]


def ask(text: str = "hello", **fields: Any) -> ChatRequest:
    """Return a request of one message; not repeatable unless its temperature says so."""
    fields = {"temperature": 0.5} | fields
    return ChatRequest(messages=[Message(role="user", content=text)], **fields)


def last(events: list[RoutedEvent]) -> RoutedDone:
    """Return the end of an answer."""
    done = events[-1]
    assert isinstance(done, RoutedDone)
    return done


def text_of(events: list[RoutedEvent]) -> str:
    """Return the text that a reader who obeys `Failover` is left with."""
    text = ""
    for event in events:
        if isinstance(event, Failover):
            text = ""
        elif isinstance(event, TextDelta):
            text += event.text
    return text


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end, in a loop of its own."""
    return asyncio.run(work)
