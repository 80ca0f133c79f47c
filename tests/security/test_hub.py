"""Under a real JupyterHub the hub is the identity, and UAIT's roles hold on each server."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.security.tools import tool
from uait_server_ext.errors import InvalidInput

START_SECONDS = 240.0
OWNER, VISITOR, STRANGER, CHIEF = "ada", "carol", "bob", "root-of-hub"

HUB = """
import json, os
given = json.loads(os.environ["HUB_TEST"])
c.JupyterHub.bind_url = given["url"]
c.JupyterHub.hub_port = given["hub_port"]
c.JupyterHub.db_url = "sqlite:///" + given["folder"] + "/hub.sqlite"
c.JupyterHub.cookie_secret_file = given["folder"] + "/cookie_secret"
c.ConfigurableHTTPProxy.command = [given["proxy"]]
c.ConfigurableHTTPProxy.api_url = given["proxy_api"]
c.ConfigurableHTTPProxy.pid_file = given["folder"] + "/proxy.pid"
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {given["chief"]}
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = given["folder"] + "/home/{username}"
c.Spawner.start_timeout = c.Spawner.http_timeout = 240
c.Spawner.args = given["arguments"]
c.Spawner.env_keep = ["PATH", "PYTHONPATH", "COVERAGE_PROCESS_CONFIG", "UAIT_MODEL_CACHE"]
c.Spawner.environment = {"JUPYTER_CONFIG_DIR": given["config"], "JUPYTER_PREFER_ENV_PATH": "0"}
c.JupyterHub.load_groups = {"readers": {"users": [given["visitor"]]}}
c.JupyterHub.services = [{"name": "tests", "api_token": given["token"]}]
c.JupyterHub.load_roles = [
    {"name": "tests", "services": ["tests"],
     "scopes": ["admin:users", "admin:servers", "tokens", "access:servers"]},
    {"name": "readers", "groups": ["readers"],
     "scopes": ["access:servers!user=" + given["owner"]]},
]
"""

# What a user's own file may say: it removes nothing.
SERVER = """
c.ServerApp.jpserver_extensions = {"uait_server_ext": True}
c.ServerApp.identity_provider_class = "jupyter_server.auth.PasswordIdentityProvider"
c.ServerApp.authorizer_class = "jupyter_server.auth.AllowAllAuthorizer"
c.ServerApp.allow_unauthenticated_access = True
c.IdentityProvider.token = "abc"
c.UaitApp.hub_roles = {"owner": "admin", "group:readers": "viewer"}
"""


@dataclass
class Hub:
    """A running hub and the tokens of its people."""

    url: str
    log: Path
    service_token: str = field(repr=False)
    tokens: dict[str, str] = field(default_factory=dict, repr=False)

    def hub(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Call the hub's own API as its administrator."""
        return httpx.request(
            method,
            f"{self.url}/hub/api/{path}",
            headers={"Authorization": f"token {self.service_token}"},
            json=body,
            timeout=60,
            trust_env=False,
        )

    def call(
        self, who: str | None, method: str, path: str, body: Any = None, token: str | None = None
    ) -> httpx.Response:
        """Call the owner's server as one of the hub's people, or as nobody."""
        token = token or (self.tokens[who] if who else None)
        return httpx.request(
            method,
            f"{self.url}/user/{OWNER}/{path}",
            headers={"Authorization": f"token {token}"} if token else {},
            json=body,
            timeout=60,
            trust_env=False,
        )


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    config = folder / "config"
    config.mkdir()
    (config / "jupyter_server_config.py").write_text(SERVER, encoding="utf-8")
    (folder / "hub.py").write_text(HUB, encoding="utf-8")
    running = Hub(f"http://127.0.0.1:{free_port()}", folder / "hub.log", secrets.token_hex(32))
    given = {
        "url": running.url,
        "hub_port": free_port(),
        "proxy": tool("configurable-http-proxy"),
        "proxy_api": f"http://127.0.0.1:{free_port()}",
        "folder": str(folder),
        "config": str(config),
        "token": running.service_token,
        "owner": OWNER,
        "visitor": VISITOR,
        "chief": CHIEF,
        "arguments": [
            f"--UaitApp.data_dir={folder / 'state'}",
            # The command line removes nothing either.
            "--ServerApp.authorizer_class=jupyter_server.auth.AllowAllAuthorizer",
            *(["--allow-root"] if os.geteuid() == 0 else []),
        ],
    }
    with running.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", f"--config={folder / 'hub.py'}"],
            cwd=folder,
            env={
                **os.environ,
                "HUB_TEST": json.dumps(given),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "UAIT_MODEL_CACHE": str(model_cache),
                "CONFIGPROXY_AUTH_TOKEN": secrets.token_hex(16),
            },
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait(running, process)
        for name in (OWNER, VISITOR, STRANGER, CHIEF):
            running.hub("POST", f"users/{name}")
            answer = running.hub("POST", f"users/{name}/tokens", {})
            assert answer.status_code == 201, answer.text
            running.tokens[name] = answer.json()["token"]
        start_server(running)
        yield running
    finally:
        running.hub("DELETE", f"users/{OWNER}/server")
        process.terminate()
        process.wait(20)


