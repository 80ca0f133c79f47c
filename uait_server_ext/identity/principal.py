"""The caller of an operation, and the permissions that operations name.

Plain Python: how a principal is found behind a request is `jupyter_provider.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PERMISSIONS: dict[str, str] = {
    "system:read": "See health, versions and the API description.",
    "models:read": "List models and their state.",
    "models:run": "Send prompts to models.",
    "knowledge:read": "List, search and ask collections.",
    "knowledge:write": "Add documents to collections and delete collections.",
}
"""Every permission an operation may name, `domain:action`, and what it allows."""

PrincipalKind = Literal["user", "api-key", "kernel", "agent"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who acts: a user, an API key, a kernel token or an agent."""

    id: str
    name: str
    kind: PrincipalKind = "user"
