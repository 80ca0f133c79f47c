"""Operations that change which models are here: pull, import, remove, load, unload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from uait_server_ext.api.operation import Call, operation
from uait_server_ext.errors import PermissionDenied
from uait_server_ext.inference.models import PullProgress
from uait_server_ext.paths import named_path
from uait_server_ext.schema import Schema

ModelKey = Annotated[
    str, Field(min_length=1, max_length=150, description="A model's id; of an adapter `base+name`.")
]


class ImportRequest(Schema):
    """A model folder or a GGUF file on the server's disk, and what to call it."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(
        min_length=1,
        max_length=4000,
        description="Within the server's root or `UaitApp.knowledge_roots`.",
    )
    id: str | None = Field(
        None, pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$", description="None: made of the path's name."
    )
    licence: str | None = Field(None, max_length=100, description="None: as its files say.")
    description: str | None = Field(None, max_length=300)
    context_tokens: int | None = Field(None, ge=1, le=10_000_000)


class Removed(Schema):
    """What removing a model has freed."""

    freed_bytes: int


@operation("POST", "/models/{model}/pull", permission="models:manage", rate="ingest")
async def pull_model(call: Call, model: ModelKey) -> AsyncIterator[PullProgress]:
    """Fetch a model's files and verify them. Disconnecting breaks it off.

    What has come of a hub model is kept, and the next pull goes on there.
    """
    from uait_server_ext.inference.progress import follow

    inference = await call.services.inference()
    inference.library.catalogue.get(model)
    async with aclosing(follow(lambda tell: inference.pull(model, tell))) as events:  # type: ignore[type-var]
        async for event in events:
            yield event


@operation("POST", "/models/import", permission="models:manage", rate="ingest")
async def import_model(call: Call, body: ImportRequest) -> AsyncIterator[PullProgress]:
    """Copy a model folder (safetensors) or a GGUF file of the server into its catalogue."""
    from uait_server_ext.inference.library import Wanted
    from uait_server_ext.inference.progress import follow

    inference = await call.services.inference()
    settings = call.services.settings
    roots = (settings.root_dir, *settings.knowledge_roots)
    path = await asyncio.to_thread(path_within, body.path, roots)
    wanted = Wanted(path, body.id, body.licence, body.description, body.context_tokens)
    async with aclosing(follow(lambda tell: inference.import_model(wanted, tell))) as events:  # type: ignore[type-var]
        async for event in events:
            yield event


@operation("DELETE", "/models/{model}", permission="models:manage", rate="write")
async def remove_model(call: Call, model: ModelKey) -> Removed:
    """Delete the files of a model or adapter; refused while the model is loaded."""
    inference = await call.services.inference()
    return Removed(freed_bytes=await inference.remove(model))


@operation("POST", "/models/{model}/load", permission="models:manage", rate="inference")
async def load_model(call: Call, model: ModelKey) -> None:
    """Load a model now rather than with its first request."""
    inference = await call.services.inference()
    await inference.load(model)


@operation("POST", "/models/{model}/unload", permission="models:manage", rate="write")
async def unload_model(call: Call, model: ModelKey) -> None:
    """Give a model's memory back when its requests under way have ended."""
    inference = await call.services.inference()
    await inference.unload(model)


def path_within(named: str, roots: Sequence[Path]) -> Path:
    """Return the path that is meant; a relative one is within the first of the roots.

    Raises:
        InvalidInput: nothing can be there.
        PermissionDenied: it is outside of the folders that callers may name.
    """
    path = named_path(named, roots[0])
    if not any(path.is_relative_to(root.resolve()) for root in roots):
        raise PermissionDenied(
            f"{named} is outside of the folders from which this server takes files. Move it, add "
            "its folder to UaitApp.knowledge_roots, or run `uait models import` on the server."
        )
    return path
