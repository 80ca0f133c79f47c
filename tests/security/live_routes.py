"""A server extension for tests: it writes down every route of the live server that it runs in.

Each row is what the server really does with a request: a path made from the pattern is put to the
server's own router, and the class that answers is asked of the policy. It also adds handlers as a
careless extension would: with Jupyter's sticky `@authorized`, and with no check at all.
"""

from __future__ import annotations

import json
import os
import re
import traceback
from pathlib import Path
from re import _constants as constants  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, ClassVar
from unittest.mock import Mock

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import JupyterHandler
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import RequestHandler

from uait_server_ext.api.operation import PUBLIC
from uait_server_ext.identity.jupyter_routes import AUTHORIZER_PERMISSIONS, OPEN, OWN, live_routes

VARIABLE = "UAIT_TEST_ROUTES"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class Shared(JupyterHandler):
    """One method for two resources: the first class that is called decides, says Jupyter."""

    @authorized
    def get(self) -> None:
        self.finish("reached")


class Files(Shared):
    auth_resource: ClassVar[str] = "contents"


class Terminals(Shared):
    auth_resource: ClassVar[str] = "terminals"


class Careless(JupyterHandler):
    """No decorator, no resource, on no list."""

    def get(self) -> None:
        self.finish("reached")


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "tests.security.live_routes"}]


def _load_jupyter_server_extension(serverapp: Any) -> None:
    base = serverapp.base_url
    serverapp.web_app.add_handlers(
        ".*$",
        [
            (f"{base}careless/files", Files),
            (f"{base}careless/terminals", Terminals),
            (f"{base}careless/open", Careless),
        ],
    )


async def _start_jupyter_server_extension(serverapp: Any) -> None:
    target = Path(os.environ[VARIABLE])
    part = target.with_suffix(".part")
    try:
        written_down = json.dumps(rows(serverapp))
    except Exception:
        # Jupyter logs it and goes on; the tests read it where they wait for the routes.
        written_down = json.dumps(traceback.format_exc())
    part.write_text(written_down, encoding="utf-8")
    part.rename(target)


def rows(serverapp: Any) -> list[dict[str, Any]]:
    """Return a row for each pattern and method that the server answers."""
    application = serverapp.web_app
    policy = serverapp.identity_provider.policy
    found = []
    for pattern, declared in dict.fromkeys(live_routes(application.default_router)):
        path = sample(pattern)
        for method in METHODS:
            request = HTTPServerRequest(
                method=method,
                uri=path,
                headers=HTTPHeaders({"Host": "127.0.0.1"}),
                connection=Mock(context=None),  # a request that is never sent
            )
            delegate = application.find_handler(request)
            handler = getattr(delegate, "handler_class", declared)
            operation = getattr(delegate, "handler_kwargs", {}).get("operations", {}).get(method)
            needed = policy.permission(handler, method)
            if needed == OWN:
                if operation is None:
                    continue
                needed = OPEN if operation.permission == PUBLIC else operation.permission
            elif not implements(handler, method):
                continue
            found.append(
                {
                    "pattern": pattern,
                    "path": path,
                    "method": method,
                    "handler": f"{handler.__module__}.{handler.__qualname__}",
                    "needed": needed,
                    "also": asked_by_jupyter(handler, method),
                    "sensitive": bool(operation and operation.sensitive),
                }
            )
    return found


def asked_by_jupyter(handler: type[RequestHandler], method: str) -> str | None:
    """Return what Jupyter's authoriser is asked besides, for a handler with a resource."""
    resource = getattr(handler, "auth_resource", None)
    if resource is None:
        return None
    action = "read" if method in ("GET", "HEAD") else "write"
    return AUTHORIZER_PERMISSIONS.get((resource, action))


def implements(handler: type[RequestHandler], method: str) -> bool:
    """Tell whether a class has its own function for a method."""
    function = getattr(handler, method.lower(), None)
    return getattr(function, "__name__", "") != "_unimplemented_method"


def sample(pattern: str) -> str:
    """Return a path that a pattern matches: the shortest, with letters where anything may be."""
    made = written(parser.parse(pattern))
    assert re.fullmatch(pattern.rstrip("$"), made), f"{pattern} does not match {made}"
    return made


def written(parsed: Any) -> str:
    """Write the shortest text of a parsed regular expression."""
    return "".join(piece(operation, value) for operation, value in parsed)


def piece(operation: Any, value: Any) -> str:
    """Write one part."""
    if operation is constants.LITERAL:
        return chr(int(value))
    if operation in (constants.MAX_REPEAT, constants.MIN_REPEAT):
        least, _, inner = value
        # `.*` is most often a path that must not be empty to be one.
        return written(inner) * max(int(least), int(inner[0][0] is constants.ANY))
    if operation is constants.SUBPATTERN:
        return written(value[-1])
    if operation is constants.BRANCH:
        return written(value[1][0])
    if operation is constants.IN:
        kind, first = value[0]
        if kind is constants.LITERAL:
            return chr(first)
        return chr(int(first[0])) if kind is constants.RANGE else "a"
    if operation in (constants.ANY, constants.NOT_LITERAL):
        return "a"
    if operation in (constants.AT, constants.ASSERT, constants.ASSERT_NOT):
        return ""
    raise NotImplementedError(operation)
