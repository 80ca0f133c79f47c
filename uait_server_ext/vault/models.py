"""What the vault takes and gives. A value is in no list, no representation and no log."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, SecretStr, model_validator

from uait_server_ext.schema import Schema

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
REFERENCE_PATTERN = r"^[a-z0-9-]{1,32}:[A-Za-z0-9._/-]{1,300}#[A-Za-z0-9._-]{1,100}$"
ID_PREFIX = "sec"
SHARED = "*"
"""The owner of what everybody with the permission may use."""

MAX_VALUE_CHARACTERS = 65_536
MAX_LEASE_SECONDS = 7 * 86_400


def not_an_id(name: str) -> str:
    """Refuse a name that reads like another secret's id."""
    if name.startswith(f"{ID_PREFIX}_"):
        raise ValueError(f"a name does not begin with {ID_PREFIX}_: so do ids")
    return name


def bounded(value: SecretStr) -> SecretStr:
    """Refuse an empty, an overlong and an unstorable value, without naming it."""
    text = value.get_secret_value()
    if not 0 < len(text) <= MAX_VALUE_CHARACTERS:
        raise ValueError(f"a value has 1 to {MAX_VALUE_CHARACTERS} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a value is valid Unicode text") from None
    return value


SecretName = Annotated[
    str,
    Field(pattern=NAME_PATTERN, description="Letters, digits, `.`, `_`, `-`."),
    AfterValidator(not_an_id),
]
Value = Annotated[SecretStr, AfterValidator(bounded)]
Reference = Annotated[
    str,
    Field(
        pattern=REFERENCE_PATTERN,
        description="Where the value is in another vault: `openbao:mount/path#field`.",
    ),
]


class SecretContent(Schema):
    """A value to be sealed here, or the place of one that stays in another vault."""

    model_config = ConfigDict(extra="forbid")

    value: Value | None = None
    reference: Reference | None = None

    @model_validator(mode="after")
    def one_of_two(self) -> SecretContent:
        """Refuse both and neither."""
        if (self.value is None) == (self.reference is None):
            raise ValueError("give either a value or a reference")
        return self


class NewSecret(SecretContent):
    """A secret to be created."""

    name: SecretName
    description: str = Field("", max_length=200)
    shared: bool = Field(False, description="For all who may use secrets, not only for you.")


class SecretInfo(Schema):
    """A secret, without its value."""

    id: str
    name: str
    description: str
    shared: bool
    reference: str | None
    version: int = Field(description="The current version.")
    created_at: float = Field(description="Seconds since the epoch (UTC).")
    updated_at: float = Field(description="Seconds since the epoch (UTC).")


class VersionInfo(Schema):
    """One version of a secret, without its value."""

    version: int
    created_at: float = Field(description="Seconds since the epoch (UTC).")
    created_by: str
    destroyed_at: float | None = Field(None, description="Seconds since the epoch (UTC).")


class SecretDetail(SecretInfo):
    """A secret with its versions, newest first."""

    versions: list[VersionInfo]


class SecretList(Schema):
    """The caller's secrets and the shared ones, by name."""

    secrets: list[SecretInfo]


class Revealed(Schema):
    """A secret's value, which its reader asked for."""

    id: str
    version: int
    value: str = Field(repr=False)


class LeaseRequest(Schema):
    """What a lease is wanted for."""

    model_config = ConfigDict(extra="forbid")

    secret: str = Field(max_length=100, description="A secret's id or name.")
    purpose: str = Field(min_length=1, max_length=200, description="For the audit log.")
    seconds: int = Field(900, ge=1, le=MAX_LEASE_SECONDS)
    max_uses: int | None = Field(None, ge=1, le=1_000_000)


class Lease(Schema):
    """The right of server code to use a secret for a while; its holder does not see the value."""

    id: str
    secret: str = Field(description="The secret's id.")
    purpose: str
    created_at: float = Field(description="Seconds since the epoch (UTC).")
    expires_at: float = Field(description="Seconds since the epoch (UTC).")
    revoked_at: float | None = Field(None, description="Seconds since the epoch (UTC).")
    uses: int = 0
    max_uses: int | None = None


class LeaseList(Schema):
    """The caller's leases, newest first."""

    leases: list[Lease]
