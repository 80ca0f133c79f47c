"""Controls, findings, and how a list of controls becomes a report."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

if TYPE_CHECKING:
    from pathlib import Path

    from uait_server_ext.identity.service import Identity
    from uait_server_ext.services import Foundation

    from .live import Running

Outcome = Literal["pass", "fail", "accepted", "not applicable"]


class Finding(BaseModel):
    """What was found about one control, just now."""

    control: str
    outcome: Outcome
    how: str
    found: str


class SecurityReport(BaseModel):
    """The findings of one run."""

    server: str | None
    findings: list[Finding]

    @property
    def failed(self) -> list[Finding]:
        """Return what does not hold."""
        return [finding for finding in self.findings if finding.outcome == "fail"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined: the state, and the server that runs on it."""

    state: Path
    foundation: Foundation
    identity: Identity
    server: Running | None


class NotApplicable(Exception):
    """The control has no meaning here; the text says why."""


Judgement = tuple[bool, str]
Check = Callable[[Subject], Judgement | Awaitable[Judgement]]


@dataclass(frozen=True, slots=True)
class Control:
    """One control: its name, how it is checked, and the function that does it."""

    name: str
    how: str
    check: Check


async def examine(
    subject: Subject, controls: Sequence[Control], accepted: Collection[str] = ()
) -> SecurityReport:
    """Check every control; one that cannot be checked has failed.

    Args:
        accepted: names of controls whose failure was decided to be borne here.

    Raises:
        ValueError: an accepted control does not exist.
    """
    if unknown := set(accepted) - {control.name for control in controls}:
        raise ValueError(f"there is no control {', '.join(sorted(unknown))}")
    findings = []
    for control in controls:
        outcome: Outcome
        try:
            judged = control.check(subject)
            holds, found = await judged if inspect.isawaitable(judged) else judged
            outcome = "pass" if holds else "fail"
        except NotApplicable as reason:
            outcome, found = "not applicable", str(reason)
        except Exception as error:
            # The report is an edge: what breaks a check must be listed, not hide the others.
            outcome, found = "fail", f"could not be checked: {type(error).__name__}: {error}"[:300]
        if outcome == "fail" and control.name in accepted:
            outcome = "accepted"
        findings.append(
            Finding(control=control.name, outcome=outcome, how=control.how, found=found)
        )
    return SecurityReport(server=subject.server.url if subject.server else None, findings=findings)
