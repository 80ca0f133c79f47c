"""The HTTP edge of a running server under attack: cases 64 to 73, web and API."""

from __future__ import annotations

import gzip
import http.client
import json
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.unit.resilience.redis_server import RedisServer
from uait_server_ext.api.operation import PUBLIC
from uait_server_ext.api.security_headers import API_POLICY, HEADERS, PAGE_POLICY
from uait_server_ext.api.v1 import operations

from .conftest import Api, IdentityServer, Person, identity_server, user_maker

EVIL = "https://evil.example"
TRUSTED = "https://trusted.example.com"
UNSAFE = ("POST", "PUT", "PATCH", "DELETE")
JSON = {"Content-Type": "application/json"}

FEW = {
    "read": {"user": 6, "key": 4, "ip": 9},
    "probe": {"user": 50, "key": 50, "ip": 5},
}
"""Limits of a server that is to be driven to them."""

Browsers = dict[str, Api]


@pytest.fixture(scope="module")
def browsers(server: IdentityServer, people: dict[str, Person]) -> Browsers:
    """Return one browser of a person of each role, logged in."""
    return {role: server.login(person) for role, person in people.items()}


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """Run a Redis of one test."""
    assert shutil.which("redis-server"), "redis-server is not installed: `make tools`"
    (tmp_path / "redis").mkdir()
    redis = RedisServer(tmp_path / "redis")
    redis.start()
    yield redis.url
    redis.stop()


