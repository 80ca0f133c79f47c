"""Every route of the live server, as everyone who may ask: decided as it is written, nowhere else.

The routes come from the running server (UAIT, JupyterLab, Notebook, terminals, language servers),
what each needs from the policy, what each principal may from its role. Only the decision counts:
401, 403 or a redirect to the login, against anything else.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import websocket

from tests.security.conftest import Api, IdentityServer, Person, identity_server, user_maker
from tests.security.live_routes import VARIABLE
from uait_kernel.endpoint import parse_address
from uait_kernel.kernel_proof import proof_mac
from uait_server_ext.identity.jupyter_routes import OPEN, UNLISTED
from uait_server_ext.identity.principal import KERNEL_PERMISSIONS, PERMISSIONS, ROLES

SCOPE = frozenset({"models:read", "knowledge:read", "contents:read", "account:read"})
HELD: dict[str, frozenset[str]] = {
    "anonymous": frozenset(),
    "viewer": ROLES["viewer"],
    "analyst": ROLES["analyst"],
    "developer": ROLES["developer"],
    "admin": ROLES["admin"],
    "kernel": ROLES["developer"] & KERNEL_PERMISSIONS,
    "api-key": ROLES["admin"] & SCOPE,
}
# What may be asked of those who are refused, but must not be carried out here for who may do it.
HARMFUL = {
    ("POST", "/api/shutdown"): "ends the server: test_054_the_server_ends_for_administrators_only",
    ("POST", "/lab/api/build"): "builds JupyterLab for minutes",
    ("DELETE", "/lab/api/build"): "ends the build that was not started",
    ("POST", "/uait/v1/logout"): "ends the session with which the next routes are asked",
}
FOR_PERSONS = {("GET", "/uait/v1/me/factors")}
CONFIGURATION = """
c.ServerApp.jpserver_extensions = {"tests.security.live_routes": True}
c.UaitApp.route_permissions = {
    "tests.security.live_routes.Files": {"GET": "contents:read"},
    "tests.security.live_routes.Terminals": {"GET": "terminals:run"},
}
generous = {who: 1_000_000 for who in ("user", "key", "ip")}
c.UaitApp.rate_limits = {
    one: generous for one in ("read", "write", "inference", "ingest", "probe", "login")
}
"""


@dataclass
class Matrix:
    """The server, its routes, and a client for each principal."""

    server: IdentityServer
    rows: list[dict[str, Any]]
    people: dict[str, Person]
    callers: dict[str, Api] = field(default_factory=dict)
    kernel_id: str = ""


@pytest.fixture(scope="module")
def matrix(
    jupyter_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Matrix]:
    folder = tmp_path_factory.mktemp("matrix")
    config = folder / "config"
    config.mkdir()
    (config / "jupyter_server_config.py").write_text(CONFIGURATION, encoding="utf-8")
    environment = {"JUPYTER_CONFIG_DIR": str(config), VARIABLE: str(folder / "routes.json")}
    with identity_server(folder, environment=environment) as server:
        make = user_maker(server)
        people = {role: make(role) for role in ("viewer", "analyst", "developer", "admin")}
        made = Matrix(server, read(folder / "routes.json"), people)
        made.callers["anonymous"] = server.anonymous()
        for role, person in people.items():
            made.callers[role] = server.login(person)
        made.kernel_id, token = kernel_token(server, made.callers["developer"], jupyter_folders)
        made.callers["kernel"] = server.program(token)
        answer = made.callers["admin"].post(
            "~/me/keys", {"name": "key", "permissions": sorted(SCOPE)}
        )
        assert answer.status_code == 200, answer.text
        made.callers["api-key"] = server.program(answer.json()["key"])
        yield made


def read(written: Path) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 60
    while not written.exists():
        assert time.monotonic() < deadline, "the extension did not write the routes"
        time.sleep(0.1)
    rows: list[dict[str, Any]] = json.loads(written.read_text("utf-8"))
    assert isinstance(rows, list), rows
    return rows


def kernel_token(server: IdentityServer, owner: Api, folders: dict[str, str]) -> tuple[str, str]:
    """Start a kernel as its owner and do what the kernel does for its token."""
    started = owner.post("api/kernels", {"name": "python3"})
    assert started.status_code == 201, started.text
    id_ = started.json()["id"]
    connection = Path(folders["JUPYTER_RUNTIME_DIR"]) / f"kernel-{id_}.json"
    key = json.loads(connection.read_text("utf-8"))["key"].encode()
    proof = {"kernel_id": id_, "timestamp": int(time.time()), "nonce": "n" * 24}
    mac = proof_mac(key, **proof, audience=parse_address(server.url)[0].url)
    answer = server.anonymous().post("~/kernel-token", {**proof, "mac": mac})
    assert answer.status_code == 200, answer.text
    return id_, answer.json()["access_token"]


def refused(answer: httpx.Response) -> bool:
    """Tell whether an answer is a refusal: 401, 403, or the way to the login."""
    if answer.status_code in (301, 302, 303, 307):
        return "/login?next=" in answer.headers.get("Location", "")
    return answer.status_code in (401, 403)


def ask(caller: Api, row: dict[str, Any]) -> httpx.Response:
    """Send what a route takes, but nothing that it could carry out."""
    body: dict[str, Any] = {} if row["method"] in ("GET", "HEAD", "DELETE") else {"json": {}}
    # As a browser says where it comes from: Jupyter refuses pages that it is not told of.
    headers = {"Referer": caller.server.url}
    return caller.request(row["method"], row["path"], headers=headers, **body)


def expected(who: str, row: dict[str, Any]) -> bool:
    """Tell whether the policy lets a principal pass."""
    if row["needed"] == OPEN:
        return True
    if who in ("api-key", "kernel") and (
        # A program signs what is sensitive; these do not.
        row["sensitive"] or (row["method"], row["path"]) in FOR_PERSONS
    ):
        return False
    return {row["needed"], row["also"] or row["needed"]} <= HELD[who]


def test_054_the_live_router_is_what_the_policy_knows(matrix: Matrix) -> None:
    """All the parts are there, each route is on a list, and each names a permission that exists."""
    packages = {row["handler"].partition(".")[0] for row in matrix.rows}
    assert packages >= {
        "jupyter_lsp",
        "jupyter_server",
        "jupyter_server_terminals",
        "jupyterlab",
        "jupyterlab_server",
        "notebook",
        "uait_server_ext",
    }
    assert len(matrix.rows) > 150
    assert {row["needed"] for row in matrix.rows} <= {OPEN, *PERMISSIONS}
    unlisted = {
        row["handler"]
        for row in matrix.rows
        if row["needed"] == UNLISTED and (row["method"], row["path"]) not in HARMFUL
    }
    assert unlisted == {"tests.security.live_routes.Careless"}


@pytest.mark.parametrize("who", HELD)
def test_054_every_route_decides_as_it_is_written(matrix: Matrix, who: str) -> None:
    wrong = []
    for row in matrix.rows:
        if expected(who, row) and (row["method"], row["path"]) in HARMFUL:
            continue
        answer = ask(matrix.callers[who], row)
        # An open route may still refuse, as a login does; that nothing else is open is the point.
        if row["needed"] != OPEN and refused(answer) == expected(who, row):
            wrong.append(
                f"{row['method']} {row['path']} ({row['handler']}) needs {row['needed']}: "
                f"{answer.status_code} {answer.text[:200]!r}"
            )
    assert not wrong, f"{who}: {len(wrong)} of {len(matrix.rows)}\n" + "\n".join(wrong)


def test_054_nothing_answers_a_stranger_but_the_written_list(matrix: Matrix) -> None:
    """The same as above for the anonymous caller, from the other side: who answered is open."""
    answered = {
        (row["method"], row["handler"], row["needed"])
        for row in matrix.rows
        if not refused(ask(matrix.callers["anonymous"], row))
    }
    assert {needed for _, _, needed in answered} == {OPEN}


def test_054_an_unknown_route_is_nothing_for_a_stranger(matrix: Matrix) -> None:
    for path in ("api/none", "uait/v1/none", "none", "lab/api/none", "uait/v2/models"):
        for method in ("GET", "POST", "DELETE"):
            assert matrix.callers["anonymous"].request(method, path).status_code in (
                302,
                401,
                403,
                404,
            )


def test_054_an_unlisted_handler_is_for_administrators(matrix: Matrix) -> None:
    """A handler of another extension that checks nothing itself."""
    for who, caller in matrix.callers.items():
        answer = caller.get("careless/open")
        assert refused(answer) == (who != "admin"), who
        assert (answer.text == "reached") == (who == "admin"), who


def test_054_a_refusal_is_an_answer(matrix: Matrix) -> None:
    """JupyterLab's list of licences would let whoever is refused wait for ever."""
    for who in ("anonymous", "kernel"):
        assert matrix.callers[who].get("lab/api/licenses/", timeout=10).status_code == 403
    assert matrix.callers["viewer"].get("lab/api/licenses/").status_code == 200


