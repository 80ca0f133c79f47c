"""`GET /models` of OpenAI's wire format."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from uait_server_ext.api.operation import Call, operation
from uait_server_ext.errors import ModelNotFound
from uait_server_ext.inference.models import ModelInfo

from .errors import OPENAI
from .wire import Whole, Wire


class ModelEntry(Wire):
    """A model; `kind` and `context_window` are additions to OpenAI's format."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(0, description="Not known here.")
    owned_by: str
    kind: str
    context_window: int


class ModelPage(Whole):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


@operation("GET", "/models", permission="models:read", rate="read", prefix=OPENAI)
async def openai_models(call: Call) -> ModelPage:
    """List the models in OpenAI's format."""
    return ModelPage(data=[entry_of(info) for info in await known(call)])


@operation("GET", "/models/{model}", permission="models:read", rate="read", prefix=OPENAI)
async def openai_model(call: Call, model: str) -> ModelEntry:
    """Return one model in OpenAI's format."""
    models = await known(call)
    for info in models:
        if info.id == model:
            return entry_of(info)
    names = ", ".join(info.id for info in models)
    raise ModelNotFound(f"There is no model {model[:100]!r}. There are: {names}.")


async def known(call: Call) -> list[ModelInfo]:
    """Return the models of this machine and those of remote providers."""
    inference = await call.services.inference()
    router = await call.services.router()
    return [*await inference.models(), *await router.models()]


def entry_of(info: ModelInfo) -> ModelEntry:
    """Return a model in OpenAI's form."""
    return ModelEntry(
        id=info.id,
        owned_by=info.source.partition(":")[2].partition("==")[0] or "uait",
        kind=info.kind,
        context_window=info.context_tokens,
    )
