"""For `load.py`: how late the server's event loop is, told by the server itself.

A task asks to be woken every 5 ms and notes how much later it was: `late`. Each step of the loop
notes the processor time that it took: `steps`, which other programs on the machine do not change.
`GET /lag` returns what was noted since the last time, in seconds.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web

TICK_SECONDS = 0.005
NOTED_SECONDS = 0.0005  # a shorter step keeps nobody waiting
late: list[float] = []
steps: list[float] = []


def watch_steps() -> None:
    """Note the processor time of each step of the loop."""
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        spent = time.thread_time() - began
        if spent > NOTED_SECONDS:
            steps.append(spent)

    asyncio.Handle._run = timed  # type: ignore[method-assign, assignment]


async def watch() -> None:
    """Note how late each tick is."""
    while True:
        due = time.perf_counter() + TICK_SECONDS
        await asyncio.sleep(TICK_SECONDS)
        late.append(max(0.0, time.perf_counter() - due))


class LagHandler(APIHandler):
    """Tell and forget what was noted."""

    auth_resource = "lag"

    @web.authenticated
    @authorized
    async def get(self) -> None:
        noted = json.dumps({"late": late, "steps": steps})
        late.clear()
        steps.clear()
        self.finish(noted)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "lag_extension"}]


def _load_jupyter_server_extension(serverapp: Any) -> None:
    serverapp.web_app.add_handlers(".*$", [(f"{serverapp.base_url}lag", LagHandler)])
    watch_steps()
    serverapp.lag_watcher = asyncio.ensure_future(watch())
