"""An audit event, cleaned of what could forge a line of a log, and its place in the chain."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from uait_server_ext.schema import Schema

Outcome = Literal["ok", "refused", "failed"]

MAX_PRINCIPAL, MAX_KIND, MAX_ADDRESS, MAX_TARGET = 120, 16, 64, 200
MAX_DETAIL_TEXT, MAX_DETAILS = 500, 20
CUT = "…"
START = "0" * 64
"""What the first event is chained to."""


def clean(text: str, limit: int) -> str:
    """Escape what does not print (control characters, line ends, lone surrogates) and cut."""
    cut = text[:limit]
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut
    )
    if len(escaped) > limit or len(text) > limit:
        return escaped[: limit - 1] + CUT
    return escaped


def cleaned(limit: int) -> BeforeValidator:
    """Clean a field's text on the way in."""
    return BeforeValidator(lambda value: clean(value, limit) if isinstance(value, str) else value)


def clean_detail(value: Any) -> Any:
    """Clean the texts of a detail; more entries than the limit are cut."""
    if not isinstance(value, dict):
        return value
    return {
        clean(str(name), 64): clean(item, MAX_DETAIL_TEXT) if isinstance(item, str) else item
        for name, item in list(value.items())[:MAX_DETAILS]
    }


class AuditEvent(Schema):
    """What happened, to be appended. Texts of others are cut and escaped, never refused."""

    model_config = ConfigDict(frozen=True)

    action: str = Field(pattern=r"^[a-z0-9]+([.-][a-z0-9]+)*$", max_length=64)
    outcome: Outcome
    principal: Annotated[str | None, cleaned(MAX_PRINCIPAL)] = None
    kind: Annotated[str | None, cleaned(MAX_KIND)] = None
    address: Annotated[str | None, cleaned(MAX_ADDRESS)] = None
    target: Annotated[str | None, cleaned(MAX_TARGET)] = None
    detail: Annotated[Mapping[str, bool | int | str], BeforeValidator(clean_detail)] = {}


class AuditRecord(AuditEvent):
    """An event as it stands in the log."""

    sequence: int
    at: float = Field(description="Seconds since the epoch (UTC).")
    seal_revision: int = Field(description="Revision of the sealed values at this moment.")
    chain: str = Field(description="HMAC-SHA256 over this event and the chain of the one before.")


def canonical(detail: Mapping[str, bool | int | str]) -> str:
    """Return the one way a detail is written."""
    return json.dumps(dict(detail), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


FIELDS = (
    "sequence",
    "at",
    "action",
    "outcome",
    "principal",
    "kind",
    "address",
    "target",
    "detail",
    "seal_revision",
)
"""What a link of the chain covers, in this order; `detail` as canonical JSON text."""


def link(key: bytes, previous: str, row: tuple[Any, ...]) -> str:
    """Return the chain value of a row (its `FIELDS`) that follows `previous`."""
    text = json.dumps([previous, *row], separators=(",", ":"), ensure_ascii=True)
    return hmac.digest(key, text.encode("ascii"), "sha256").hex()
