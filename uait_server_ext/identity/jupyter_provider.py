"""Find the principal behind a Jupyter request, and ask Jupyter's authoriser what it may do.

Jupyter's identity provider has already checked the token or cookie when this is called. A
permission `domain:action` is put to the server's authoriser as an action on the resource
`uait:domain`, so that an administrator's own authoriser class governs UAIT too.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Literal

from jupyter_server.base.handlers import JupyterHandler

from uait_server_ext.errors import PermissionDenied, Unauthenticated

from .principal import Principal

JupyterAction = Literal["read", "write", "execute"]
ACTIONS: dict[str, JupyterAction] = {"read": "read", "write": "write", "run": "execute"}


def principal_of(handler: JupyterHandler) -> Principal:
    """Return the principal that Jupyter's identity provider found.

    Raises:
        Unauthenticated: nobody is logged in on this request.
    """
    user = handler.current_user
    if not user:
        raise Unauthenticated(
            "This operation needs a login. Send `Authorization: token …` or log in to JupyterLab."
        )
    return Principal(id=user.username, name=user.display_name or user.username)


async def require(handler: JupyterHandler, permission: str) -> Principal:
    """Return the principal when it has the permission.

    Raises:
        Unauthenticated: nobody is logged in.
        PermissionDenied: the authoriser said no; the message names the permission.
    """
    principal = principal_of(handler)
    domain, _, action = permission.partition(":")
    allowed = handler.authorizer.is_authorized(
        handler, handler.current_user, ACTIONS[action], f"uait:{domain}"
    )
    if isinstance(allowed, Awaitable):
        allowed = await allowed
    if not allowed:
        raise PermissionDenied(
            f"You need the permission {permission}. Ask an administrator of this server for it.",
            permission=permission,
        )
    return principal
