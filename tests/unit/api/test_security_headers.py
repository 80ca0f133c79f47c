"""Headers on every response of an application, whoever wrote the handler."""

from __future__ import annotations

from typing import Any

import pytest
from tornado import web
from tornado.httpclient import HTTPResponse

from uait_server_ext.api.security_headers import (
    API_HEADERS,
    HEADERS,
    PAGE_POLICY,
    apply,
    protect,
)


class Plain(web.RequestHandler):
    """A third party's handler."""

    def get(self) -> None:
        self.write("x")

    def post(self) -> None:
        self.write(str(len(self.request.body)))


class Own(web.RequestHandler):
    def get(self) -> None:
        for name, value in API_HEADERS.items():
            self.set_header(name, value)
        self.write("{}")


class Fails(web.RequestHandler):
    def get(self) -> None:
        raise RuntimeError("on purpose")


@pytest.fixture
def http_server_app() -> web.Application:
    app = web.Application(
        [
            (r"/plain", Plain),
            (r"/own", Own),
            (r"/uait/own", Plain),
            (r"/fails", Fails),
            (r"/go", web.RedirectHandler, {"url": "/plain"}),
            (r"/static/(.*)", web.StaticFileHandler, {"path": "/nowhere"}),
        ]
    )
    protect(app, "/uait/", https=True)
    return app


@pytest.fixture
def jp_web_app(http_server_app: web.Application) -> web.Application:
    return http_server_app


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/plain", 200),
        ("GET", "/nothing", 404),
        ("GET", "/fails", 500),
        ("PUT", "/plain", 405),
        ("TRACE", "/plain", 405),
        ("MADEUP", "/plain", 405),
        ("GET", "/go", 301),
        ("GET", "/static/x", 404),
        ("HEAD", "/nothing", 404),
    ],
)
async def test_every_response_has_the_headers(
    http_server_client: Any, method: str, path: str, status: int
) -> None:
    response: HTTPResponse = await http_server_client.fetch(
        path,
        method=method,
        raise_error=False,
        follow_redirects=False,
        allow_nonstandard_methods=True,
    )
    assert response.code == status
    for name, value in HEADERS.items():
        assert response.headers[name] == value
    assert response.headers["Content-Security-Policy"] == PAGE_POLICY
    assert "max-age" in response.headers["Strict-Transport-Security"]
    assert "Server" not in response.headers


async def test_a_handlers_own_policy_stands(http_server_client: Any) -> None:
    response = await http_server_client.fetch("/own")
    assert response.headers.get_list("Content-Security-Policy") == [
        API_HEADERS["Content-Security-Policy"]
    ]


async def test_bodies_of_our_paths_are_bounded_while_they_are_read(
    http_server_client: Any,
) -> None:
    body = b"x" * (9 * 1024 * 1024)
    other = await http_server_client.fetch("/plain", method="POST", body=body)
    assert int(other.body) == len(body)
    own = await http_server_client.fetch("/uait/own", method="POST", body=body, raise_error=False)
    assert own.code in (400, 413, 599)


def test_apply_works_before_and_after_the_application_is_built() -> None:
    class Early:
        web_app = None
        tornado_settings: dict[str, Any] = {}  # noqa: RUF012

    apply(Early)
    assert Early.tornado_settings["headers"]["Content-Security-Policy"] == PAGE_POLICY

    class Late:
        web_app = web.Application(headers={"X-Own": "1"})

    apply(Late)
    assert Late.web_app.settings["headers"]["X-Own"] == "1"
    assert Late.web_app.settings["headers"]["Referrer-Policy"] == "same-origin"


def test_the_policy_lets_nothing_out() -> None:
    directives = dict(part.split(" ", 1) for part in PAGE_POLICY.split("; "))
    assert directives["connect-src"] == "'self'"
    assert directives["object-src"] == "'none'"
    for sources in directives.values():
        assert "*" not in sources
        assert "http" not in sources
        assert "ws:" not in sources
    assert "'unsafe-inline'" not in directives["script-src"]
