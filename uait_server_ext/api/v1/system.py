"""Operations on the server itself: probes and its own description."""

from __future__ import annotations

from typing import Any, Literal

from uait_server_ext._version import __version__
from uait_server_ext.api.operation import PUBLIC, Call, operation
from uait_server_ext.schema import Schema
from uait_server_ext.services import ServiceState


class Live(Schema):
    """The process answers."""

    live: Literal[True] = True


class Health(Schema):
    """Whether the server can do its work, and the state of each part."""

    live: Literal[True] = True
    ready: bool
    version: str
    services: list[ServiceState]


@operation("GET", "/health/live", permission=PUBLIC, rate="probe")
async def health_live(call: Call) -> Live:
    """Tell that the process answers; for probes, tells nothing else."""
    return Live()


@operation("GET", "/health", permission="system:read", rate="probe")
async def health(call: Call) -> Health:
    """Tell whether the server is ready, and the state of each service."""
    states = call.services.states()
    return Health(
        # A model that is being loaded takes requests: they wait for it.
        ready=call.services.built and all(state.state != "failed" for state in states),
        version=__version__,
        services=states,
    )


@operation("GET", "/openapi.json", permission="system:read", rate="read")
async def openapi(call: Call) -> dict[str, Any]:
    """Describe this API as OpenAPI 3.1."""
    from uait_server_ext.api.openai import operations as openai_operations
    from uait_server_ext.api.openapi import document
    from uait_server_ext.api.v1 import operations

    everything = [*operations(), *openai_operations()]
    return document(everything, version=__version__, base_url=call.services.base_url)
