"""Controls seen from outside: what the running server answers to strangers and to the powerless.

A probe logs in as an administrator for a moment, with a session and a token made from the state
itself: who may run this command holds the keys of the server. The audit log says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uait_server_ext.errors import Unavailable

from .report import Control, Judgement, NotApplicable, Subject

if TYPE_CHECKING:
    import httpx2

TIMEOUT_SECONDS = 20.0
STRANGER = "http://attacker.example"
ROUTES = """
api/contents api/kernels api/sessions api/terminals api/kernelspecs api/config/notebook api/me
api/status api/spec.yaml api/events/subscribe api/kernels/none/channels api/nbconvert
lab lab/api/settings lab/api/workspaces lab/api/extensions lab/api/plugins lab/api/build
lab/api/listings/@jupyterlab/extensionmanager-extension/listings.json lab/api/translations
tree files/none view/none metrics terminals/websocket/none lsp/status
uait/v1/health uait/v1/openapi.json uait/v1/models uait/v1/collections uait/v1/me uait/v1/users
uait/v1/vault/secrets uait/v1/audit uait/v1/me/keys uait/v1/me/sessions
"""
CLOSED = tuple(ROUTES.split())
POWERS = (
    ("POST", "api/kernels"),
    ("POST", "api/terminals"),
    ("POST", "api/shutdown"),
    ("PUT", "api/contents/uait-doctor"),
    ("POST", "lab/api/extensions"),
    ("POST", "lab/api/plugins"),
    ("POST", "lab/api/build"),
    ("PUT", "lab/api/settings/@jupyterlab/apputils-extension:themes"),
    ("POST", "uait/v1/users"),
    ("POST", "uait/v1/vault/secrets"),
)
HEADERS = ("Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy")
REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


@dataclass(frozen=True, slots=True)
class Running:
    """A server as its runtime file describes it."""

    url: str
    address: str
    pid: int
    secure: bool
    token: str = field(repr=False)

    def owner(self) -> int:
        """Return the user id that the server runs as.

        Raises:
            NotApplicable: the system does not tell.
        """
        try:
            # The files of a process that refuses dumps are root's; its status tells the truth.
            status = Path(f"/proc/{self.pid}/status").read_text("utf-8")
        except OSError:
            raise NotApplicable("this system has no /proc to ask") from None
        return int(status.partition("\nUid:")[2].split()[0])

    def client(self, **options: Any) -> httpx2.AsyncClient:
        """Return a client of the server that follows no redirects and no proxies."""
        import httpx2

        return httpx2.AsyncClient(
            base_url=self.url, timeout=TIMEOUT_SECONDS, trust_env=False, **options
        )


def running_servers(runtime: Path) -> Iterator[Running]:
    """Yield the servers of this user that are alive, the last started first."""
    for path in sorted(runtime.glob("jpserver-*.json"), key=mtime, reverse=True):
        try:
            said = json.loads(path.read_text("utf-8"))
            os.kill(int(said["pid"]), 0)
        except (OSError, ValueError, KeyError):
            continue
        host = said.get("hostname") or ""
        scheme = "https" if said.get("secure") else "http"
        # A name of this machine; what listens on every address is asked on the loopback.
        reached = host if host not in ("", "0.0.0.0", "::", "localhost") else "127.0.0.1"  # noqa: S104
        yield Running(
            url=f"{scheme}://{reached}:{said['port']}{said['base_url']}",
            address=host,
            pid=int(said["pid"]),
            secure=bool(said.get("secure")),
            token=str(said.get("token") or ""),
        )


def mtime(path: Path) -> float:
    """Return when a file was written; one that is gone is the oldest."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def alive(subject: Subject) -> Running:
    """Return the server.

    Raises:
        Unavailable: none runs, so that nothing can be seen.
    """
    if subject.server is None:
        raise Unavailable("no server runs: start it with `uait lab`, then repeat")
    return subject.server


