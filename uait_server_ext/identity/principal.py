"""The caller of an operation, and the permissions and roles that decide what it may do.

Plain Python: how a principal is found behind a request is `jupyter_provider.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

PERMISSIONS: dict[str, str] = {
    "system:read": "See health, versions and the API description.",
    "models:read": "List models and their state.",
    "models:run": "Send prompts to models.",
    "models:manage": "Fetch, import, remove, load and unload models.",
    "models:tune": "Teach models from examples: start, see, end and resume such jobs.",
    "budgets:read": "See what is left of your budgets.",
    "budgets:write": "See all budgets; set and delete them.",
    "knowledge:read": "List, search and ask collections.",
    "knowledge:write": "Add documents to collections and delete collections.",
    "account:read": "See your own profile, sessions, API keys and factors.",
    "account:write": "Change your own profile, password, API keys and factors; end your sessions.",
    "users:read": "List people, groups and roles.",
    "users:write": "Invite, change, disable and delete people; set groups and roles.",
    "vault:read": "List secrets by name, without their values.",
    "vault:use": "Let an agent or run use a secret without seeing it.",
    "vault:write": "Create, change, rotate and delete secrets.",
    "vault:reveal": "Read the value of a secret.",
    "audit:read": "Query, export and verify the audit log.",
    "contents:read": "Read files of the server's root.",
    "contents:write": "Create, change and delete files of the server's root.",
    "kernels:read": "List kernels and sessions.",
    "kernels:run": "Start and stop kernels and run code in them.",
    "terminals:run": "Open terminals.",
    "lab:read": "Open JupyterLab and read its settings.",
    "lab:write": "Change JupyterLab's settings and workspaces.",
    "lab:admin": "Install and switch JupyterLab extensions and plugins; rebuild.",
    "server:read": "See the server's activity and metrics.",
    "server:admin": "Shut the server down.",
}
"""Every permission an operation or a route may name, `domain:action`, and what it allows."""

_VIEWER = frozenset(
    {
        "system:read",
        "models:read",
        "models:run",
        "budgets:read",
        "knowledge:read",
        "account:read",
        "account:write",
        "contents:read",
        "kernels:read",
        "lab:read",
    }
)
_ANALYST = _VIEWER | {"knowledge:write", "vault:read"}
_DEVELOPER = _ANALYST | {
    "models:tune",
    "vault:use",
    "contents:write",
    "kernels:run",
    "terminals:run",
    "lab:write",
    "server:read",
}

ROLES: MappingProxyType[str, frozenset[str]] = MappingProxyType(
    {
        "viewer": _VIEWER,
        "analyst": frozenset(_ANALYST),
        "developer": frozenset(_DEVELOPER),
        "admin": frozenset(PERMISSIONS),
        "service": frozenset(
            {"system:read", "models:read", "models:run", "knowledge:read", "knowledge:write"}
        ),
    }
)
"""What each role may do. A role's name never changes its meaning without an entry in CHANGELOG."""

KERNEL_PERMISSIONS = frozenset(
    {"system:read", "models:read", "models:run", "knowledge:read", "knowledge:write"}
)
"""The most that a kernel token may do, whoever owns the kernel."""

PrincipalKind = Literal["user", "api-key", "kernel", "agent", "service"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who acts: a user, an API key, a kernel token or an agent.

    Attributes:
        id: the user's id, also for what acts in the user's name (an API key, a kernel).
        name: what people read.
        permissions: what it may do; for a key or kernel never more than its owner.
        credential: id of the session, API key or token behind it; none under Jupyter's own login.
        authenticated_at: when the person last proved who they are (epoch seconds).
    """

    id: str
    name: str
    kind: PrincipalKind = "user"
    permissions: frozenset[str] = frozenset()
    credential: str | None = None
    authenticated_at: float = 0.0

    def may(self, permission: str) -> bool:
        """Tell whether the permission is held."""
        return permission in self.permissions