def test_055_a_viewer_changes_nothing_of_jupyterlab(matrix: Matrix) -> None:
    viewer = matrix.callers["viewer"]
    theme = "lab/api/settings/@jupyterlab/apputils-extension:themes"
    for method, path, body in (
        ("POST", "lab/api/extensions", {"cmd": "install", "extension_name": "x"}),
        ("POST", "lab/api/extensions", {"cmd": "disable", "extension_name": "uait"}),
        ("POST", "lab/api/plugins", {"cmd": "disable", "plugin_name": "x"}),
        ("POST", "lab/api/build", {}),
        ("DELETE", "lab/api/build", None),
        ("PUT", theme, {"raw": "{}"}),
        ("PUT", "lab/api/workspaces/default", {"data": {}, "metadata": {"id": "default"}}),
        ("DELETE", "lab/api/workspaces/default", None),
        ("PATCH", "api/config/notebook", {"x": 1}),
        ("PUT", "api/config/notebook", {"x": 1}),
    ):
        options = {} if body is None else {"json": body}
        answer = viewer.request(method, path, **options)
        assert answer.status_code == 403, f"{method} {path}: {answer.status_code}"
    assert viewer.get(theme).status_code == 200
    # A developer changes the settings, but installs nothing.
    developer = matrix.callers["developer"]
    assert developer.request("PUT", theme, json={"raw": "{}"}).status_code == 204
    body = {"cmd": "install", "extension_name": "x"}
    assert developer.post("lab/api/extensions", body).status_code == 403


