"""What tokens, device logins and API keys look like on the wire."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from uait_server_ext.schema import Schema

from .models import Body
from .principal import PERMISSIONS

DEVICE_SECONDS = 600
DEVICE_INTERVAL_SECONDS = 5
DEFAULT_KEY_DAYS = 90
MAX_KEY_DAYS = 365
ROUTE = re.compile(
    r"(\*|GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) "
    r"((?:/(?:[A-Za-z0-9._~-]+|\*|\{[a-z_]+\}))+(?:/\*\*)?|/\*\*|/)",
    re.ASCII,
)


class TokenAnswer(Schema):
    """An access token and the refresh token that brings the next (RFC 6749 section 5.1)."""

    access_token: str = Field(repr=False)
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - the name of a type
    expires_in: int = Field(description="Seconds that the access token lives.")
    refresh_token: str = Field(repr=False, description="Can be used once; the answer has the next.")
    scope: str = Field(description="Permissions, separated by spaces.")


class LoggedInClient(Schema):
    """A client that was logged in by the device flow; one family of refresh tokens."""

    id: str
    client: str
    scope: list[str]
    created_at: float = Field(description="Seconds since the epoch.")
    last_used_at: float
    expires_at: float = Field(description="When it must log in again if it is not used before.")
    current: bool = Field(False, description="Whether this very request came from it.")


class DeviceAnswer(Schema):
    """The codes of a login that has begun (RFC 8628 section 3.2)."""

    device_code: str = Field(repr=False)
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    expires_in: int = DEVICE_SECONDS
    interval: int = DEVICE_INTERVAL_SECONDS


class DeviceRequest(Schema):
    """Who asks to be logged in, for the person to judge."""

    client: str = Field(description="As the client calls itself: nobody has checked it.")
    scope: list[str] = Field(description="What it could do: no more than the person may.")
    address: str = Field(description="From where it asks.")
    expires_in: int


def permission(name: str) -> str:
    """Return a permission that exists."""
    if name not in PERMISSIONS:
        raise ValueError("is not a permission")
    return name


def route(pattern: str) -> str:
    """Return a pattern such as `POST /chat` or `GET /collections/*` that can match."""
    if not ROUTE.fullmatch(pattern):
        raise ValueError("is not like `POST /chat`, `GET /collections/*` or `* /models/**`")
    return pattern


def network(text: str) -> str:
    """Return an address or network in its normal form."""
    return str(ip_network(text, strict=False))


class ApiKeyRequest(Body):
    """A key that is to be made."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")
    permissions: list[Annotated[str, Field(max_length=64), AfterValidator(permission)]] = Field(
        min_length=1, max_length=100
    )
    routes: list[Annotated[str, Field(max_length=200), AfterValidator(route)]] = Field(
        [],
        max_length=50,
        description="Operations it is limited to, as `METHOD /path`: `*` stands for any method or "
        "one part of a path, `**` at the end for the rest. None: all.",
    )
    networks: list[Annotated[str, Field(max_length=64), AfterValidator(network)]] = Field(
        [], max_length=50, description="Addresses or CIDR networks it may come from. None: any."
    )
    expires_in_days: int = Field(DEFAULT_KEY_DAYS, ge=1, le=MAX_KEY_DAYS)
    signing: bool = Field(
        False, description="Also make a secret with which requests are signed (RFC 9421)."
    )


class ApiKeyInfo(Schema):
    """A key as its owner sees it, without its secret."""

    id: str
    name: str
    prefix: str = Field(description="How the key begins, to recognise it.")
    permissions: list[str]
    routes: list[str]
    networks: list[str]
    signing: bool
    created_at: float = Field(description="Seconds since the epoch.")
    expires_at: float | None
    last_used_at: float | None = Field(description="Correct to a minute.")


class NewApiKey(Schema):
    """A key that was just made; its secrets are not shown again."""

    key: str = Field(repr=False)
    signing_secret: str | None = Field(
        None, repr=False, description="The text is the key of `hmac-sha256`, as ASCII bytes."
    )
    info: ApiKeyInfo
