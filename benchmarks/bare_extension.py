"""The peer of `operations.py`: one authenticated handler as Jupyter's documentation writes it."""

from __future__ import annotations

import json
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web


class BareHandler(APIHandler):
    """Answer what UAIT's health operation answers, without UAIT."""

    auth_resource = "bare"

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.finish(json.dumps({"live": True, "ready": True, "version": "1", "services": []}))


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "bare_extension"}]


def _load_jupyter_server_extension(serverapp: Any) -> None:
    serverapp.web_app.add_handlers(".*$", [(f"{serverapp.base_url}bare/health", BareHandler)])