def test_056_a_viewer_runs_no_code(matrix: Matrix) -> None:
    """No kernel, no terminal, no language server, no written file that somebody else would run."""
    kernel = matrix.kernel_id
    terminal = matrix.callers["developer"].post("api/terminals").json()["name"]
    sockets = (
        f"api/kernels/{kernel}/channels",
        f"terminals/websocket/{terminal}",
        "api/events/subscribe",
        "lsp/ws/none",
    )
    for who in ("anonymous", "viewer", "analyst", "api-key", "kernel"):
        for path in sockets:
            assert handshake(matrix, who, path) in (302, 401, 403), f"{who}: {path}"
    for path in sockets[:3]:
        assert handshake(matrix, "developer", path) == 101, path
    viewer = matrix.callers["viewer"]
    file = {"type": "file", "format": "text", "content": "x"}
    for method, path, body in (
        ("POST", "api/kernels", {"name": "python3"}),
        ("POST", f"api/kernels/{kernel}/restart", {}),
        ("POST", f"api/kernels/{kernel}/interrupt", {}),
        ("DELETE", f"api/kernels/{kernel}", None),
        ("POST", "api/sessions", {"path": "x.ipynb", "type": "notebook", "kernel": {"id": kernel}}),
        ("POST", "api/terminals", {}),
        ("PUT", "api/contents/x.py", file),
        ("POST", "api/contents", {"type": "file", "ext": ".py"}),
        ("PATCH", "api/contents/x.py", {"path": "y.py"}),
        ("DELETE", "api/contents/x.py", None),
        ("POST", "api/contents/x.ipynb/trust", {}),
        ("POST", "api/contents/x.ipynb/checkpoints", {}),
        ("POST", "nbconvert/html", {"content": {}}),
        ("POST", "api/shutdown", {}),
    ):
        answer = viewer.request(method, path, **({} if body is None else {"json": body}))
        assert answer.status_code == 403, f"{method} {path}: {answer.status_code}"
    # Nothing of it happened.
    assert matrix.callers["developer"].get(f"api/kernels/{kernel}").status_code == 200
    assert matrix.callers["developer"].get("api/contents/x.py").status_code == 404
    matrix.callers["developer"].delete(f"api/terminals/{terminal}")


