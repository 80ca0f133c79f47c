"""Operations on models: what there is, and completions."""

from __future__ import annotations

from collections.abc import AsyncIterator

from uait_server_ext.api.operation import Call, operation
from uait_server_ext.inference.models import ChatEvent, ChatRequest, ModelInfo
from uait_server_ext.schema import Schema


class ModelList(Schema):
    """The catalogue as it stands on this machine."""

    models: list[ModelInfo]


@operation("GET", "/models", permission="models:read", rate="read")
async def list_models(call: Call) -> ModelList:
    """List the models of the catalogue with their state on this machine."""
    inference = await call.services.inference()
    return ModelList(models=await inference.models())


@operation("POST", "/chat", permission="models:run", rate="inference")
async def chat(call: Call, body: ChatRequest) -> AsyncIterator[ChatEvent]:
    """Stream a completion. Disconnecting cancels it."""
    inference = await call.services.inference()
    async for event in inference.chat(body):
        yield event
