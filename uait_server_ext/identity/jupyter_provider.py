"""Who is behind a Jupyter request: UAIT's own login for the whole server, or Jupyter's.

`uait lab` puts `UaitIdentityProvider` and `UaitAuthorizer` in the place of Jupyter's; then every
request of every handler is authenticated here and checked against the route policy. Under plain
`jupyter lab` Jupyter's own login stands, and a permission `domain:action` is put to its authoriser
as an action on the resource `uait:domain`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal

from jupyter_server.auth import Authorizer, IdentityProvider, User
from jupyter_server.auth.identity import LegacyIdentityProvider, PasswordIdentityProvider
from jupyter_server.base.handlers import JupyterHandler
from tornado import web
from tornado.websocket import WebSocketHandler

from uait_server_ext.errors import (
    PermissionDenied,
    ReauthenticationNeeded,
    Unauthenticated,
    Unavailable,
)
from uait_server_ext.storage.ids import now

from .authenticate import Presented
from .credentials import credential_of
from .jupyter_routes import AUTHORIZER_PERMISSIONS, OPEN, OWN, UNLISTED, RoutePolicy
from .jupyter_sockets import OpenConnections, end_socket
from .principal import PERMISSIONS, Principal

if TYPE_CHECKING:
    from .service import Identity

JupyterAction = Literal["read", "write", "execute"]
ACTIONS: dict[str, JupyterAction] = {
    "read": "read",
    "write": "write",
    "admin": "write",
    "manage": "write",
    "run": "execute",
    "tune": "execute",
    "use": "execute",
    "reveal": "execute",
}
API_PREFIX = "/uait/v1"
OWNER = "owner"
BROWSER_SECONDS = 90 * 24 * 3600
FRESH_SECONDS = 600.0
"""How long a proof of who somebody is serves for sensitive operations."""


@dataclass
class UaitUser(User):
    """Jupyter's user with the principal that UAIT found."""

    principal: Principal = field(default_factory=lambda: Principal("", ""))

    @staticmethod
    def of(principal: Principal) -> UaitUser:
        """Return what Jupyter wants to know of a principal."""
        return UaitUser(username=principal.id, name=principal.name, principal=principal)


