"""Models through LiteLLM (the extra `litellm`), for providers that speak a protocol of their own.

It costs seconds and some 180 MB to import, so that happens at the first call, in a thread.
LiteLLM's own retries, fallbacks and caches stay off: they are the router's.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import time
from collections.abc import AsyncGenerator
from typing import Any

from uait_server_ext.errors import (
    Busy,
    ContextTooLong,
    DependencyMissing,
    InvalidInput,
    UpstreamFailed,
    UpstreamRefused,
)
from uait_server_ext.inference.models import ChatDone, ChatEvent, ChatRequest
from uait_server_ext.routing.models import Caller, Target

from .keys import LeasedKey
from .openai_wire import Answer, body_of, plain

REFUSED = ("AuthenticationError", "PermissionDeniedError", "NotFoundError")
INVALID = ("BadRequestError", "UnprocessableEntityError", "UnsupportedParamsError")


class LiteLLMProvider:
    """Calls through LiteLLM; a target's name is LiteLLM's name of the model."""

    def __init__(self, name: str, key: LeasedKey | None = None) -> None:
        """Raise `DependencyMissing` where LiteLLM is not installed."""
        if importlib.util.find_spec("litellm") is None:
            raise DependencyMissing(
                f"The provider {name} is of kind `litellm`, which is not installed. Run "
                "`pip install 'uait[litellm]'`."
            )
        self._key = key

    async def chat(
        self, target: Target, request: ChatRequest, caller: Caller
    ) -> AsyncGenerator[ChatEvent, None]:
        """Make one call; see `Provider.chat`."""
        litellm = await asyncio.to_thread(load)
        began = time.monotonic()
        first: float | None = None
        answer = Answer(target.id, request)
        arguments = json.loads(body_of(request, target.name))
        if self._key is not None:
            arguments["api_key"] = (await self._key.value()).get_secret_value()
        try:
            stream = await litellm.acompletion(**arguments, num_retries=0, max_retries=0)
            try:
                async for piece in stream:
                    for delta in answer.take(piece.model_dump_json()):
                        first = first if first is not None else time.monotonic() - began
                        yield delta
            finally:
                if hasattr(stream, "aclose"):
                    await stream.aclose()
        except litellm.exceptions.APIError as error:
            raise UpstreamFailed(f"{target.id} failed: {type(error).__name__}.") from None
        except litellm.openai.OpenAIError as error:  # the base of all of LiteLLM's
            raise told(target.id, error) from None
        answer.check()
        seconds = time.monotonic() - began
        yield ChatDone(
            text="".join(answer.text),
            model=target.id,
            backend="litellm",
            finish_reason=answer.finish_reason or "stop",
            usage=answer.counted(),
            tool_calls=answer.tool_calls(),
            first_token_seconds=first if first is not None else seconds,
            seconds=seconds,
        )

    async def close(self) -> None:
        """Do nothing: LiteLLM keeps its connections to itself."""


def load() -> Any:
    """Import LiteLLM without its look at the network for prices."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm: Any = importlib.import_module("litellm")
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    return litellm


def told(who: str, error: Exception) -> Exception:
    """Return our error for one of LiteLLM's; only what it says of the request is repeated."""
    kind = type(error).__name__
    if kind == "RateLimitError":
        return Busy(f"{who} has too much to do. Try again in a moment.", retry_after=1)
    if kind == "ContextWindowExceededError":
        return ContextTooLong(f"{who} cannot take so much. Send less.")
    if kind in REFUSED:
        return UpstreamRefused(
            f"{who} does not let us in ({kind}). An administrator can check its key and name."
        )
    if kind in INVALID:
        return InvalidInput(f"{who} does not take this request: {plain(error)}")
    return UpstreamFailed(f"{who} failed ({kind}). Try again later.")
