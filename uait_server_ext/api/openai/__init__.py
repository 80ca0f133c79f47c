"""OpenAI's wire format under `/uait/openai/v1`, for clients that speak it.

The operations are declared as all others are, so permissions, rates and audit are the same; only
the form of errors and streams differs (`handler.py`). What would change an answer and cannot be
done is refused; what changes nothing (`user`, `metadata`) is accepted.
"""

from __future__ import annotations

from uait_server_ext.api.operation import Operation

from . import catalogue, chat, completions, responses, vectors


def operations() -> list[Operation]:
    """Return every operation of the format, in the order of their declaration."""
    return [
        declared
        for module in (catalogue, chat, completions, responses, vectors)
        for declared in vars(module).values()
        if isinstance(declared, Operation)
    ]
