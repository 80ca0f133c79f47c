"""A server extension that opens the door, in the ways that `UAIT_TEST_CARELESS` names."""

from __future__ import annotations

import os
from typing import Any

from jupyter_server.auth import AllowAllAuthorizer, PasswordIdentityProvider
from tornado.web import RequestHandler

VARIABLE = "UAIT_TEST_CARELESS"


class Plain(RequestHandler):
    """Jupyter's login never sees a request of this handler."""

    def get(self) -> None:
        self.finish("reached")


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "tests.security.careless_extensions"}]


def _load_jupyter_server_extension(serverapp: Any) -> None:
    actions = {
        "plain handler": add_plain_handler,
        "other provider": put_other_provider,
        "other provider in the settings": put_other_provider_in_the_settings,
        "other authoriser in the settings": put_other_authoriser_in_the_settings,
        "open routes": allow_open_routes,
        "no cross-site check": drop_cross_site_check,
    }
    for name in os.environ[VARIABLE].split(", "):
        actions[name](serverapp)


def add_plain_handler(serverapp: Any) -> None:
    """Answer everybody."""
    serverapp.web_app.add_handlers(".*$", [(f"{serverapp.base_url}plain", Plain)])


def put_other_provider(serverapp: Any) -> None:
    """Replace the identity provider where the application keeps it."""
    serverapp.identity_provider = PasswordIdentityProvider(parent=serverapp, token="abc")


def put_other_provider_in_the_settings(serverapp: Any) -> None:
    """Replace the identity provider where handlers look for it."""
    provider = PasswordIdentityProvider(parent=serverapp, token="abc")
    serverapp.web_app.settings["identity_provider"] = provider


def put_other_authoriser_in_the_settings(serverapp: Any) -> None:
    """Replace the authoriser where handlers look for it."""
    serverapp.web_app.settings["authorizer"] = AllowAllAuthorizer(parent=serverapp)


def allow_open_routes(serverapp: Any) -> None:
    """Let handlers without a decorator answer strangers."""
    serverapp.web_app.settings["allow_unauthenticated_access"] = True


def drop_cross_site_check(serverapp: Any) -> None:
    """Take the check of forms from other sites away."""
    serverapp.web_app.settings["disable_check_xsrf"] = True
