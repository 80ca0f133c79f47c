"""What people and sessions look like on the wire: the bodies and answers of their operations.

Bodies take no field that is not named here, so that nobody sets what they may not (`roles` in one's
own profile). Passwords and link secrets are `SecretStr`: no repr or log shows them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, SecretStr

from uait_server_ext.schema import Schema

Method = Literal["totp", "recovery", "passkey"]

# Generous bounds, so that a huge field is refused before anything looks at it; the rules proper are
# in `names.py` and `passwords.py`. A password has none here: too long a one is its own error.
Name = Annotated[str, Field(min_length=1, max_length=512)]
LinkSecret = Annotated[SecretStr, Field(min_length=1, max_length=200)]
Roles = Annotated[list[Annotated[str, Field(max_length=32)]], Field(max_length=16)]
Ids = Annotated[list[Annotated[str, Field(max_length=40)]], Field(max_length=10_000)]


class Body(Schema):
    """A request's body: fields that are not declared are refused."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


class PasswordLogin(Body):
    """The first step of a login."""

    username: Annotated[str, Field(max_length=1 << 20)]
    password: SecretStr


class Provider(Schema):
    """A provider of identities with which people can log in."""

    id: str
    name: str


class LoginMethods(Schema):
    """What the login page offers."""

    password: bool
    setup_needed: bool
    passkeys: bool
    providers: list[Provider]


class LoginState(Schema):
    """How far a login is.

    `second-factor`: one of `methods` must follow. `must_enrol`: logged in, and only the account
    operations work until a second factor is set up, because the person's role needs one.
    """

    state: Literal["logged-in", "second-factor"]
    methods: list[Method] = Field(default_factory=list)
    must_enrol: bool = False


class SetUp(Body):
    """The first person, who administers the server."""

    secret: LinkSecret
    username: Name
    password: SecretStr
    display_name: Name | None = None


class AcceptInvitation(SetUp):
    """A person who takes up an invitation."""


class ResetPassword(Body):
    """A new password by a one-time link."""

    secret: LinkSecret
    password: SecretStr


class Profile(Schema):
    """Oneself."""

    id: str
    username: str
    display_name: str
    email: str | None
    roles: list[str]
    groups: list[str]
    permissions: list[str]
    has_password: bool


class ProfileChange(Body):
    """What one may change about oneself."""

    display_name: Name


class PasswordChange(Body):
    """A new password, and the one that it replaces."""

    current: SecretStr
    new: SecretStr


class Reauthenticate(Body):
    """A fresh proof: the password, or a code of the authenticator app."""

    password: SecretStr | None = None
    code: Annotated[SecretStr, Field(max_length=64)] | None = None


class SessionInfo(Schema):
    """One of a person's logins in a browser."""

    id: str
    current: bool
    factors: list[str]
    pending: bool
    created_at: float
    last_seen_at: float
    expires_at: float
    address: str
    user_agent: str


class SessionList(Schema):
    """A person's sessions, the one last seen first."""

    sessions: list[SessionInfo]


class UserInfo(Schema):
    """A person, as those who manage people see them."""

    id: str
    username: str
    display_name: str
    email: str | None
    roles: list[str] = Field(description="Granted to the person; those of groups are apart.")
    groups: list[str]
    disabled: bool
    has_password: bool
    created_at: float


class UserList(Schema):
    """People by name."""

    users: list[UserInfo]
    total: int


class Invite(Body):
    """An invitation: whoever has the link becomes a user with this role."""

    role: Annotated[str, Field(max_length=32)] = "viewer"


class UserChange(Body):
    """What changes about a person; what is left out stays."""

    display_name: Name | None = None
    roles: Roles | None = None
    disabled: bool | None = None


class OneTimeLink(Schema):
    """A link to hand to one person, shown this once."""

    url: str
    expires_at: float


class RoleInfo(Schema):
    """A role and what it may do."""

    name: str
    permissions: list[str]


class RoleList(Schema):
    """All roles."""

    roles: list[RoleInfo]


class GroupInfo(Schema):
    """A group: its members have its roles besides their own."""

    name: str
    roles: list[str]
    members: list[str]


class GroupList(Schema):
    """All groups by name."""

    groups: list[GroupInfo]


class GroupChange(Body):
    """What a group is from now on."""

    roles: Roles = Field(default_factory=list)
    members: Ids = Field(default_factory=list)
