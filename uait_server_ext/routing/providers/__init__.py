"""Where models run: this machine, any server that speaks the OpenAI protocol, LiteLLM as an extra.

A provider makes one call and tells what happened; retries, breakers, limits, time-outs and
failover are `channel.py` and `failover.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from uait_server_ext.inference.models import ChatEvent, ChatRequest
from uait_server_ext.routing.models import Caller, Target


class Provider(Protocol):
    """Makes calls of one provider's models."""

    def chat(
        self, target: Target, request: ChatRequest, caller: Caller
    ) -> AsyncGenerator[ChatEvent, None]:
        """Make one call: `TextDelta` as text comes, `ChatDone` last; closing it ends the call.

        Raises:
            InvalidInput: the target cannot serve this request, now or later.
            Busy: it has too much to do; `retry_after` where it says so.
            UpstreamRefused: it does not know us or the model: an administrator must mend that.
            Unavailable: it could not serve the call, and might the next.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
