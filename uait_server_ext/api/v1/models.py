"""Operations on models: what there is, and completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from uait_server_ext.api.callers import caller_of
from uait_server_ext.api.operation import Call, operation
from uait_server_ext.inference.models import ChatRequest, ModelInfo
from uait_server_ext.routing.models import RoutedEvent
from uait_server_ext.schema import Schema


class ModelList(Schema):
    """The catalogue as it stands on this machine, and the remote models of the routing file."""

    models: list[ModelInfo]


@operation("GET", "/models", permission="models:read", rate="read", tool=True)
async def list_models(call: Call) -> ModelList:
    """List the models of this machine with their state, and those of remote providers."""
    inference = await call.services.inference()
    router = await call.services.router()
    return ModelList(models=[*await inference.models(), *await router.models()])


@operation("POST", "/chat", permission="models:run", rate="inference")
async def chat(call: Call, body: ChatRequest) -> AsyncIterator[RoutedEvent]:
    """Stream a completion. Disconnecting cancels it.

    A `failover` event says that a model broke off: the text before it is void, and another model
    begins anew. The last event holds the decision: who answered, why, and at what cost.
    """
    router = await call.services.router()
    async with aclosing(router.chat(body, caller_of(call))) as events:
        async for event in events:
            yield event
