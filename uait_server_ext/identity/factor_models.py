"""What second factors look like, in the domain and on the wire. Light: imports no database."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TotpDevice:
    """An authenticator app that was confirmed."""

    id: str
    name: str
    created_at: float


@dataclass(frozen=True, slots=True)
class TotpEnrolment:
    """A device that waits for its first code; shown once, never again."""

    id: str
    secret: str = field(repr=False)
    uri: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Passkey:
    """A passkey of a user."""

    id: str
    name: str
    created_at: float
    last_used_at: float | None


@dataclass(frozen=True, slots=True)
class FactorOverview:
    """What a person has enrolled.

    Attributes:
        required: a role of the person makes a second factor necessary.
    """

    totp: list[TotpDevice]
    passkeys: list[Passkey]
    recovery_codes_left: int
    required: bool
