"""UAIT's login cannot be configured away: the server stays closed, or it does not start.

Jupyter's extension mechanism fails open: it logs what goes wrong in an extension and starts without
it. So everything that could remove, break or replace UAIT's identity is tried here on real servers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.security.careless_extensions import VARIABLE
from tests.security.conftest import START_SECONDS, IdentityServer, identity_server

# What a person's own configuration may say; nothing of it takes effect.
CONFIGURATION = """
c.ServerApp.identity_provider_class = "jupyter_server.auth.PasswordIdentityProvider"
c.ServerApp.authorizer_class = "jupyter_server.auth.AllowAllAuthorizer"
c.ServerApp.allow_unauthenticated_access = True
c.ServerApp.disable_check_xsrf = True
c.ServerApp.trust_xheaders = True
c.ServerApp.token = "abc"
c.ServerApp.password = ""
c.IdentityProvider.token = "abc"
c.PasswordIdentityProvider.token = "abc"
c.UaitIdentityProvider.token = "abc"
c.UaitServerApp.identity_provider_class = "jupyter_server.auth.PasswordIdentityProvider"
"""
ENVIRONMENT = {"JUPYTER_TOKEN": "abc", "PASSWORD": "abc"}
ARGUMENTS = (
    "--IdentityProvider.token=abc",
    "--PasswordIdentityProvider.token=abc",
    "--ServerApp.identity_provider_class=jupyter_server.auth.PasswordIdentityProvider",
    "--ServerApp.authorizer_class=jupyter_server.auth.AllowAllAuthorizer",
    "--ServerApp.allow_unauthenticated_access=True",
    "--ServerApp.disable_check_xsrf=True",
)
CLOSED = ("api/contents", "api/kernels", "api/me", "api/terminals", "lab/api/settings/", "metrics")


def configured(
    folder: Path, text: str, extensions: dict[str, bool] | None = None
) -> dict[str, str]:
    """Write a person's configuration; return the environment in which it is read."""
    config = folder / "config"
    (config / "jupyter_server_config.d").mkdir(parents=True)
    (config / "jupyter_server_config.py").write_text(text, encoding="utf-8")
    if extensions:
        part = {"ServerApp": {"jpserver_extensions": extensions}}
        (config / "jupyter_server_config.d" / "own.json").write_text(json.dumps(part), "utf-8")
    return {"JUPYTER_CONFIG_DIR": str(config)}


def assert_closed(server: IdentityServer) -> None:
    """See that neither nobody nor the planted token gets in, and that UAIT answers."""
    for caller in (server.anonymous(), server.program("abc")):
        for path in CLOSED:
            assert caller.get(path).status_code in (401, 403), path
    stranger = server.anonymous()
    for path in CLOSED:
        assert stranger.get(path, params={"token": "abc"}).status_code in (401, 403), path
        headers = {"Authorization": "token abc"}
        assert stranger.get(path, headers=headers).status_code in (401, 403), path
    assert not [name for name in stranger.http.cookies if "username" in name]
    assert stranger.get("~/login/methods").status_code == 200


def refusal(
    folder: Path, environment: dict[str, str], *arguments: str, command: str = "lab"
) -> str:
    """Start a server that must not start; return its log."""
    root = folder / "root"
    root.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from uait_server_ext.cli import main; main()", command),
            *("--no-browser", "--port=0", "--ip=127.0.0.1", f"--ServerApp.root_dir={root}"),
            *(
                []
                if any("data_dir" in a for a in arguments)
                else [f"--UaitApp.data_dir={folder / 'state'}"]
            ),
            *(["--allow-root"] if os.geteuid() == 0 else []),
            *arguments,
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    log = done.stdout + done.stderr
    assert done.returncode != 0, log[-3000:]
    assert "is running at" not in log, log[-3000:]
    return log


def test_063_no_configuration_removes_the_login(
    jupyter_folders: dict[str, str], tmp_path: Path
) -> None:
    """Files, command line and environment together: the server stays closed."""
    extensions = {"uait_server_ext": False}
    environment = configured(tmp_path, CONFIGURATION, extensions) | ENVIRONMENT
    with identity_server(tmp_path, *ARGUMENTS, environment=environment) as server:
        assert_closed(server)
        runtime = Path(jupyter_folders["JUPYTER_RUNTIME_DIR"]) / f"jpserver-{server.pid}.json"
        assert json.loads(runtime.read_text("utf-8"))["token"] == ""
        # Forms of other sites are still refused, and nobody believes a forwarded address.
        answer = server.anonymous().post(
            "~/login", {"username": "a", "password": "b"}, headers={"Origin": "http://evil.example"}
        )
        assert answer.status_code in (403, 404)


def test_063_the_extension_switched_off_on_the_command_line(
    jupyter_folders: dict[str, str], tmp_path: Path
) -> None:
    off = "--ServerApp.jpserver_extensions={'uait_server_ext': False}"
    with identity_server(tmp_path, off) as server:
        assert_closed(server)


@pytest.mark.parametrize(
    ("careless", "reasons"),
    [
        ("other provider", ["identity provider"]),
        ("other provider in the settings", ["identity provider"]),
        (
            "plain handler, open routes, no cross-site check, other authoriser in the settings",
            ["careless_extensions.Plain", "without a login", "cross-site", "authoriser"],
        ),
    ],
)
def test_063_an_extension_that_opens_the_door(
    jupyter_folders: dict[str, str], tmp_path: Path, careless: str, reasons: list[str]
) -> None:
    extensions = {"tests.security.careless_extensions": True}
    environment = configured(tmp_path, "", extensions) | {VARIABLE: careless}
    log = refusal(tmp_path, environment)
    said = log.partition("UAIT refuses to start")[2]
    assert not [reason for reason in reasons if reason not in said], log[-3000:]


def test_063_a_module_of_ours_that_cannot_be_imported(
    jupyter_folders: dict[str, str], tmp_path: Path
) -> None:
    """As after half an installation."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import sys\nsys.modules['uait_server_ext.identity.sessions'] = None\n", encoding="utf-8"
    )
    path = os.pathsep.join([str(broken), *filter(None, [os.environ.get("PYTHONPATH")])])
    refusal(tmp_path, {"PYTHONPATH": path})


def test_063_routes_that_cannot_be_made(jupyter_folders: dict[str, str], tmp_path: Path) -> None:
    """Jupyter logs an extension's failure and starts without its routes; here it does not start."""
    broken = "import uait_server_ext.app\nuait_server_ext.app.routes = lambda declared: 1 / 0\n"
    log = refusal(tmp_path, configured(tmp_path, broken))
    assert "UAIT refuses to start" in log, log[-3000:]


def test_063_settings_and_state_that_cannot_be_used(
    jupyter_folders: dict[str, str], tmp_path: Path
) -> None:
    """At the same time, as each start takes seconds."""
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "uait.db").write_bytes(b"not a database" * 1000)
    unusable = (
        "--UaitApp.trusted_proxies=everyone",
        "--UaitApp.second_factor_required_roles=king",
        f"--UaitApp.data_dir={tmp_path / 'file'}",
        f"--UaitApp.data_dir={tmp_path / 'damaged'}",
    )

    def start(numbered: tuple[int, str]) -> str:
        number, argument = numbered
        return refusal(tmp_path / str(number), {}, argument, command="serve")

    with ThreadPoolExecutor(2) as pool:
        for argument, log in zip(unusable, pool.map(start, enumerate(unusable)), strict=True):
            assert "UAIT refuses to start" in log, f"{argument}\n{log[-3000:]}"
