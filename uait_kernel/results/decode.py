"""From the server's JSON to objects: unknown fields are ignored, missing ones are told plainly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from uait_kernel.errors import UnexpectedAnswer


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """Turn a failure to read an answer into an error about it.

    Raises:
        UnexpectedAnswer: something that this package needs is not there.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnexpectedAnswer(
            f"The server's {what} is not as this package expects it ({type(error).__name__}: "
            f"{error}). Is the server of the same version as this package?"
        ) from error


def known(kind: type[Any], data: dict[str, Any]) -> dict[str, Any]:
    """Return those members of data that are fields of a dataclass."""
    return {field.name: data[field.name] for field in fields(kind) if field.name in data}
