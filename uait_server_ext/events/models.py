"""What is asked of the audit log and what it answers; light enough for the API to import."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from uait_server_ext.schema import Schema

from .record import AuditRecord, Outcome

MAX_PAGE = 500

Break = Literal["edited", "deleted", "tail-cut", "anchor-missing", "anchor-forged", "rolled-back"]


class AuditQuery(Schema):
    """Which events; all of what is given must fit. Newest first."""

    action: str | None = Field(None, max_length=64, description="`login.totp`; `login.` for all.")
    principal: str | None = Field(None, max_length=120)
    outcome: Outcome | None = None
    target: str | None = Field(None, max_length=200)
    since: float | None = Field(None, description="Seconds since the epoch, inclusive.")
    until: float | None = Field(None, description="Seconds since the epoch, exclusive.")
    before: int | None = Field(None, ge=1, description="Only sequences below: `next` of a page.")
    limit: int = Field(100, ge=1, le=MAX_PAGE)


class AuditPage(Schema):
    """Some events, newest first."""

    events: list[AuditRecord]
    next: int | None = Field(None, description="`before` of the next page; none: this is the last.")


class AuditReport(Schema):
    """Whether the log is what was written."""

    intact: bool
    checked: int
    head: str = Field(description="Chain value of the newest event; note it elsewhere.")
    kind: Break | None = None
    sequence: int | None = Field(None, description="The first event that does not hold.")
    detail: str
