"""LiteLLM's Router in a process of its own: CPU of import and of calls. Run by `gateway.py`."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from typing import Any

MESSAGES = [{"role": "user", "content": "How long is the coast of Norway?"}]


async def measure(router: Any, calls: int, **options: Any) -> float:
    """Return the CPU seconds of a call."""

    async def once() -> None:
        answer = await router.acompletion(
            model="m", messages=MESSAGES, temperature=0.5, max_tokens=256, **options
        )
        if options.get("stream"):
            async for _ in answer:
                pass

    for _ in range(calls // 5):
        await once()
    began = time.process_time()
    for _ in range(calls):
        await once()
    return (time.process_time() - began) / calls


async def main() -> None:
    """Measure and print."""
    port, calls = int(sys.argv[1]), int(sys.argv[2])
    began = time.process_time()
    import litellm

    imported = time.process_time() - began
    litellm.telemetry = False
    parameters = {
        "model": "openai/m",
        "api_base": f"http://127.0.0.1:{port}/v1",
        "api_key": "none",
    }
    router = litellm.Router(model_list=[{"model_name": "m", "litellm_params": parameters}])
    figures = {
        "import_cpu": imported,
        "in_process_cpu": await measure(router, calls, mock_response="It is long."),
        "http_cpu": await measure(router, calls),
        "http_stream_cpu": await measure(router, calls, stream=True),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(figures))


asyncio.run(main())