@pytest.fixture(scope="module")
def narrow(
    jupyter_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[IdentityServer]:
    """Run a server with small limits, and with one origin that may read its answers."""
    with identity_server(
        tmp_path_factory.mktemp("narrow"),
        f"--UaitApp.rate_limits={FEW!r}",
        r"--ServerApp.allow_origin_pat=https://trusted\.example\.com",
    ) as running:
        yield running


def without_xsrf(browser: Api) -> Api:
    """Return a browser with the session and no XSRF token, as a page of another site uses it."""
    client = browser.server.anonymous()
    for cookie in browser.http.cookies.jar:
        if cookie.name != "_xsrf":
            client.http.cookies.set(cookie.name, cookie.value or "", domain=cookie.domain)
    return client


def filled(path: str) -> str:
    """Return an operation's path with something in the place of each parameter."""
    return "~" + "/".join("x" if part.startswith("{") else part for part in path.split("/"))


def talk(server: IdentityServer, lines: list[bytes], body: bytes = b"") -> tuple[int, bytes]:
    """Send a request byte by byte as given; return the status (0: closed without one) and all."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), 20) as connection:
        with suppress(OSError):  # it may be refused while it is sent
            connection.sendall(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
        answer = b""
        with suppress(OSError):
            while chunk := connection.recv(65536):
                answer += chunk
    status = answer[9:12]
    return (int(status) if status.isdigit() else 0), answer


def alive(server: IdentityServer) -> bool:
    """Tell whether the server still answers."""
    return httpx.get(f"{server.url}uait/v1/health/live", trust_env=False).status_code in (200, 429)


# 64 -- requests that another site makes a browser send


@pytest.mark.parametrize(
    "op",
    [op for op in operations() if op.method in UNSAFE and op.permission != PUBLIC],
    ids=lambda op: op.key,
)
def test_064_no_xsrf_token_no_change(op: Any, server: IdentityServer, browsers: Browsers) -> None:
    browser = without_xsrf(browsers["admin"])
    answer = browser.request(op.method, filled(op.path), content=b"{}", headers=JSON)
    assert answer.status_code == 403, answer.text
    assert "_xsrf" in answer.text


def test_064_jupyters_own_routes_need_the_xsrf_token_too(
    server: IdentityServer, browsers: Browsers
) -> None:
    browser = without_xsrf(browsers["developer"])
    for method, path in (
        ("PUT", "api/contents/x.txt"),
        ("POST", "api/kernels"),
        ("POST", "api/sessions"),
        ("POST", "api/terminals"),
        ("POST", "logout"),
    ):
        answer = browser.request(method, path, content=b"{}", headers=JSON)
        assert answer.status_code in (403, 404), (path, answer.status_code)


@pytest.mark.parametrize("origin", [EVIL, "null", "http://127.0.0.1:1", "https://127.0.0.1"])
def test_064_a_foreign_origin_is_refused(
    origin: str, server: IdentityServer, browsers: Browsers
) -> None:
    browser = browsers["developer"]
    for method, path in (
        ("PATCH", "~/me"),
        ("GET", "~/me"),
        ("POST", "~/logout"),
        ("PUT", "api/contents/x.txt"),
        ("POST", "api/kernels"),
    ):
        answer = browser.request(
            method, path, content=b'{"display_name":"x"}', headers={**JSON, "Origin": origin}
        )
        assert answer.status_code in (403, 404), (path, answer.status_code, answer.text)


def test_064_fetch_metadata_of_another_site_is_refused(
    server: IdentityServer, browsers: Browsers
) -> None:
    browser = browsers["viewer"]
    for metadata in (
        {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-site"},
    ):
        answer = browser.patch("~/me", {"display_name": "mallory"}, headers=metadata)
        assert answer.status_code == 403, metadata
    assert browser.get("~/me").json()["display_name"] != "mallory"
    own = server.url.rstrip("/")
    same = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin", "Origin": own}
    assert browser.patch("~/me", {"display_name": "viewer"}, headers=same).status_code == 200


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""],
)
def test_064_a_body_that_a_form_could_send_is_not_json(
    kind: str, server: IdentityServer, browsers: Browsers
) -> None:
    browser = browsers["viewer"]
    answer = browser.request(
        "PATCH", "~/me", content=b'{"display_name":"x"}', headers={"Content-Type": kind}
    )
    # Tornado itself refuses a form that it cannot read.
    assert answer.status_code == 415 or (kind.startswith("multipart") and answer.status_code == 400)


# 65 -- logging a victim in, or out


def test_065_a_cross_site_form_logs_nobody_in(
    server: IdentityServer, people: dict[str, Person]
) -> None:
    person = people["viewer"]
    form = {"username": person.username, "password": person.password}
    sent: list[tuple[dict[str, str], dict[str, Any]]] = [
        ({"Origin": EVIL}, {"data": form}),
        ({}, {"data": form}),
        ({"Content-Type": "text/plain"}, {"content": json.dumps(form)}),
        ({"Origin": EVIL}, {"json": form}),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, {"json": form}),
    ]
    for headers, content in sent:
        anonymous = server.anonymous()
        answer = anonymous.request("POST", "~/login", headers=headers, **content)
        assert answer.status_code in (403, 404, 415), (headers, answer.status_code)
        assert "set-cookie" not in answer.headers
    # Jupyter's own form, as a page of another site would post it.
    answer = server.anonymous().request("POST", "login", data={"password": person.password})
    assert answer.status_code in (403, 405)


def test_065_a_link_logs_nobody_out(server: IdentityServer, browsers: Browsers) -> None:
    browser = browsers["viewer"]
    assert browser.get("logout").status_code in (200, 405)  # a page that asks first
    assert browser.get("~/logout").status_code == 405
    assert browser.get("~/me").status_code == 200


# 66 -- who may read an answer


def test_066_no_origin_may_read_an_answer_by_default(
    server: IdentityServer, browsers: Browsers
) -> None:
    browser = browsers["viewer"]
    key = browser.post("~/me/keys", {"name": "k", "permissions": ["models:read"]})
    program = server.program(key.json()["key"])
    for client in (browser, program, server.anonymous()):
        for method, path in (
            ("GET", "~/me"),
            ("GET", "~/models"),
            ("OPTIONS", "~/models"),
            ("GET", "api/contents"),
            ("OPTIONS", "api/contents"),
            ("GET", "~/health/live"),
        ):
            answer = client.request(method, path, headers={"Origin": EVIL})
            assert "access-control-allow-origin" not in answer.headers, (method, path)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (TRUSTED, True),
        (f"{TRUSTED}.evil.com", False),
        ("https://trustedXexample.com", False),
        (f"https://evil.com/{TRUSTED}", False),
        ("http://trusted.example.com", False),
        (f"{TRUSTED}:444", False),
        ("null", False),
    ],
)
def test_066_a_configured_origin_is_matched_whole(
    origin: str, allowed: bool, narrow: IdentityServer
) -> None:
    answer = httpx.options(f"{narrow.url}uait/v1/me", headers={"Origin": origin}, trust_env=False)
    assert (answer.headers.get("access-control-allow-origin") == origin) is allowed
    assert "access-control-allow-credentials" not in answer.headers


# 67 -- DNS rebinding


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil:8888"])
def test_067_another_host_name_is_refused(
    host: str, server: IdentityServer, browsers: Browsers
) -> None:
    browser = browsers["viewer"]
    for path in ("~/health/live", "~/me", "lab", "api", "login"):
        answer = browser.get(path, headers={"Host": host})
        assert answer.status_code == 403, path


# 68 -- headers


def test_068_every_answer_has_the_security_headers(
    server: IdentityServer, browsers: Browsers
) -> None:
    browser = browsers["developer"]
    root = server.state.parent / "root"
    (root / "page.html").write_text("<script>1</script>")
    referer = {"Referer": f"{server.url}lab"}
    cases = [
        (browser, "GET", "lab", 200, {}),
        (browser, "GET", "api", 200, {}),
        (browser, "GET", "~/me", 200, {}),
        (browser, "GET", "~/collections/none", 404, {}),
        (browser, "GET", "~/users", 403, {}),
        (browser, "GET", "~/nothing-here", 404, {}),
        (browser, "PUT", "~/me", 405, {}),
        (browser, "GET", "nowhere", 404, {}),
        (browser, "GET", "static/none.js", 404, {}),
        (browser, "GET", "static/favicon.ico", 200, {}),
        (browser, "GET", "files/page.html", 200, referer),
        (browser, "GET", "nbconvert/html/none.ipynb", 404, referer),
        (browser, "GET", "api/contents/none", 404, {}),
        (server.anonymous(), "GET", "~/me", 401, {}),
        (server.anonymous(), "GET", "api/contents", 403, {}),
        (server.anonymous(), "GET", "lab", 302, {}),
        (server.anonymous(), "GET", "login", 200, {}),
        (server.anonymous(), "GET", "lab", 403, {"Host": "evil.example"}),
    ]
    for client, method, path, status, headers in cases:
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == status, (path, answer.status_code)
        for name, value in HEADERS.items():
            assert answer.headers.get(name) == value, (path, name)
        ours = path.startswith("~") and path != "~/nothing-here"
        policy = answer.headers["Content-Security-Policy"]
        if path.startswith(("files", "nbconvert")):
            assert policy.startswith(PAGE_POLICY), path
            assert "sandbox allow-scripts" in policy, path
        else:
            assert policy.startswith(API_POLICY if ours else "default-src "), path
        assert "'unsafe-inline'" not in policy.partition("style-src")[0], path
        if ours:
            assert answer.headers["Cache-Control"] == "no-store", path
        assert "server" not in answer.headers, path


# 69 -- websockets


@pytest.mark.parametrize("path", ["api/events/subscribe", "api/kernels/{kernel}/channels"])
def test_069_a_websocket_with_a_foreign_origin_is_refused(
    path: str, server: IdentityServer, browsers: Browsers
) -> None:
    browser = browsers["developer"]
    kernel = browser.post("api/kernels", {}).json()["id"] if "{kernel}" in path else ""
    parts = urlsplit(server.url)
    cookies = "; ".join(f"{c.name}={c.value}" for c in browser.http.cookies.jar)

    def handshake(origin: str, cookie: str) -> int:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
        headers = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Origin": origin,
            "Cookie": cookie,
        }
        connection.request("GET", f"{parts.path}{path.format(kernel=kernel)}", headers=headers)
        status = connection.getresponse().status
        connection.close()
        return status

    own = server.url.rstrip("/")
    assert handshake(own, cookies) == 101
    for origin in (EVIL, "null", "http://127.0.0.1:1"):
        assert handshake(origin, cookies) == 403
    assert handshake(own, "") in (302, 403)
    if kernel:
        browser.delete(f"api/kernels/{kernel}")


# 70 -- addresses in headers


def test_070_an_address_in_a_header_frees_nobody_from_the_limit(narrow: IdentityServer) -> None:
    statuses = []
    whole_window()
    for number in range(12):
        answer = httpx.get(
            f"{narrow.url}uait/v1/health/live",
            headers={
                "X-Forwarded-For": f"198.51.100.{number}",
                "X-Real-Ip": f"198.51.100.{number}",
                "Forwarded": f"for=198.51.100.{number}",
                "X-Forwarded-Proto": "https",
            },
            trust_env=False,
        )
        statuses.append(answer.status_code)
    assert statuses.count(200) <= 5
    assert statuses[-1] == 429


def test_070_a_trusted_proxy_tells_the_address_and_its_client_cannot(
    jupyter_folders: dict[str, str], tmp_path: Path
) -> None:
    with identity_server(
        tmp_path, f"--UaitApp.rate_limits={FEW!r}", "--UaitApp.trusted_proxies=127.0.0.1/32"
    ) as server:

        def probe(forwarded: str) -> int:
            return httpx.get(
                f"{server.url}uait/v1/health/live",
                headers={"X-Forwarded-For": forwarded},
                trust_env=False,
            ).status_code

        whole_window()
        for _ in range(6):
            last = probe("198.51.100.1")
        assert last == 429
        assert probe("198.51.100.2") == 200
        # The client behind the proxy writes other addresses in front of what the proxy adds.
        assert {probe(f"203.0.113.{number}, 198.51.100.1") for number in range(3)} == {429}


# 71 -- what is too much


def test_071_large_headers_are_refused(server: IdentityServer) -> None:
    for headers in (
        [b"X-Large: " + b"x" * 70_000],
        [b"Cookie: " + b"a=b; " * 20_000],
        [b"X-%d: y" % number for number in range(20_000)],
    ):
        request = [b"GET /uait/v1/health/live HTTP/1.1", b"Host: 127.0.0.1", *headers]
        status, _ = talk(server, request)
        assert status == 0 or 400 <= status < 500
    status, _ = talk(server, [b"GET /" + b"x" * 70_000 + b" HTTP/1.1", b"Host: 127.0.0.1"])
    assert status == 0 or 400 <= status < 500
    assert alive(server)


def test_071_bodies_beyond_the_bounds_are_refused_with_bounded_memory(
    server: IdentityServer, browsers: Browsers
) -> None:
    browser = browsers["viewer"]
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    deep = b'{"display_name":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    parts = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' for _ in range(100_000)
    )
    bodies: list[tuple[bytes, dict[str, str]]] = [
        (deep, JSON),
        (b'{"display_name":NaN}', JSON),
        (b'{"display_name":1e999}', JSON),
        (b'{"display_name":"\\ud800"}', JSON),
        (b'{"display_name":"a\\u0000b"}', JSON),
        (b'{"display_name":"a","display_name":"b"}', JSON),
        (b'{"display_name":"\xff"}', JSON),
        (b'{"display_name":"' + b"x" * 2_000_000 + b'"}', JSON),
        (gzip.compress(b"0" * 10_000_000), {**JSON, "Content-Encoding": "gzip"}),
        (parts + b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}),
    ]
    for body, headers in bodies:
        try:
            answer = browser.request("PATCH", "~/me", content=body, headers=headers)
        except httpx.TransportError:
            continue  # closed while the body was sent: as good
        assert 400 <= answer.status_code < 500, (body[:40], answer.status_code)
        assert len(answer.content) < 2000
    started = time.monotonic()
    assert browser.get("~/me").json()["display_name"] != "b"
    assert time.monotonic() - started < 5
    assert process.memory_info().rss - before < 150 * 1024 * 1024


def test_071_a_body_is_not_read_beyond_the_bound(server: IdentityServer) -> None:
    before = psutil.Process(server.pid).memory_info().rss
    for size in (20 * 1024 * 1024, 10**12):
        request = [
            b"POST /uait/v1/login HTTP/1.1",
            b"Host: 127.0.0.1",
            b"Content-Type: application/json",
            b"Content-Length: %d" % size,
        ]
        status, _ = talk(server, request, b"x" * min(size, 20 * 1024 * 1024))
        assert status == 0 or 400 <= status < 500
    assert psutil.Process(server.pid).memory_info().rss - before < 60 * 1024 * 1024
    assert alive(server)


def test_071_an_uncounted_body_is_bounded_too(server: IdentityServer) -> None:
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    request = [
        b"POST /uait/v1/login HTTP/1.1",
        b"Host: 127.0.0.1",
        b"Content-Type: application/json",
        b"Transfer-Encoding: chunked",
    ]
    status, _ = talk(server, request, chunk * 20 + b"0\r\n\r\n")
    assert status == 0 or 400 <= status < 500


@pytest.mark.parametrize(
    "query", ["x=1&x=2", "limit=1&limit=2", "limit=%00", "limit=%ff", "&".join(["a=1"] * 200)]
)
def test_071_query_strings_have_bounds_too(
    query: str, server: IdentityServer, browsers: Browsers
) -> None:
    browser = browsers["admin"]
    assert 400 <= browser.get(f"~/users?{query}").status_code < 500


# 72 -- limits


def drain(client: Api, path: str, most: int = 12) -> list[httpx.Response]:
    """Send until the limit answers."""
    answers = []
    for _ in range(most):
        answers.append(client.get(path))
        if answers[-1].status_code == 429:
            break
    return answers


def whole_window(seconds: float = 20.0) -> None:
    """Wait where the present window ends before a test does: its counts would fade."""
    left = 60 - time.time() % 60
    if left < seconds:
        time.sleep(left + 0.1)


def test_072_user_and_key_are_limited_independently(
    jupyter_folders: dict[str, str], tmp_path: Path
) -> None:
    limits = {"read": {"user": 8, "key": 4, "ip": 1000}}
    with identity_server(tmp_path, f"--UaitApp.rate_limits={limits!r}") as server:
        make = user_maker(server)
        ada, ben = make("viewer"), make("viewer")
        of_ada, of_ben = server.login(ada), server.login(ben)
        wish = {"name": "k", "permissions": ["models:read", "account:read"]}
        program = server.program(of_ada.post("~/me/keys", wish).json()["key"])

        whole_window()
        by_key = drain(program, "~/me")
        refusal = by_key[-1]
        assert len(by_key) == 5, "the key's own limit is 4"
        assert refusal.status_code == 429
        assert int(refusal.headers["Retry-After"]) >= 1
        assert refusal.headers["RateLimit-Remaining"] == "0"
        assert refusal.headers["Content-Type"] == "application/problem+json"
        assert by_key[0].headers["RateLimit-Limit"] == "4"

        by_user = drain(of_ada, "~/me")
        assert len(by_user) == 5, "the key has used 4 of the user's 8, its refusal none"
        assert by_user[-1].status_code == 429
        assert of_ben.get("~/me").status_code == 200


def test_072_an_address_is_limited_whoever_sends(narrow: IdentityServer) -> None:
    make = user_maker(narrow)
    browsers = [narrow.login(make("viewer")) for _ in range(4)]
    whole_window()
    statuses = [browser.get("~/me").status_code for browser in browsers for _ in range(3)]
    assert statuses == [200] * 9 + [429] * 3


def test_072_limits_survive_a_restart_with_redis(
    jupyter_folders: dict[str, str], tmp_path: Path, redis_url: str
) -> None:
    options = (f"--UaitApp.rate_limits={FEW!r}", f"--UaitApp.limits_url={redis_url}")
    with identity_server(tmp_path, *options) as server:
        assert drain(server.anonymous(), "~/jwks.json")[-1].status_code == 429
    with identity_server(tmp_path, *options) as server:
        assert server.anonymous().get("~/jwks.json").status_code == 429


# 73 -- methods


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "MADEUP", "get"])
def test_073_unknown_methods_are_refused(method: str, server: IdentityServer) -> None:
    for path in (b"/uait/v1/me", b"/uait/v1/health/live", b"/lab", b"/api/contents", b"/none"):
        status, answer = talk(
            server,
            [method.encode() + b" " + path + b" HTTP/1.1", b"Host: 127.0.0.1", b"X-Echo: canary"],
        )
        assert status in (400, 403, 404, 405) or status == 0
        assert b"canary" not in answer


@pytest.mark.parametrize("op", operations(), ids=lambda op: op.key)
def test_073_a_method_that_a_path_does_not_take_is_405(
    op: Any, server: IdentityServer, browsers: Browsers
) -> None:
    declared = {other.method for other in operations() if other.pattern == op.pattern}
    browser = browsers["admin"]
    for method in ("GET", *UNSAFE, "HEAD"):
        if method in declared:
            continue
        answer = browser.request(method, filled(op.path))
        assert answer.status_code == 405, (method, op.path, answer.text)