class UaitIdentityProvider(IdentityProvider):
    """Authenticate every request by session cookie, token or API key; then the route policy."""

    # Jupyter's own token cannot come back by configuration: there is nothing to configure.
    token = ""
    need_token = False
    token_generated = False

    identity: Identity
    policy: RoutePolicy
    connections: OpenConnections

    @property
    def auth_enabled(self) -> bool:
        """A login is always needed."""
        return True

    @property
    def login_available(self) -> bool:
        return True

    @property
    def logout_available(self) -> bool:
        """Logging out is `POST /uait/v1/logout`: a GET would let any page log people out."""
        return False

    def get_handlers(self) -> list[tuple[str, object]]:
        from .jupyter_pages import LoginPage, LogoutPage

        return [(r"/login", LoginPage), (r"/logout", LogoutPage)]

    def validate_security(self, app: Any, ssl_options: dict[str, Any] | None = None) -> None:
        """Warn where passwords would cross a network in the clear."""
        if app.ip not in ("localhost", "127.0.0.1", "::1") and ssl_options is None:
            app.log.warning(
                "UAIT listens on %s without TLS. Put a proxy with TLS before it, or set "
                "ServerApp.certfile.",
                app.ip or "all addresses",
            )

    def identity_model(self, user: User) -> dict[str, Any]:
        """Return what `/api/me` tells: the profile, not the permissions' bearer."""
        model = super().identity_model(user)
        model.pop("principal", None)
        return model

    def get_user(self, handler: web.RequestHandler) -> Awaitable[User | None]:
        """Return who sends a request, after the route policy has let it pass."""
        return self._find_user(handler)

    async def _find_user(self, handler: web.RequestHandler) -> User | None:
        known: User | None = getattr(handler, "_jupyter_current_user", None)
        if known:
            return known
        # Set before anything can raise: what answers an error asks for the user, too.
        handler.current_user = handler._jupyter_current_user = None  # type: ignore[attr-defined]
        needed = self.policy.permission(type(handler), handler.request.method or "")
        expect_refusal(handler)
        try:
            presented = self.presented(handler)
            if presented is None:
                return None
            principal = await self.identity.authenticator.identify(presented)
        except Unauthenticated as error:
            handler.uait_refusal = error  # type: ignore[attr-defined]
            self.identity.refused(
                "request.credential",
                target=f"{handler.request.method} {handler.request.path}",
                address=self.address(handler),
            )
            return None
        except PermissionDenied as error:  # a key that is bound to other operations or networks
            if needed == OPEN or is_public(handler):
                return None
            raise web.HTTPError(HTTPStatus.FORBIDDEN, error.detail) from error
        except Unavailable as error:
            if needed == OPEN or is_public(handler):
                return None
            raise web.HTTPError(HTTPStatus.SERVICE_UNAVAILABLE, error.detail) from error
        user = UaitUser.of(principal)
        handler.current_user = handler._jupyter_current_user = user  # type: ignore[attr-defined]
        handler._token_authenticated = presented.kind == "bearer"  # type: ignore[attr-defined]
        if needed not in (OPEN, OWN) and not principal.may(needed):
            self.denied(handler, principal, needed)
            raise web.HTTPError(HTTPStatus.FORBIDDEN, f"You need the permission {needed}.")
        handler.uait_presented = (presented, needed)  # type: ignore[attr-defined]
        expect_answer(handler)
        if isinstance(handler, WebSocketHandler):
            self.hold(handler, lambda: end_socket(handler))
        return user

    def denied(self, handler: web.RequestHandler, principal: Principal, needed: str) -> None:
        """Note for the audit log that a permission was missing."""
        self.identity.refused(
            "request.permission",
            target=f"{handler.request.method} {handler.request.path}",
            address=self.address(handler),
            principal=principal,
            permission=needed,
        )

    def hold(self, handler: web.RequestHandler, end: Callable[[], Any]) -> None:
        """Call `end` when the login that opened a long connection has ended."""
        found: tuple[Presented, str] | None = getattr(handler, "uait_presented", None)
        if found:
            presented, needed = found
            self.connections.hold(handler, presented, needed, end)

    def presented(self, handler: web.RequestHandler) -> Presented | None:
        """Return the credential of a request: a header before the cookie, never both."""
        request = handler.request
        method, path = request.method or "", request.path
        base = str(handler.settings.get("base_url", "/"))
        # API keys name routes as the documentation does: operations as they are declared, the
        # rest below the server's base.
        path = f"/{path[len(base) :]}" if path.startswith(base) else path
        path = path.removeprefix(API_PREFIX)
        address = self.address(handler)
        credential = credential_of(list(request.headers.get_all()))
        if credential is not None:
            return Presented("bearer", credential.secret, address, method, path)
        secret = self.session_secret(handler)
        return None if secret is None else Presented("session", secret, address, "", "")

    def address(self, handler: web.RequestHandler) -> str:
        """Return the client's address; `remote_ip` is the peer's, as xheaders stay off."""
        request = handler.request
        return self.identity.client_address(
            request.remote_ip or "", request.headers.get_list("X-Forwarded-For")
        )

    def origin(self, handler: web.RequestHandler) -> str:
        """Return `scheme://host[:port]` under which the browser sees this server."""
        request = handler.request
        return self.identity.settings.public_url or f"{request.protocol}://{request.host}"

    def is_secure(self, handler: web.RequestHandler) -> bool:
        """Tell whether the browser speaks https, to us or to the proxy before us."""
        return self.origin(handler).startswith("https:")

    def session_cookie_name(self, handler: web.RequestHandler) -> str:
        """Return the cookie's name: browsers bind `__Host-` cookies to this very host."""
        if self.is_secure(handler):
            return "__Host-uait-session"
        # Cookies know no ports: two servers on one host must not share a name.
        return f"uait-session-{handler.request.host.rpartition(':')[2]}"

    def session_secret(self, handler: web.RequestHandler) -> str | None:
        """Return the session cookie's value."""
        return handler.get_cookie(self.session_cookie_name(handler)) or None

    def set_session_cookie(self, handler: web.RequestHandler, secret: str) -> None:
        """Give the browser a session: unreadable for scripts, not sent by other sites' forms."""
        handler.set_cookie(
            self.session_cookie_name(handler),
            secret,
            path="/",
            httponly=True,
            samesite="Lax",
            secure=self.is_secure(handler),
        )

    def clear_session_cookie(self, handler: web.RequestHandler) -> None:
        """Take the session from the browser."""
        handler.clear_cookie(
            self.session_cookie_name(handler),
            path="/",
            httponly=True,
            samesite="Lax",
            secure=self.is_secure(handler),
        )

    def binding(self, handler: web.RequestHandler) -> str | None:
        """Return the cookie that binds a login flow to the browser that began it."""
        return handler.get_cookie(self.binding_cookie_name(handler)) or None

    def set_binding_cookie(self, handler: web.RequestHandler, value: str) -> None:
        """Know this browser again: Lax, as a login flow comes back from the provider's site."""
        handler.set_cookie(
            self.binding_cookie_name(handler),
            value,
            path="/",
            max_age=BROWSER_SECONDS,
            httponly=True,
            samesite="Lax",
            secure=self.is_secure(handler),
        )

    def binding_cookie_name(self, handler: web.RequestHandler) -> str:
        """Return the name of the cookie that binds a login flow to a browser."""
        return self.session_cookie_name(handler).replace("-session", "-browser")

    def is_token_authenticated(self, handler: web.RequestHandler) -> bool:
        """Tell whether a header proved who sends this: then no XSRF token is needed."""
        return bool(getattr(handler, "_token_authenticated", False))

    def set_login_cookie(self, handler: web.RequestHandler, user: User) -> None:
        """Set nothing: sessions begin by a login only."""

    def get_user_cookie(self, handler: web.RequestHandler) -> User | None:
        """Return nobody: Jupyter's own cookie is no proof here."""
        return None

    def process_login_form(self, handler: web.RequestHandler) -> User | None:
        """Return nobody: Jupyter's form is not in use."""
        return None


