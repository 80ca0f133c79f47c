"""`uait doctor --security` finds what does not hold, says how it looked, and exits non-zero."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update

from tests.security.conftest import IdentityServer, Person
from uait_server_ext.doctor import kernels, live, local, people
from uait_server_ext.doctor.live import Running
from uait_server_ext.doctor.report import Control, Finding, Subject, examine
from uait_server_ext.doctor.versions import FLOORS, Floor
from uait_server_ext.events.record import AuditEvent
from uait_server_ext.events.tables import audit_events
from uait_server_ext.identity.service import IdentitySettings
from uait_server_ext.identity.tables import links
from uait_server_ext.services import Settings, open_foundation, open_identity

CONTROLS = (*local.CONTROLS, *people.CONTROLS, *live.CONTROLS, *kernels.CONTROLS)
# Not what the tests are about: they run as root where they run in a container, and make
# administrators without a second factor.
ROOT = ["not-root", "memory"] if os.geteuid() == 0 else []
BORNE = ["admin-second-factor", *ROOT]


def doctor(server: IdentityServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "uait_server_ext", "doctor", "--security"),
            *(f"--data-dir={server.state}", f"--url={server.url}", *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_103_a_running_server_holds_every_control(
    server: IdentityServer, people: dict[str, Person]
) -> None:
    """Files, database, the answers of the server, a kernel of it: all examined just now."""
    done = doctor(server, "--json", *(f"--accept={name}" for name in BORNE))
    report = json.loads(done.stdout)
    wrong = [f for f in report["findings"] if f["outcome"] == "fail"]
    assert not wrong, wrong
    assert done.returncode == 0, done.stderr
    assert [f["control"] for f in report["findings"]] == [control.name for control in CONTROLS]
    assert all(f["how"] and f["found"] for f in report["findings"])
    skipped = {f["control"] for f in report["findings"] if f["outcome"] == "not applicable"}
    assert skipped <= {"signing-keys"}
    assert report["server"] == server.url
    # What it borrowed has ended, and it is in the log that it did so.
    audit = server.login(people["admin"]).get("~/audit", params={"action": "doctor.probe"})
    assert audit.status_code == 200
    assert len(audit.json()["events"]) >= 3


def test_103_a_failed_control_is_listed_and_the_exit_is_not_zero(
    server: IdentityServer, people: dict[str, Person]
) -> None:
    done = doctor(server)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL" in done.stdout
    assert "admin-second-factor" in done.stdout
    assert people["admin"].username in done.stdout.replace("\n", "")


def test_103_a_control_that_is_unknown_cannot_be_accepted(server: IdentityServer) -> None:
    done = doctor(server, "--accept=everything")
    assert done.returncode == 2
    assert "no control everything" in done.stderr


@pytest.fixture
def subject(tmp_path: Path) -> Iterator[Subject]:
    state = tmp_path / "state"
    foundation = open_foundation(Settings(data_dir=state, model_cache=state, root_dir=tmp_path))
    identity = open_identity(IdentitySettings(), foundation)
    yield Subject(state, foundation, identity, None)
    foundation.close()


def found(subject: Subject, *names: str) -> dict[str, Finding]:
    """Return the findings about some controls."""
    chosen = [control for control in CONTROLS if control.name in names]
    assert len(chosen) == len(names)
    report = asyncio.run(examine(subject, chosen))
    return {finding.control: finding for finding in report.findings}


def test_103_files_that_others_can_read_fail(subject: Subject) -> None:
    both = ("state-private", "master-key-private")
    assert {f.outcome for f in found(subject, *both).values()} == {"pass"}
    (subject.state / "keys" / "master.key").chmod(0o640)
    failed = found(subject, *both)
    assert {f.outcome for f in failed.values()} == {"fail"}
    assert "master.key" in failed["master-key-private"].found


def test_103_an_edited_audit_log_fails(subject: Subject) -> None:
    event = AuditEvent(action="login.password", outcome="refused", principal="ada")
    for _ in range(3):
        asyncio.run(subject.foundation.audit.record(event))
    assert found(subject, "audit-log")["audit-log"].outcome == "pass"
    change = update(audit_events).where(audit_events.c.sequence == 2).values(outcome="ok")
    subject.foundation.database.write_now(lambda connection: connection.execute(change))
    assert found(subject, "audit-log")["audit-log"].outcome == "fail"


def test_103_a_server_without_an_administrator_fails(subject: Subject) -> None:
    finding = found(subject, "admin-second-factor")["admin-second-factor"]
    assert finding.outcome == "fail"
    assert "setup" in finding.found


def test_103_a_link_that_lasts_fails(subject: Subject) -> None:
    assert found(subject, "links-expire")["links-expire"].outcome == "pass"
    lasting = insert(links).values(
        secret_sha256="0" * 64,
        purpose="setup",
        created_at=time.time(),
        expires_at=time.time() + 1e9,
    )
    subject.foundation.database.write_now(lambda connection: connection.execute(lasting))
    assert found(subject, "links-expire")["links-expire"].outcome == "fail"


def test_103_an_old_version_fails(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FLOORS, "tornado", Floor("999", "a test"))
    finding = found(subject, "versions")["versions"]
    assert finding.outcome == "fail"
    assert "tornado" in finding.found


def test_103_without_a_server_what_it_answers_fails(subject: Subject) -> None:
    """Nothing was seen, so nothing is claimed."""
    names = [control.name for control in (*live.CONTROLS, *kernels.CONTROLS)]
    findings = found(subject, *names)
    assert {name for name, f in findings.items() if f.outcome == "pass"} == set()


class Careless(BaseHTTPRequestHandler):
    """Answers everybody with everything, and lets every site read it."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Set-Cookie", f"uait-session-{self.connection.getsockname()[1]}=x")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def careless_server() -> Iterator[Running]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Careless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    yield Running(f"http://127.0.0.1:{port}/", "", os.getpid(), False, "abc")
    server.shutdown()
    server.server_close()


def test_103_a_server_that_answers_everybody_fails_every_control(subject: Subject) -> None:
    async def administrator() -> None:
        from uait_server_ext.identity.principal import PERMISSIONS, Principal

        operator = Principal("os:test", "test", "service", frozenset(PERMISSIONS))
        await subject.identity.directory.add(operator, "ada", roles=["admin"])

    asyncio.run(administrator())
    with careless_server() as server:
        bad = Subject(subject.state, subject.foundation, subject.identity, server)
        findings = found(bad, *(control.name for control in live.CONTROLS))
    assert {f.outcome for f in findings.values()} == {"fail"}, findings


def test_103_a_control_that_breaks_has_failed(subject: Subject) -> None:
    """A check that raises proves nothing; the others are still made."""

    def broken(_: Subject) -> tuple[bool, str]:
        raise RuntimeError("out of order")

    controls = [Control("broken", "by raising", broken), local.CONTROLS[0]]
    report = asyncio.run(examine(subject, controls))
    assert [f.outcome for f in report.findings] == ["fail", "pass"]
    assert "out of order" in report.failed[0].found
