"""Under JupyterHub the hub knows who people are; UAIT adds what they may do on this server.

The hub's single-user server brings its own provider, which must stay: it logs people in at the hub
and refuses whom the hub does not let in. It is subclassed here, with the route policy and the roles
of `UaitApp.hub_roles`. UAIT's own login, factors and keys are off. This module is imported only
where the hub has started the server.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import wraps
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from jupyter_server.auth import User
from jupyter_server.base.handlers import JupyterHandler
from jupyterhub.singleuser.extension import (
    JupyterHubAuthorizer,
    JupyterHubIdentityProvider,
    JupyterHubUser,
)
from tornado import web

from uait_server_ext.errors import InvalidInput

from .jupyter_provider import UaitUser, expect_answer, expect_refusal
from .jupyter_routes import (
    AUTHORIZER_PERMISSIONS,
    OPEN,
    OWN,
    UNLISTED,
    RoutePolicy,
    handler_classes,
    reads,
)
from .principal import ROLES, Principal

if TYPE_CHECKING:
    from uait_server_ext.app import UaitApp

OWNER_VARIABLE = "JUPYTERHUB_USER"
HUB_ROUTES = {
    "jupyterhub.singleuser.extension.JupyterHubLogoutHandler": reads(OPEN),
    # A plain tornado handler, which checks the hub's state cookie.
    "jupyterhub.singleuser.extension.JupyterHubOAuthCallbackHandler": reads(OPEN),
}


class HubUser(JupyterHubUser, UaitUser):  # type: ignore[misc]
    """The hub's user with the permissions that this server gives them."""

    def __init__(self, hub_user: dict[str, Any], principal: Principal) -> None:
        super().__init__(hub_user)  # type: ignore[arg-type]
        self.principal = principal


class HubRoles:
    """Which role the hub's people have here.

    The keys of the mapping: `owner` (whose server this is), `admin` (the hub's administrators),
    `user:NAME`, `group:NAME`, `service:NAME`, and `*` for whomever the hub lets in. Who is on no
    line may do nothing.
    """

    def __init__(self, roles: Mapping[str, str], owner: str) -> None:
        for who, role in roles.items():
            kind, _, name = who.partition(":")
            known = who in ("owner", "admin", "*") or (
                bool(name) and kind in ("user", "group", "service")
            )
            if not known or role not in ROLES:
                raise InvalidInput(
                    f"UaitApp.hub_roles: {who!r}: {role!r} is not understood. Write `owner`, "
                    f"`admin`, `user:NAME`, `group:NAME`, `service:NAME` or `*`, and one of the "
                    f"roles {', '.join(ROLES)}."
                )
        self._roles = dict(roles)
        self._owner = owner

    def principal(self, hub_user: Mapping[str, Any]) -> Principal:
        """Return what one of the hub's people is here: every role that a line gives them."""
        name, kind = str(hub_user["name"]), str(hub_user.get("kind", "user"))
        lines = {"*", f"{kind}:{name}"}
        if kind == "user":
            lines |= {f"group:{group}" for group in hub_user.get("groups") or ()}
            if self._owner and name == self._owner:
                lines.add("owner")
            if hub_user.get("admin") is True:
                lines.add("admin")
        roles = [self._roles[line] for line in lines if line in self._roles]
        permissions = frozenset().union(*(ROLES[role] for role in roles))
        return Principal(
            id=name if kind == "user" else f"{kind}:{name}",
            name=name,
            kind="user" if kind == "user" else "service",
            permissions=permissions,
        )


