"""Operations on the audit log: query, export, verify."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from uait_server_ext.api.operation import Call, operation
from uait_server_ext.events.models import MAX_PAGE, AuditPage, AuditQuery, AuditReport
from uait_server_ext.events.record import Outcome

MAX_EXPORT_LINES = 10_000
MAX_SEQUENCE = 2**53
LATEST_TIME = 1e12

Time = Annotated[float | None, Field(ge=0, le=LATEST_TIME, allow_inf_nan=False)]


@operation("GET", "/audit", permission="audit:read", rate="read")
async def query_audit(
    call: Call,
    action: Annotated[
        str | None, Field(max_length=64, description="`login.totp`, or `login.` for all logins.")
    ] = None,
    principal: Annotated[str | None, Field(max_length=120)] = None,
    outcome: Outcome | None = None,
    target: Annotated[str | None, Field(max_length=200)] = None,
    since: Time = None,
    until: Time = None,
    before: Annotated[
        int | None, Field(ge=1, le=MAX_SEQUENCE, description="`next` of the page before.")
    ] = None,
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 100,
) -> AuditPage:
    """List security events, newest first."""
    foundation = await call.services.foundation()
    return await foundation.audit.query(
        AuditQuery(
            action=action,
            principal=principal,
            outcome=outcome,
            target=target,
            since=since,
            until=until,
            before=before,
            limit=limit,
        )
    )


@operation(
    "GET",
    "/audit/export",
    permission="audit:read",
    rate="read",
    content_type="application/jsonl",
)
async def export_audit(
    call: Call,
    after: Annotated[int, Field(ge=0, le=MAX_SEQUENCE)] = 0,
    limit: Annotated[int, Field(ge=1, le=MAX_EXPORT_LINES)] = MAX_EXPORT_LINES,
) -> str:
    """Export events as JSON lines, oldest first; go on with `after` the last line's sequence."""
    foundation = await call.services.foundation()
    lines: list[str] = []
    async for line in foundation.audit.export(after=after, limit=limit):
        lines.append(line)
    return "".join(lines)


@operation("GET", "/audit/verify", permission="audit:read", rate="write")
async def verify_audit(call: Call) -> AuditReport:
    """Check that no event was changed, removed or cut off."""
    foundation = await call.services.foundation()
    return await foundation.audit.verify()
