"""Second factors against a running server: cases 10 to 16 of the security research."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyotp
import pytest

from tests.security.authenticator import SoftAuthenticator
from tests.security.conftest import Api, IdentityServer, Person, identity_server, user_maker

pytestmark = pytest.mark.slow

STEP_SECONDS = 30
OPERATIONS = ("/me", "/me/factors", "/me/keys", "/me/sessions", "/models", "/users", "/audit")
JUPYTER = ("/api/contents", "/api/kernels", "/api/terminals", "/lab/api/settings", "/api/me")


@dataclass
class Member:
    """A person with an authenticator app, recovery codes and a passkey."""

    person: Person
    app: pyotp.TOTP
    codes: list[str]
    device: SoftAuthenticator | None = None

    def code(self, steps: int = 0) -> str:
        """Return the code of now, or of some steps away."""
        return self.app.at(int(time.time()) + steps * STEP_SECONDS)


@pytest.fixture(scope="module")
def server(
    jupyter_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[IdentityServer]:
    """Run a server that counts logins by account only: these tests share one address."""
    rates = "{'login': {'user': 10000, 'key': 10000, 'ip': 10000}}"
    folder = tmp_path_factory.mktemp("factors")
    with identity_server(folder, f"--UaitApp.rate_limits={rates}") as running:
        yield running


@pytest.fixture(scope="module")
def make_user(server: IdentityServer) -> Callable[..., Person]:
    return user_maker(server)


@pytest.fixture
def local(server: IdentityServer) -> IdentityServer:
    """Return the server under its name: browsers make no passkeys for an IP address."""
    return replace(server, url=server.url.replace("127.0.0.1", "localhost"))


@pytest.fixture
def browser(local: IdentityServer) -> Callable[..., Api]:
    """Return a function that opens a browser, and logs a person in by password."""

    def open_browser(person: Person | None = None) -> Api:
        return local.login(person) if person else local.browser()

    return open_browser


@pytest.fixture
def member(
    make_user: Callable[..., Person], local: IdentityServer, browser: Callable[..., Api]
) -> Member:
    """Return a developer with all second factors, enrolled by the API."""
    person = make_user("developer")
    client = browser(person)
    begun = client.post("~/me/factors/totp", {"name": "Phone"}).json()
    app = pyotp.TOTP(begun["secret"])
    # The code of the step before: that of now is still to be used.
    answer = client.post(
        f"~/me/factors/totp/{begun['id']}/confirm",
        {"code": app.at(int(time.time()) - STEP_SECONDS)},
    )
    assert answer.status_code == 200, answer.text
    device = SoftAuthenticator(local.url.rstrip("/"))
    options = client.post("~/me/factors/passkeys/options").json()
    added = client.post(
        "~/me/factors/passkeys", {"name": "Key", "credential": device.create(options)}
    )
    assert added.status_code == 200, added.text
    return Member(person, app, answer.json()["recovery_codes"], device)


def passkey_answer(client: Api, device: SoftAuthenticator) -> dict[str, Any]:
    options = client.post("~/login/passkey/options")
    assert options.status_code == 200, options.text
    return device.get(options.json())


def passkey_login(client: Api, device: SoftAuthenticator) -> Any:
    return client.post("~/login/passkey", {"credential": passkey_answer(client, device)})


def test_010_totp_code_reused_is_refused(member: Member, browser: Callable[..., Api]) -> None:
    code = member.code()
    first, second = browser(member.person), browser(member.person)
    assert first.post("~/login/totp", {"code": code}).status_code == 200
    refused = second.post("~/login/totp", {"code": code})
    assert refused.status_code == 401
    assert code not in refused.text
    assert second.get("~/me").status_code == 401
    assert first.get("~/me").status_code == 200


def test_010_the_code_that_confirmed_an_app_is_used_up(
    make_user: Callable[..., Person], browser: Callable[..., Api]
) -> None:
    person = make_user("viewer")
    client = browser(person)
    begun = client.post("~/me/factors/totp", {}).json()
    code = pyotp.TOTP(begun["secret"]).now()
    path = f"~/me/factors/totp/{begun['id']}/confirm"
    assert client.post(path, {"code": code}).status_code == 200
    assert browser(person).post("~/login/totp", {"code": code}).status_code == 401


def test_011_a_code_two_steps_off_is_refused(member: Member, browser: Callable[..., Api]) -> None:
    client = browser(member.person)
    for steps in (-3, 3):  # 3: the clock may tick between here and there
        assert client.post("~/login/totp", {"code": member.code(steps)}).status_code == 401
    assert client.post("~/login/totp", {"code": member.code()}).status_code == 200


def test_011_wrong_codes_lock(member: Member, browser: Callable[..., Api]) -> None:
    client = browser(member.person)
    statuses = [client.post("~/login/totp", {"code": "000000"}).status_code for _ in range(5)]
    assert statuses == [401] * 5
    locked = client.post("~/login/totp", {"code": member.code()})
    assert locked.status_code == 429
    assert int(locked.headers["Retry-After"]) > 0
    assert client.post("~/login/recovery", {"code": member.codes[0]}).status_code == 429
    # Who only has the password and guesses does not lock the passkey of the owner.
    assert member.device
    assert passkey_login(browser(), member.device).status_code == 200


def test_012_a_pending_session_reaches_nothing(member: Member, browser: Callable[..., Api]) -> None:
    client = browser(member.person)
    for path in (*(f"~{path}" for path in OPERATIONS), *JUPYTER):
        for method in ("GET", "POST", "PATCH", "DELETE"):
            answer = client.request(method, path)
            assert answer.status_code in (401, 403), (method, path)
            assert member.person.id not in answer.text


def test_012_a_pending_session_opens_no_page(member: Member, browser: Callable[..., Api]) -> None:
    client = browser(member.person)
    for path in ("/lab", "/uait/account", "/uait/device"):
        assert client.get(path).headers["Location"].startswith("/login")
    assert client.get("/uait/second-factor").status_code == 200


def test_013_no_change_of_factors_without_a_fresh_proof(
    server: IdentityServer, member: Member, browser: Callable[..., Api]
) -> None:
    client = browser(member.person)
    assert client.post("~/login/totp", {"code": member.code()}).status_code == 200
    factors = client.get("~/me/factors").json()
    age_sessions(server, member.person.id)
    factor = factors["totp"][0]["id"]
    changes = [
        ("POST", "~/me/factors/totp", {}),
        ("POST", f"~/me/factors/totp/{factor}/confirm", {"code": "000000"}),
        ("POST", "~/me/factors/passkeys/options", None),
        ("POST", "~/me/factors/passkeys", {"name": "x", "credential": {}}),
        ("POST", "~/me/factors/recovery-codes", None),
        ("DELETE", f"~/me/factors/{factor}", None),
    ]
    for method, path, body in changes:
        answer = client.request(method, path, **({"json": body} if body is not None else {}))
        assert (answer.status_code, answer.json()["code"]) == (403, "reauthenticate"), path
    assert client.get("~/me/factors").json() == factors
    # A password does not lift it: it alone did not let the person in either.
    password = {"password": member.person.password}
    assert client.post("~/me/reauthenticate", password).status_code == 422
    assert member.device
    assert passkey_login(client, member.device).status_code == 200
    assert client.delete(f"~/me/factors/{factor}").status_code == 204


def test_013_a_change_of_factors_ends_other_sessions(
    make_user: Callable[..., Person], browser: Callable[..., Api]
) -> None:
    person = make_user("viewer")
    here, there = browser(person), browser(person)
    begun = here.post("~/me/factors/totp", {}).json()
    assert there.get("~/me").status_code == 200
    code = pyotp.TOTP(begun["secret"]).now()
    assert here.post(f"~/me/factors/totp/{begun['id']}/confirm", {"code": code}).is_success
    assert here.get("~/me").status_code == 200
    assert there.get("~/me").status_code == 401


def test_014_a_recovery_code_serves_once(member: Member, browser: Callable[..., Api]) -> None:
    first, second = browser(member.person), browser(member.person)
    assert first.post("~/login/recovery", {"code": member.codes[0]}).status_code == 200
    assert second.post("~/login/recovery", {"code": member.codes[0]}).status_code == 401
    assert first.get("~/me/factors").json()["recovery_codes_left"] == 9


def test_014_recovery_codes_are_stored_hashed_only(server: IdentityServer, member: Member) -> None:
    kept = b"".join(path.read_bytes() for path in files(server.state))
    kept += server.log.read_bytes()
    for code in member.codes:
        assert code.encode() not in kept
        assert code.replace("-", "").encode() not in kept
    assert member.app.secret.encode() not in kept


@pytest.mark.parametrize(
    "wrong",
    [
        {"origin": "http://evil.example"},
        {"rp_id": "evil.example"},
        {"verifies": False},
        {"count": -1},
        {"credential_id": b"of somebody else"},
        {"user_handle": b"usr_somebodyelse"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_015_an_untrue_passkey_is_refused(
    member: Member, browser: Callable[..., Api], wrong: dict[str, Any]
) -> None:
    assert member.device
    client = browser()
    assert passkey_login(client, member.device).status_code == 200  # so that it has counted
    other = browser()
    refused = passkey_login(other, replace(member.device, **wrong))
    assert refused.status_code == 401
    assert other.get("~/me").status_code == 401


def test_015_a_stale_challenge_is_refused(
    server: IdentityServer, member: Member, browser: Callable[..., Api]
) -> None:
    assert member.device
    client = browser()
    answer = passkey_answer(client, member.device)
    change(server, "UPDATE login_flows SET expires_at = 0")
    assert client.post("~/login/passkey", {"credential": answer}).status_code == 401


def test_015_another_users_passkey_is_no_second_factor(
    member: Member, make_user: Callable[..., Person], browser: Callable[..., Api]
) -> None:
    stranger = make_user("viewer")
    theirs = browser(stranger)
    device = SoftAuthenticator(str(theirs.server.url).rstrip("/"))
    options = theirs.post("~/me/factors/passkeys/options").json()
    body = {"name": "Theirs", "credential": device.create(options)}
    assert theirs.post("~/me/factors/passkeys", body).is_success
    client = browser(member.person)
    assert passkey_login(client, device).status_code == 401
    assert client.get("~/me").status_code == 401


def test_016_a_challenge_used_twice_is_refused(member: Member, browser: Callable[..., Api]) -> None:
    assert member.device
    client = browser()
    answer = passkey_answer(client, member.device)
    assert client.post("~/login/passkey", {"credential": answer}).status_code == 200
    assert client.post("~/login/passkey", {"credential": answer}).status_code == 400


def test_016_a_challenge_is_bound_to_its_browser(
    member: Member, browser: Callable[..., Api]
) -> None:
    assert member.device
    answer = passkey_answer(browser(), member.device)
    victim = browser()
    victim.post("~/login/passkey/options")
    assert victim.post("~/login/passkey", {"credential": answer}).status_code == 400
    assert victim.get("~/me").status_code == 401


def test_016_a_challenge_for_adding_is_used_once(
    make_user: Callable[..., Person], browser: Callable[..., Api]
) -> None:
    client = browser(make_user("viewer"))
    device = SoftAuthenticator(str(client.server.url).rstrip("/"))
    options = client.post("~/me/factors/passkeys/options").json()
    body = {"name": "Key", "credential": device.create(options)}
    assert client.post("~/me/factors/passkeys", body).status_code == 200
    assert client.post("~/me/factors/passkeys", body).status_code == 400


def test_044_every_step_of_a_login_changes_the_session(
    member: Member, browser: Callable[..., Api]
) -> None:
    client = browser(member.person)
    before = session_cookie(client)
    assert client.post("~/login/totp", {"code": member.code()}).status_code == 200
    assert session_cookie(client) != before
    stolen = {"Cookie": f"{cookie_name(client)}={before}"}
    assert client.server.anonymous().get("~/me", headers=stolen).status_code == 401


def session_cookie(client: Api) -> str:
    return str(client.http.cookies[cookie_name(client)])


def cookie_name(client: Api) -> str:
    return next(name for name in client.http.cookies if name.startswith("uait-session"))


def age_sessions(server: IdentityServer, user_id: str) -> None:
    """Let a person's last proof be long ago."""
    change(server, "UPDATE sessions SET authenticated_at = 1 WHERE user_id = ?", user_id)
    change(server, "UPDATE generations SET value = value + 1 WHERE name = 'identity'")


def change(server: IdentityServer, statement: str, *values: str) -> None:
    """Change the database behind the server's back."""
    path = server.foundation.database.url.database
    assert path
    with sqlite3.connect(path, timeout=10) as connection:
        connection.execute(statement, values)
    connection.close()


def files(folder: Path) -> list[Path]:
    return [
        path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 50_000_000
    ]
