"""Where a server is, what opens it and how it was found; the token never shows itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import parse_qs, quote, urlsplit

from .errors import UsageMistake

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# "Listen on every interface" is no address to connect to; the loopback one of the same kind is.
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
DEFAULT_PORTS = {"http": 80, "https": 443}
# What people paste is often the link of a page: the address is the part before these.
PAGES = ("lab", "tree")


class Token:
    """A token that neither prints nor pickles itself, so that no notebook or log holds it."""

    __slots__ = ("_value",)

    def __init__(self, value: str = "") -> None:
        value = value.strip()
        if not all(33 <= ord(char) <= 126 for char in value):
            raise UsageMistake("The token holds characters that no token has. Copy it again.")
        self._value = value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Token(hidden)" if self else "Token(none)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a token is not stored")

    def headers(self) -> dict[str, str]:
        """Return the header that proves who is asking; none without a token."""
        return {"Authorization": f"token {self._value}"} if self else {}

    def refused(self) -> bool:
        """Hear that the server refused this token; tell whether another try can end otherwise."""
        return False


@dataclass(frozen=True)
class Endpoint:
    """The base address of a Jupyter server: `scheme://host:port/base/`."""

    scheme: str
    host: str
    port: int
    base: str

    @property
    def url(self) -> str:
        """The address as text, without any credential."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.base}"

    def path(self, *segments: str) -> str:
        """Return the path of an operation, each segment quoted."""
        return self.base + "/".join(quote(segment, safe="") for segment in segments)

    def same_server(self, other: Endpoint) -> bool:
        """Tell whether both addresses lead to one server; loopback's names count as one."""
        same_host = self.host == other.host or {self.host, other.host} <= LOOPBACK
        return same_host and (self.scheme, self.port, self.base) == (
            other.scheme,
            other.port,
            other.base,
        )


def parse_address(url: str) -> tuple[Endpoint, Token]:
    """Read an address as people have it, also the link that `jupyter lab` prints.

    Returns the endpoint and the token of the link, which is empty where it has none.

    Raises:
        UsageMistake: it is no http(s) address. The message does not repeat what may hold a secret.
    """
    try:
        parts = urlsplit(url.strip())
        scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
        port = parts.port or DEFAULT_PORTS.get(scheme, 0)
    except ValueError:
        scheme, host, port = "", "", 0
    if not host or not port:
        raise UsageMistake(
            "The server's address is not one of the web. Write it like http://127.0.0.1:8888/."
        )
    if parts.username is not None or parts.password is not None:
        raise UsageMistake(
            "The server's address has a user name or password in it. Leave them out and give the "
            "token by itself."
        )
    segments = [segment for segment in parts.path.split("/") if segment]
    if segments and segments[-1] in PAGES:
        segments.pop()
    base = "/" + "".join(f"{segment}/" for segment in segments)
    token = parse_qs(parts.query).get("token", [""])[0]
    return Endpoint(scheme, WILDCARDS.get(host, host), port, base), Token(token)


@dataclass(frozen=True)
class Server:
    """A UAIT server: its address, what opens it, and how it was found."""

    endpoint: Endpoint
    token: Token
    route: str

    @property
    def url(self) -> str:
        """The base address as text, without any credential."""
        return self.endpoint.url

    def __str__(self) -> str:
        return f"{self.url} ({self.route})"