def is_refused(answer: httpx2.Response) -> bool:
    """Tell whether an answer lets nobody in: a refusal, or the way to the login page."""
    to_login = "/login?next=" in answer.headers.get("Location", "")
    return answer.status_code in REFUSED or to_login


async def login_is_ours(subject: Subject) -> Judgement:
    """UAIT's identity is in place, and Jupyter's token is not."""
    server = alive(subject)
    async with server.client() as client:
        methods = await client.get("uait/v1/login/methods")
        guess = {"Authorization": f"token {server.token or 'guess'}"}
        with_token = await client.get("api/contents", headers=guess)
        in_url = await client.get("api/contents", params={"token": server.token or "guess"})
    if methods.status_code != HTTPStatus.OK:
        return False, f"GET login/methods answers {methods.status_code}: Jupyter's own login?"
    if server.token:
        return False, "the server has a Jupyter token"
    taken = [a.status_code for a in (with_token, in_url) if not is_refused(a)]
    return not taken, f"Jupyter's token is answered {with_token.status_code}"


async def strangers_see_nothing(subject: Subject) -> Judgement:
    """No route but the written list answers who is not logged in."""
    server = alive(subject)
    answered = []
    async with server.client() as client:
        for path in CLOSED:
            answer = await client.get(path)
            absent = answer.status_code == HTTPStatus.NOT_FOUND
            if not (is_refused(answer) or absent):
                answered.append(f"{path} ({answer.status_code})")
    return not answered, (
        f"answered: {', '.join(answered)}" if answered else f"{len(CLOSED)} routes are closed"
    )


async def powerless_change_nothing(subject: Subject) -> Judgement:
    """A credential without the permission reaches no code execution and changes nothing."""
    server = alive(subject)
    reached = []
    async with (
        as_administrator(subject, scope={"lab:read"}) as token,
        server.client(headers={"Authorization": f"Bearer {token}"}) as client,
    ):
        me = await client.get("lab/api/settings/")
        for method, path in POWERS:
            answer = await client.request(method, path, json={})
            absent = answer.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
            if not is_refused(answer) and not absent:
                reached.append(f"{method} {path} ({answer.status_code})")
    if me.status_code not in (HTTPStatus.OK, HTTPStatus.NOT_FOUND):
        return False, f"the probe itself was not let in ({me.status_code})"
    return not reached, f"reached: {', '.join(reached)}" if reached else f"{len(POWERS)} refused"


async def headers_are_set(subject: Subject) -> Judgement:
    """Pages, answers and errors carry the headers, and the policy runs no foreign script."""
    server = alive(subject)
    missing = []
    async with server.client() as client:
        for path in ("login", "uait/v1/health/live", "api/contents", "none", "uait/v1/none"):
            answer = await client.get(path)
            missing += [f"{path}: {name}" for name in HEADERS if name not in answer.headers]
            policy = answer.headers.get("Content-Security-Policy", "")
            scripts = next((d for d in policy.split(";") if d.strip().startswith("script-src")), "")
            if "'unsafe-inline'" in scripts or "*" in scripts or "default-src" not in policy:
                missing.append(f"{path}: policy {policy[:80]!r}")
    return not missing, "; ".join(missing) or "on pages, answers and errors"


async def cookies_are_hardened(subject: Subject) -> Judgement:
    """The session's cookie is unreadable for scripts and is not sent by other sites' forms."""
    server = alive(subject)
    async with as_administrator(subject) as secret:
        cookies = SimpleCookie()
        async with server.client() as client:
            page = await client.get("login")
            xsrf = page.cookies.get("_xsrf") or ""
            port = page.url.port or (443 if server.secure else 80)
            name = "__Host-uait-session" if server.secure else f"uait-session-{port}"
            ended = await client.post(
                "uait/v1/logout",
                headers={"X-XSRFToken": xsrf, "Cookie": f"_xsrf={xsrf}; {name}={secret}"},
            )
        for line in ended.headers.get_list("Set-Cookie"):
            cookies.load(line)
    if name not in cookies:
        return False, f"POST logout answers {ended.status_code} and names no cookie {name}"
    flags = cookies[name]
    lax = str(flags["samesite"]).lower() in ("lax", "strict")
    holds = bool(flags["httponly"]) and lax and bool(flags["secure"]) == server.secure
    return holds, (
        f"{name}: HttpOnly {bool(flags['httponly'])}, SameSite {flags['samesite']}, "
        f"Secure {bool(flags['secure'])}"
    )