def handshake(matrix: Matrix, who: str, path: str) -> int:
    """Open a WebSocket as a principal; return the status of the handshake."""
    caller = matrix.callers[who]
    server = matrix.server.url
    headers = [f"{k}: {v}" for k, v in caller.http.headers.items() if k == "authorization"]
    jar = "; ".join(f"{cookie.name}={cookie.value}" for cookie in caller.http.cookies.jar)
    parts = urlsplit(server)
    # Connected beforehand, or it would ask a proxy that the environment names.
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), 20)
    try:
        opened = websocket.create_connection(
            f"{server.replace('http', 'ws', 1)}{path}",
            header=headers,
            cookie=jar or None,
            origin=server.rstrip("/"),
            timeout=20,
            socket=connection,
            redirect_limit=0,
        )
    except websocket.WebSocketBadStatusException as error:
        return int(error.status_code)
    except websocket.WebSocketException as error:
        if "Redirect" not in str(error):
            raise
        return 302
    status: int = opened.status
    opened.close()
    return status


def test_062_each_of_two_subclasses_is_checked_for_itself(matrix: Matrix) -> None:
    """Jupyter's bare `@authorized` would check the second by the resource of the first."""
    viewer = matrix.callers["viewer"]
    assert viewer.get("careless/files").text == "reached"
    assert viewer.get("careless/terminals").status_code == 403
    assert viewer.get("careless/files").text == "reached"
    assert matrix.callers["admin"].get("careless/files").text == "reached"


def test_081_files_with_script_open_in_a_sandbox(matrix: Matrix) -> None:
    """HTML and SVG that somebody put there run, if at all, in an origin of their own."""
    developer = matrix.callers["developer"]
    script = "<script>parent.document.title = 'reached'</script>"
    for name, text in {
        "page.html": f"<!doctype html>{script}",
        "image.svg": f'<svg xmlns="http://www.w3.org/2000/svg">{script}</svg>',
    }.items():
        body = {"type": "file", "format": "text", "content": text}
        assert developer.put(f"api/contents/{name}", body).status_code == 201
        for path in (f"files/{name}", f"view/{name}"):
            answer = matrix.callers["viewer"].get(path, headers={"Referer": matrix.server.url})
            if path.startswith("view/"):
                assert "sandbox=" in answer.text or answer.status_code >= 400
                continue
            policy = answer.headers["Content-Security-Policy"]
            assert "sandbox" in policy, policy
            assert "allow-same-origin" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_054_the_server_ends_for_administrators_only(
    jupyter_folders: dict[str, str], tmp_path: Path
) -> None:
    with identity_server(tmp_path) as server:
        make = user_maker(server)
        assert server.login(make("developer")).post("api/shutdown").status_code == 403
        assert server.process.poll() is None
        server.login(make("admin")).post("api/shutdown")
        assert server.process.wait(60) == 0
