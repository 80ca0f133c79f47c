"""Scanners against a running server: schemathesis over every operation, sqlmap, wapiti.

Bounded in time: the scan of a release, not of a change, may go on for hours. What they would find
is planted in a server that has it, so that a scan that found nothing is known to have looked.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.security.conftest import IdentityServer, Person, identity_server, user_maker
from tests.security.leaky_server import leaky_server
from tests.security.tools import tool
from uait_server_ext.identity.principal import PERMISSIONS

pytestmark = [pytest.mark.slow, pytest.mark.long]

SECONDS = 30
# Ends the credential that the scan uses, so that all after it would be a refusal.
ENDS_THE_SCAN = r"^/uait/v1/(logout|me/password|token/revoke|users/[^/]+/factors)$"
CONFIGURATION = """
generous = {who: 1_000_000 for who in ("user", "key", "ip")}
c.UaitApp.rate_limits = {
    one: generous for one in ("read", "write", "inference", "ingest", "probe", "login")
}
c.UaitApp.chat_model = "echo"
"""


@dataclass
class Target:
    """A throw-away server with an administrator and their token."""

    server: IdentityServer
    admin: Person
    token: str
    folder: Path


@pytest.fixture(scope="module")
def target(
    jupyter_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("scanned")
    config = folder / "config"
    config.mkdir()
    (config / "jupyter_server_config.py").write_text(CONFIGURATION, encoding="utf-8")
    environment = {
        "JUPYTER_CONFIG_DIR": str(config),
        "HF_ENDPOINT": "http://127.0.0.1:9",  # a scan must not fetch models of many gigabytes
    }
    with identity_server(folder, environment=environment) as server:
        make = user_maker(server)
        admin = make("admin")
        make("admin")  # so that the scan may disable the one or the other
        yield Target(server, admin, token_of(server, admin), folder)


def token_of(server: IdentityServer, person: Person) -> str:
    """Return an access token that may do everything for ten minutes."""

    async def issue() -> str:
        token: str = await server.identity.tokens.issue(
            user_id=person.id, epoch=0, scope=set(PERMISSIONS), authenticated_at=time.time()
        )
        return token

    return asyncio.run(issue())


def scan(*command: str, cwd: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False
    )


def test_073_schemathesis_finds_nothing(target: Target) -> None:
    """Every operation, every check: documented answers, refusals, no error of ours."""
    report = target.folder / "schemathesis.json"
    description = target.folder / "openapi.json"
    api = target.server.program(target.token)
    description.write_text(api.get("~/openapi.json").text, encoding="utf-8")
    done = scan(
        str(Path(sys.executable).with_name("st")),
        f"--config-file={Path(__file__).with_name('schemathesis.toml')}",
        *("run", str(description), f"--url={target.server.url}"),
        *("--checks=all", f"--max-time={SECONDS}", "--seed=1", "--request-timeout=20"),
        *("--continue-on-failure", "--no-color", "--warnings=off", "--max-examples=15"),
        *("--generation-database=none", f"--exclude-path-regex={ENDS_THE_SCAN}"),
        *("--report=json", f"--report-json-path={report}", "--no-shrink"),
        f"--header=Authorization: Bearer {target.token}",
        cwd=target.folder,
        seconds=SECONDS + 90,
    )
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2_000:]
    assert api.get("~/me").status_code == 200, "the scan lost its login on the way"
    log = target.server.logged()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]


WEAKNESSES = "sql,xss,permanentxss,redirect,exec,file,crlf,csp,http_headers,cookieflags"
KNOWN = {
    ("Content Security Policy Configuration", 'CSP "script-src" value is not safe'): (
        "`unsafe-eval`, without which JupyterLab shows no notebook; an accepted risk of the docs"
    ),
    ("Clickjacking Protection", "X-Frame-Options is not set"): (
        "the policy's `frame-ancestors` is in its place, and goes before it where both are"
    ),
    ("HttpOnly Flag cookie", "HttpOnly flag is not set in the cookie : _xsrf"): (
        "pages read it, to send it back in a header; it opens nothing"
    ),
    ("Secure Flag cookie", "Secure flag is not set in the cookie : _xsrf"): (
        "this server speaks http on the loopback"
    ),
}


def sqlmap(folder: Path, name: str, *arguments: str) -> str:
    """Scan one request; return what sqlmap says."""
    done = scan(
        *(tool("sqlmap"), "--batch", "--disable-coloring", "--flush-session", "--technique=BEU"),
        *("--threads=4", "--timeout=15", "--retries=1", "--ignore-proxy", "--level=2"),
        *("--dbms=sqlite", f"--output-dir={folder / name}", "--ignore-code=*", *arguments),
        cwd=folder,
        seconds=150,
    )
    assert "[CRITICAL] unable to connect" not in done.stdout, done.stdout
    return done.stdout


def test_074_sqlmap_finds_what_is_planted(tmp_path: Path) -> None:
    with leaky_server() as url:
        said = sqlmap(tmp_path, "planted", f"--url={url}item?id=1")
    assert "is vulnerable" in said or "identified the following injection point" in said, said


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("filters", ["--url={url}uait/v1/audit?principal=ada&target=x&limit=5"]),
        ("path", ["--url={url}uait/v1/users/usr_1*"]),
        ("login", ["--url={url}uait/v1/login", '--data={{"username":"ada","password":"x"}}']),
    ],
)
def test_074_sqlmap_finds_nothing(target: Target, name: str, arguments: list[str]) -> None:
    """In filters, in a path, and in what a login is given."""
    given = [argument.format(url=target.server.url) for argument in arguments]
    bearer = f"--headers=Authorization: Bearer {target.token}"
    said = sqlmap(target.folder, name, bearer, *given)
    assert "do not appear to be injectable" in said, said[-6000:]


def test_074_sqlmap_finds_nothing_in_a_credential(target: Target) -> None:
    """The header that a key of an API is looked up by."""
    said = sqlmap(
        target.folder,
        "credential",
        f"--url={target.server.url}uait/v1/models",
        "--headers=Authorization: Bearer uaitk_x*",
    )
    assert "do not appear to be injectable" in said, said[-6000:]


def wapiti(folder: Path, url: str, *arguments: str) -> dict[str, list[dict[str, str]]]:
    """Crawl and attack a server; return what was found, by kind."""
    report = folder / "wapiti.json"
    done = scan(
        *(tool("wapiti"), f"--url={url}", f"--module={WEAKNESSES}", "--scope=url", "--depth=2"),
        *("--max-scan-time=15", "--max-attack-time=6", "--flush-session", "--no-bugreport"),
        *(f"--store-session={folder}", f"--store-config={folder}", "--format=json"),
        *(f"--output={report}", "--tasks=4", *arguments),
        cwd=folder,
        seconds=240,
    )
    assert report.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    said = json.loads(report.read_text("utf-8"))
    assert int(said["infos"]["crawled_pages_nbr"]) > 1, said["infos"]
    found = {**said["vulnerabilities"], **said["anomalies"]}
    return {kind: entries for kind, entries in found.items() if entries}


def test_074_wapiti_finds_what_is_planted(tmp_path: Path) -> None:
    with leaky_server() as url:
        found = wapiti(tmp_path, url, "--scope=folder")
    kinds = " ".join(found)
    assert "SQL Injection" in kinds, kinds
    assert "Reflected Cross Site Scripting" in kinds, kinds
    assert "Open Redirect" in kinds, kinds
    assert "Content Security Policy" in kinds, kinds


def test_074_wapiti_finds_nothing(target: Target) -> None:
    """Pages, and every operation that is read, with each of its parameters."""
    api = target.server.program(target.token)
    starts = [f"{target.server.url}{page}" for page in ("login?next=/lab", "uait/setup", "lab")]
    for path, operations in api.get("~/openapi.json").json()["paths"].items():
        read = operations.get("get")
        if read and "{" not in path and "text/event-stream" not in json.dumps(read["responses"]):
            names = [p["name"] for p in read.get("parameters", []) if p["in"] == "query"]
            query = "&".join(f"{name}=1" for name in names)
            starts.append(f"{target.server.url}{path.lstrip('/')}?{query}".rstrip("?"))
    found = wapiti(
        target.folder,
        target.server.url,
        "--scope=folder",
        *(f"--start={url}" for url in starts),
        *(
            f"--exclude={target.server.url}{path}*"
            for path in ("logout", "static", "lab/extensions")
        ),
        f"--header=Authorization: Bearer {target.token}",
    )
    new = [
        (kind, entry["method"], entry["path"], entry["info"])
        for kind, entries in found.items()
        for entry in entries
        if (kind, entry["info"]) not in KNOWN
    ]
    assert not new
