"""Version 1 of the HTTP API: one module a domain; an operation is in by being declared there."""

from __future__ import annotations

from uait_server_ext.api.operation import Operation

from . import (
    account,
    assist,
    audit,
    budgets,
    factors,
    kernels,
    knowledge,
    library,
    login,
    models,
    oidc,
    system,
    tokens,
    tuning,
    users,
    vault,
)


def operations() -> list[Operation]:
    """Return every operation of version 1, in the order of their declaration."""
    return [
        declared
        for module in (
            system,
            models,
            assist,
            library,
            budgets,
            tuning,
            knowledge,
            login,
            oidc,
            account,
            factors,
            tokens,
            users,
            kernels,
            vault,
            audit,
        )
        for declared in vars(module).values()
        if isinstance(declared, Operation)
    ]