class UaitHubIdentityProvider(JupyterHubIdentityProvider):  # type: ignore[misc]
    """Log in at the hub, then check the route policy, as UAIT's own provider does."""

    policy: RoutePolicy
    roles: HubRoles

    async def get_user(self, handler: web.RequestHandler) -> User | None:
        """Return who sends a request, after the route policy has let it pass."""
        known: User | None = getattr(handler, "_uait_hub_user", None)
        if known is not None:
            return known
        expect_refusal(handler)
        found = await super().get_user(handler)
        if found is None:
            return None
        principal = self.roles.principal(found.hub_user)
        user = HubUser(found.hub_user, principal)
        # Set before the policy can refuse: what answers the refusal asks for the user, too.
        handler._uait_hub_user = handler._jupyterhub_user = user  # type: ignore[attr-defined]
        handler.current_user = handler._jupyter_current_user = user  # type: ignore[attr-defined]
        needed = self.policy.permission(type(handler), handler.request.method or "")
        if needed not in (OPEN, OWN) and not principal.may(needed):
            raise web.HTTPError(HTTPStatus.FORBIDDEN, f"You need the permission {needed}.")
        expect_answer(handler)
        return user

    def identity_model(self, user: User) -> dict[str, Any]:
        """Return what `/api/me` tells: the profile, not the permissions' bearer."""
        model = super().identity_model(user)
        model.pop("principal", None)
        return dict(model)


class UaitHubAuthorizer(JupyterHubAuthorizer):  # type: ignore[misc]
    """Ask the hub whether they may be here at all, then UAIT what they may do."""

    def is_authorized(
        self, handler: JupyterHandler, user: User, action: str, resource: str
    ) -> bool:
        """Tell whether a user may; both must agree."""
        needed = AUTHORIZER_PERMISSIONS.get((resource, action), UNLISTED)
        return (
            isinstance(user, HubUser)
            and user.principal.may(needed)
            and bool(super().is_authorized(handler, user, action, resource))
        )


def or_end(step: Callable[[UaitApp], None]) -> Callable[[UaitApp], None]:
    """End the server when a step fails: Jupyter would log it and start without UAIT's rules."""

    @wraps(step)
    def wrapped(app: UaitApp) -> None:
        try:
            step(app)
        except Exception:
            app.log.exception("UAIT refuses to start under JupyterHub")
            app.exit(1)

    return wrapped


@or_end
def join(app: UaitApp) -> None:
    """Name provider and authoriser; the hub's extension, linked before, has named its own."""
    assert app.serverapp
    app.config.ServerApp.identity_provider_class = UaitHubIdentityProvider
    app.config.ServerApp.authorizer_class = UaitHubAuthorizer
    app.config.ServerApp.allow_unauthenticated_access = False
    app.serverapp.update_config(app.config)


@or_end
def adopt(app: UaitApp) -> None:
    """Give the live provider its policy and roles, and see that nothing stands in its place.

    Raises:
        InvalidInput: another class is in place, or `UaitApp.hub_roles` is not understood.
    """
    assert app.serverapp
    provider = app.serverapp.identity_provider
    for found, wanted in (
        (provider, UaitHubIdentityProvider),
        (app.serverapp.authorizer, UaitHubAuthorizer),
    ):
        if type(found) is not wanted:
            raise InvalidInput(f"{type(found).__name__} is in the place of {wanted.__name__}.")
    assert isinstance(provider, UaitHubIdentityProvider)
    provider.roles = HubRoles(app.hub_roles, os.environ.get(OWNER_VARIABLE, ""))
    provider.policy = RoutePolicy({**HUB_ROUTES, **app.route_permissions})


@or_end
def refuse_open_routes(app: UaitApp) -> None:
    """Look at the routes of every extension, when all are loaded.

    Raises:
        InvalidInput: a handler answers without any login.
    """
    assert app.serverapp
    provider = app.serverapp.identity_provider
    assert isinstance(provider, UaitHubIdentityProvider)
    handlers = handler_classes(app.serverapp.web_app.default_router)
    if plain := provider.policy.without_login(handlers):
        raise InvalidInput(
            f"These handlers answer without any login, whatever is configured: "
            f"{', '.join(plain)}. Disable the extensions that they belong to."
        )
