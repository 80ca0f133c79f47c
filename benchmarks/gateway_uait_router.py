"""UAIT's router in a process of its own: CPU of import and of calls. Run by `gateway.py`.

The whole router as a server has it: policy, budgets in SQLite, breaker, single flight.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

FILE = """
[providers.mock]
url = "http://127.0.0.1:{port}/v1"
privacy = "local"
[providers.mock.models.small]
[providers.mock.models.large]
price = {{ input = 1.0, output = 4.0 }}
[[tiers]]
name = "small"
models = ["mock/small"]
[[tiers]]
name = "large"
models = ["mock/large"]
[failover]
local = false
"""
QUESTION = "How long is the coast of Norway?"


async def main() -> None:
    """Measure and print."""
    port, calls = int(sys.argv[1]), int(sys.argv[2])
    began = time.process_time()
    import uait_server_ext.routing.service  # noqa: F401

    imported = time.process_time() - began
    with tempfile.TemporaryDirectory() as folder:
        figures = await measured(port, calls, Path(folder))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"import_cpu": imported} | figures | {"memory": memory}))


async def measured(port: int, calls: int, folder: Path) -> dict[str, float]:
    """Return the CPU seconds of a call, by how it is answered."""
    from uait_server_ext.inference.models import (
        ChatDone,
        ChatEvent,
        ChatRequest,
        Message,
        TextDelta,
        Usage,
    )
    from uait_server_ext.routing.assembly import assemble
    from uait_server_ext.routing.config import parse, routing_of
    from uait_server_ext.routing.models import Caller, Target
    from uait_server_ext.services import Settings, open_foundation

    class InProcess:
        """A provider whose answer is there at once."""

        async def chat(
            self, target: Target, request: ChatRequest, caller: Caller
        ) -> AsyncGenerator[ChatEvent, None]:
            yield TextDelta(text="It is long.")
            yield ChatDone(
                text="It is long.",
                model=target.id,
                backend="made",
                finish_reason="stop",
                usage=Usage(prompt_tokens=10, completion_tokens=3),
                first_token_seconds=0.0,
                seconds=0.0,
            )

        async def close(self) -> None:
            pass

    foundation = open_foundation(Settings(data_dir=folder, model_cache=folder, root_dir=folder))
    nothing: Any = None
    parts = await assemble(
        routing_of(parse(FILE.format(port=port))),
        local=nothing,
        embedder=nothing,
        database=foundation.database,
        audit=foundation.audit,
        lease=nothing,
        use=nothing,
        answers=folder / "answers.db",
        log=logging.getLogger(),
    )
    router = parts.router
    over_http = router._providers["mock"]
    caller = Caller("user_benchmark")
    request = ChatRequest(messages=[Message(role="user", content=QUESTION)])

    async def cpu(temperature: float) -> float:
        asked = request.model_copy(update={"temperature": temperature})

        async def once() -> None:
            async for _ in router.chat(asked, caller):
                pass

        for _ in range(calls // 5):
            await once()
        began = time.process_time()
        for _ in range(calls):
            await once()
        return (time.process_time() - began) / calls

    router._providers["mock"] = InProcess()
    found = {"in_process_cpu": await cpu(0.5)}
    found["in_process_repeatable_cpu"] = await cpu(0.0)
    router._providers["mock"] = over_http
    router._channels.clear()
    found["http_cpu"] = await cpu(0.5)
    found["http_stream_cpu"] = found["http_cpu"]  # an answer is always streamed here
    await parts.stop()
    foundation.close()
    return found


asyncio.run(main())
