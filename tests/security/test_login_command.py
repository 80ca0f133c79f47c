"""`uait login`, `whoami`, `logout` against a running server, and who else uses the stored login."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.security.conftest import Api, IdentityServer, Person

COMMAND = "from uait_server_ext.commands.session import app; app()"
Make = Callable[..., Person]


class Shell:
    """A person's shell with a data folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.credentials = folder / "data" / "uait" / "credentials.json"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("UAIT_")}
        self.environment = {
            **kept,
            "JUPYTER_DATA_DIR": str(folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def approve(browser: Api, process: subprocess.Popen[str], decision: str) -> tuple[int, str, str]:
    """Read the code that the command shows, decide, and return how the command ends."""
    assert process.stdout
    line = process.stdout.readline()
    found = re.search(r"type the code ([A-Z]{4}-[A-Z]{4})", line)
    assert found, line
    answer = browser.post("~/me/devices", {"user_code": found[1], "decision": decision})
    assert answer.status_code == 204
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_person_logs_in_looks_and_logs_out(
    server: IdentityServer, make_user: Make, shell: Shell
) -> None:
    person = make_user("viewer")
    browser = server.login(person)
    status, out, err = approve(browser, shell.start("login", "--url", server.url), "approve")
    assert (status, err) == (0, "")
    assert f"logged in at {server.url}" in out
    assert shell.credentials.stat().st_mode & 0o777 == 0o600
    (stored,) = json.loads(shell.credentials.read_text()).values()
    assert stored["refresh_token"] not in out

    status, out, _ = shell.run("whoami")
    assert status == 0
    assert out.startswith(f"{person.username} (")
    assert "users:write" not in out

    client = (
        "from uait_kernel.discovery import find_server\n"
        "from uait_kernel.client import Client\n"
        "print(Client.of(find_server()).models() is not None)"
    )
    environment = {**shell.environment, "UAIT_URL": server.url}
    code = subprocess.run(
        [sys.executable, "-c", client], env=environment, capture_output=True, text=True, timeout=60
    )
    assert code.stdout == "True\n", code.stderr

    status, out, _ = shell.run("logout")
    assert (status, out) == (0, f"logged out at {server.url}\n")
    assert json.loads(shell.credentials.read_text()) == {}
    assert server.program(stored["access_token"]).get("~/me").status_code == 401
    assert browser.get("~/me/devices").json() == {"devices": []}
    status, out, err = shell.run("whoami", "--url", server.url)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1


def test_a_denied_login_says_so(server: IdentityServer, make_user: Make, shell: Shell) -> None:
    browser = server.login(make_user("viewer"))
    process = shell.start("login", "--url", server.url, "--scope", "models:run")
    status, out, err = approve(browser, process, "deny")
    assert (status, out) == (2, "")
    assert err == "uait: The login was denied.\n"
    assert not shell.credentials.exists()


def test_mistakes_are_one_line(server: IdentityServer, shell: Shell) -> None:
    for arguments, expected in (
        (("login", "--url", "ftp://example.org"), 2),
        (("login", "--url", "http://127.0.0.1:1/"), 3),
        (("login", "--url", server.url, "--scope", "everything"), 2),
        (("logout", "--url", server.url), 0),
    ):
        status, out, err = shell.run(*arguments)
        assert status == expected, err
        assert (out + err).count("\n") == 1