async def other_sites_are_refused(subject: Subject) -> Judgement:
    """Neither a page of another site nor a rebound host name gets through."""
    server = alive(subject)
    body = {"username": "uait-doctor", "password": "not a password"}
    async with server.client() as client:
        form = await client.post("uait/v1/login", json=body, headers={"Origin": STRANGER})
        read = await client.get("uait/v1/health/live", headers={"Origin": STRANGER})
        host = await client.get("api/contents", headers={"Host": "attacker.example"})
    wrong = []
    if form.status_code not in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
        wrong.append(f"a form of another site is answered {form.status_code}")
    if "Access-Control-Allow-Origin" in read.headers:
        wrong.append("another site may read answers")
    if server.address in ("localhost", "127.0.0.1", "::1") and host.status_code not in REFUSED:
        wrong.append(f"another host name is answered {host.status_code}")
    return not wrong, "; ".join(wrong) or "a login form, a read and another host name were refused"


def passwords_are_encrypted(subject: Subject) -> Judgement:
    """No password crosses a network in the clear."""
    server = alive(subject)
    local = server.address in ("localhost", "127.0.0.1", "::1")
    kind = "TLS" if server.secure else "the loopback only" if local else "no TLS"
    return server.secure or local, f"listens on {server.address or 'every address'}: {kind}"


@asynccontextmanager
async def as_administrator(subject: Subject, scope: set[str] | None = None) -> AsyncIterator[str]:
    """Lend an administrator's session, or a token with a scope, and end it at once.

    Raises:
        NotApplicable: there is no administrator yet.
    """
    from uait_server_ext.events.record import AuditEvent
    from uait_server_ext.identity.tokens import new_jti
    from uait_server_ext.storage.ids import now

    identity = subject.identity
    found, _ = await identity.directory.users(limit=1000)
    admin = next((u.id for u in found if "admin" in u.roles and not u.disabled), None)
    if admin is None:
        raise NotApplicable("there is no administrator yet")
    standing = await subject.foundation.database.read(
        lambda connection: identity.directory.standing(connection, admin)
    )
    assert standing
    await subject.foundation.audit.record(
        AuditEvent(
            action="doctor.probe",
            outcome="ok",
            principal=f"os:{os.getuid()}",
            kind="service",
            target=admin,
            detail={"scope": " ".join(sorted(scope or {"session"}))},
        )
    )
    if scope is None:
        secret, session = await identity.sessions.start(
            admin, standing.epoch, ("password",), False, "127.0.0.1", "uait doctor"
        )
        try:
            yield secret
        finally:
            await identity.sessions.end(admin, session.id)
        return
    jti = new_jti()
    token = await identity.tokens.issue(
        user_id=admin, epoch=standing.epoch, scope=scope, authenticated_at=now() - 86_400, jti=jti
    )
    try:
        yield token
    finally:
        await identity.tokens.revoke(jti)


CONTROLS = (
    Control("login", "asked for the ways to log in, tried Jupyter's token", login_is_ours),
    Control("strangers", "a sweep of routes without a login", strangers_see_nothing),
    Control("route-policy", "a sweep with a token without permissions", powerless_change_nothing),
    Control("headers", "headers of pages, answers and errors", headers_are_set),
    Control("cookies", "the flags of a session's cookie", cookies_are_hardened),
    Control("other-sites", "requests as another site's page sends them", other_sites_are_refused),
    Control("transport", "where the server listens, and with what", passwords_are_encrypted),
)
