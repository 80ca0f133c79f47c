"""What an operation sees of the HTTP request it answers, and what it may set on the answer.

Operations know no tornado: the handler fills `Request` before and applies `Reply` after.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote

MAX_LABEL = 300


@dataclass(frozen=True, slots=True)
class Request:
    """The facts of a request that logins, limits and the audit log need.

    Attributes:
        address: the client's IP address, behind a trusted proxy the one that the proxy names.
        user_agent: at most 200 characters.
        secure: whether the browser speaks https.
        origin: `scheme://host[:port]` under which the browser sees this server.
        session_secret: the session cookie.
        binding: the cookie that binds a login flow to the browser that began it.
        notebook, run: for which the client says that it asks (`UAIT-Notebook`, `UAIT-Run`).
    """

    address: str = ""
    user_agent: str = ""
    secure: bool = False
    origin: str = ""
    base_url: str = "/"
    method: str = ""
    path: str = ""
    session_secret: str | None = field(default=None, repr=False)
    binding: str | None = field(default=None, repr=False)
    notebook: str | None = None
    run: str | None = None


def label(header: str | None) -> str | None:
    """Return what a client says in a header: percent-encoded, at most 300 characters."""
    if not header:
        return None
    text = "".join(c for c in unquote(header, errors="replace") if c.isprintable()).strip()
    return text[:MAX_LABEL] or None


@dataclass(slots=True)
class Reply:
    """What an operation asks of the answer besides its content: cookies, headers, a redirect."""

    session_secret: str | None = field(default=None, repr=False)
    session_cleared: bool = False
    binding: str | None = field(default=None, repr=False)
    location: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def set_session(self, secret: str) -> None:
        """Give the browser this session."""
        self.session_secret, self.session_cleared = secret, False

    def clear_session(self) -> None:
        """Take the session cookie from the browser."""
        self.session_secret, self.session_cleared = None, True

    def set_binding(self, value: str) -> None:
        """Bind the login flow that begins here to this browser."""
        self.binding = value

    def redirect(self, url: str) -> None:
        """Answer 302 to this address; the operation then returns None."""
        self.location = url