class UaitAuthorizer(Authorizer):
    """Answer Jupyter's question (resource, action) by the principal's permissions."""

    def is_authorized(
        self, handler: JupyterHandler, user: User, action: str, resource: str
    ) -> bool:
        """Tell whether a user may; an unknown resource is for administrators."""
        if not isinstance(user, UaitUser):
            return False
        needed = AUTHORIZER_PERMISSIONS.get((resource, action), UNLISTED)
        return user.principal.may(needed)


def expect_refusal(handler: web.RequestHandler) -> None:
    """See that a refusal would be sent.

    An error is sent by `finish`, which tornado does not await then: where a handler has made it a
    coroutine (JupyterLab's licences), whoever is refused would wait for ever.
    """
    if inspect.iscoroutinefunction(type(handler).finish):
        handler.finish = MethodType(web.RequestHandler.finish, handler)  # type: ignore[method-assign]


def expect_answer(handler: web.RequestHandler) -> None:
    """Give a handler its own `finish` back."""
    vars(handler).pop("finish", None)


def is_public(handler: web.RequestHandler) -> bool:
    """Tell whether a handler serves a public operation, which needs nobody to be logged in."""
    asked: Callable[[], bool] | None = getattr(handler, "is_public", None)
    return asked is not None and asked()


def principal_of(handler: JupyterHandler) -> Principal:
    """Return the principal that the identity provider found.

    Raises:
        Unauthenticated: nobody is logged in on this request; says why where that is known.
    """
    user = handler.current_user
    if not user:
        refusal = getattr(handler, "uait_refusal", None)
        if isinstance(refusal, Unauthenticated):
            raise refusal
        raise Unauthenticated(
            "This operation needs a login. Send `Authorization: Bearer …` or log in to JupyterLab."
        )
    if isinstance(user, UaitUser):
        return user.principal
    # Jupyter's own login is one token for one person, whom it names anew in every browser.
    single = isinstance(
        handler.identity_provider, (PasswordIdentityProvider, LegacyIdentityProvider)
    )
    return Principal(
        id=OWNER if single else user.username,
        name=user.display_name or user.username,
        permissions=frozenset(PERMISSIONS),
    )


async def require(handler: JupyterHandler, permission: str) -> Principal:
    """Return the principal when it has the permission.

    Raises:
        Unauthenticated: nobody is logged in.
        PermissionDenied: it has not, or Jupyter's authoriser said no; the message names the
            permission.
    """
    principal = principal_of(handler)
    allowed: bool | Awaitable[bool]
    if isinstance(handler.current_user, UaitUser):
        allowed = principal.may(permission)
    else:
        domain, _, action = permission.partition(":")
        allowed = handler.authorizer.is_authorized(
            handler, handler.current_user, ACTIONS[action], f"uait:{domain}"
        )
        if isinstance(allowed, Awaitable):
            allowed = await allowed
    if not allowed:
        if isinstance(handler.identity_provider, UaitIdentityProvider):
            handler.identity_provider.denied(handler, principal, permission)
        raise PermissionDenied(
            f"You need the permission {permission}. Ask an administrator of this server for it.",
            permission=permission,
        )
    return principal


def require_fresh(principal: Principal) -> None:
    """Let a sensitive operation pass only soon after the person proved who they are.

    Under Jupyter's own login there is no such proof to ask for. An API key signs its request
    instead, which the handler verifies.

    Raises:
        PermissionDenied: with the code `reauthenticate`.
    """
    if principal.credential is None or principal.kind == "api-key":
        return
    if principal.kind != "user" or now() - principal.authenticated_at > FRESH_SECONDS:
        raise ReauthenticationNeeded(
            "Prove again that it is you: POST /me/reauthenticate, then repeat this."
        )
