"""Several answers to one request, made side by side and told as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from uait_server_ext.api.operation import invalid
from uait_server_ext.inference.models import Sampling

E = TypeVar("E")
R = TypeVar("R", bound=Sampling)
M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], fields: dict[str, Any]) -> M:
    """Build a request of ours from another's.

    Raises:
        InvalidInput: a value is beyond a bound of ours.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise invalid(error) from None


def repetitions(request: R, count: int) -> list[R]:
    """Return a request as often as it is to be answered, each with a seed of its own."""
    if request.seed is None:
        return [request] * count
    return [request.model_copy(update={"seed": request.seed + at}) for at in range(count)]


async def merged(
    streams: Sequence[AsyncGenerator[E, None]],
) -> AsyncGenerator[tuple[int, E], None]:
    """Yield the events of all streams as they come, each with the number of its stream.

    The first error ends all. Closing this iterator closes them.
    """
    waiting: asyncio.Queue[tuple[int, E | BaseException | None]] = asyncio.Queue()

    async def run(index: int, stream: AsyncGenerator[E, None]) -> None:
        try:
            async with aclosing(stream) as events:
                async for event in events:
                    waiting.put_nowait((index, event))
            waiting.put_nowait((index, None))
        except Exception as error:
            waiting.put_nowait((index, error))

    if len(streams) == 1:
        async with aclosing(streams[0]) as events:
            async for event in events:
                yield 0, event
        return
    tasks = [asyncio.ensure_future(run(at, stream)) for at, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            index, found = await waiting.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                left -= 1
            else:
                yield index, found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