def wait(running: Hub, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if running.hub("GET", "users").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError(running.log.read_text("utf-8", "replace")[-4000:])


def start_server(running: Hub) -> None:
    assert running.hub("POST", f"users/{OWNER}/server").status_code in (201, 202)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        server = running.hub("GET", f"users/{OWNER}").json()["servers"].get("")
        if server is None:
            break
        if server["ready"]:
            return
        time.sleep(0.2)
    raise AssertionError(running.log.read_text("utf-8", "replace")[-6000:])


def test_102_the_hubs_token_is_the_login_and_the_owner_may_all(hub: Hub) -> None:
    me = hub.call(OWNER, "GET", "api/me")
    assert me.status_code == 200
    assert me.json()["identity"]["username"] == OWNER
    assert "principal" not in me.json()["identity"]
    file = {"type": "file", "format": "text", "content": "x"}
    assert hub.call(OWNER, "PUT", "api/contents/note.txt", file).status_code == 201
    assert hub.call(OWNER, "GET", "uait/v1/models").status_code == 200


def test_102_another_user_of_the_hub_is_refused(hub: Hub) -> None:
    for path in ("api/me", "api/contents", "lab/api/settings/"):
        assert hub.call(STRANGER, "GET", path).status_code == 403, path
    assert hub.call(STRANGER, "GET", "uait/v1/models").status_code == 401


def test_102_an_administrator_of_the_hub_has_the_role_that_is_written(hub: Hub) -> None:
    """The hub lets its administrators in everywhere; without a line here they may do nothing."""
    for path in ("api/contents", "uait/v1/models", "lab/api/settings/"):
        assert hub.call(CHIEF, "GET", path).status_code == 403, path


def test_102_nobody_is_sent_to_the_hub(hub: Hub) -> None:
    assert hub.call(None, "GET", "api/contents").status_code == 403
    assert hub.call(None, "GET", "uait/v1/models").status_code in (401, 403)
    page = hub.call(None, "GET", "lab")
    assert page.status_code == 302
    assert "/hub/api/oauth2/authorize" in page.headers["Location"]
    assert hub.call(None, "GET", "api/contents", token="abc").status_code == 403


def test_102_our_own_login_is_off(hub: Hub) -> None:
    answer = hub.call(OWNER, "GET", "login")
    assert answer.status_code in (302, 404)
    for path, body in {
        "uait/v1/login": {"username": OWNER, "password": "correct horse battery staple"},
        "uait/v1/setup": {"secret": "x" * 40, "username": "eve", "password": "y" * 20},
    }.items():
        answer = hub.call(OWNER, "POST", path, body)
        assert answer.status_code == 503, answer.text
        assert "Set-Cookie" not in answer.headers


def test_102_a_guest_has_the_role_of_their_group(hub: Hub) -> None:
    assert hub.call(VISITOR, "GET", "api/contents").status_code == 200
    assert hub.call(VISITOR, "GET", "uait/v1/models").status_code == 200
    refused = [
        ("PUT", "api/contents/theirs.txt", {"type": "file", "format": "text", "content": "x"}),
        ("POST", "api/kernels", {}),
        ("POST", "api/terminals", {}),
        ("POST", "api/shutdown", {}),
        ("POST", "lab/api/extensions", {"cmd": "install", "extension_name": "x"}),
        ("POST", "lab/api/plugins", {"cmd": "disable", "plugin_name": "x"}),
        ("PUT", "lab/api/settings/@jupyterlab/apputils-extension:themes", {"raw": "{}"}),
        ("DELETE", "uait/v1/collections/none", None),
    ]
    for method, path, body in refused:
        answer = hub.call(VISITOR, method, path, body)
        assert answer.status_code == 403, f"{method} {path}: {answer.status_code}"


def test_102_roles_that_are_not_understood_are_refused() -> None:
    from uait_server_ext.identity.jupyter_hub import HubRoles

    for wrong in ({"owner": "king"}, {"ada": "admin"}, {"user": "admin"}, {"group:": "viewer"}):
        with pytest.raises(InvalidInput):
            HubRoles(wrong, OWNER)


def test_102_a_service_or_group_named_like_the_owner_is_not_the_owner() -> None:
    from uait_server_ext.identity.jupyter_hub import HubRoles

    roles = HubRoles({"owner": "admin", "admin": "admin", "group:readers": "viewer"}, OWNER)
    assert roles.principal({"name": OWNER, "kind": "user"}).may("server:admin")
    for stranger in (
        {"name": OWNER, "kind": "service", "admin": True, "groups": ["readers"]},
        {"name": STRANGER, "kind": "user", "groups": [OWNER, "owner", "admin"]},
        {"name": STRANGER, "kind": "user", "admin": "yes"},
    ):
        assert not roles.principal(stranger).permissions
