"""Case 73, second half: schemathesis with all its checks against a running server."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from uait_server_ext.identity.principal import PERMISSIONS
from uait_server_ext.resilience.limits import RATES

from .conftest import identity_server, user_maker
from .tools import tool

PLENTY = {name: {"user": 10**6, "key": 10**6, "ip": 10**6} for name in RATES}

CONFIGURATION = """
# A request of the right shape may still mean nothing: a link that was used, an unknown name.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", 400, 401, 403, 404, 409, 422, 429, 503]
"""


def test_073_schemathesis_with_all_checks_finds_nothing(
    jupyter_folders: dict[str, str], tmp_path: Path
) -> None:
    program = tool("schemathesis")
    with identity_server(
        tmp_path, f"--UaitApp.rate_limits={PLENTY!r}", "--UaitApp.chat_model=echo"
    ) as server:
        admin = server.login(user_maker(server)("admin"))
        wish = {"name": "schemathesis", "permissions": sorted(PERMISSIONS)}
        key = admin.post("~/me/keys", wish).json()["key"]
        (tmp_path / "openapi.json").write_text(admin.get("~/openapi.json").text)
        (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        command = [program, "--config-file", str(tmp_path / "schemathesis.toml")]
        options = {
            "--url": server.url.rstrip("/"),
            "--checks": "all",
            "--header": f"Authorization: Bearer {key}",
            "--max-examples": "8",
            "--phases": "coverage,fuzzing",
            "--seed": "1",
        }
        run = subprocess.run(
            [
                *command,
                "run",
                str(tmp_path / "openapi.json"),
                "--continue-on-failure",
                "--no-color",
                *(part for option in options.items() for part in option),
            ],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert run.returncode == 0, (run.stdout + run.stderr)[-12_000:]
        assert "Traceback" not in server.logged()
