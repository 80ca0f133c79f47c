"""The parts of provider logins that need no provider: breaker, flows, claims, names, numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uait_server_ext.errors import LoginFailed
from uait_server_ext.identity.oidc import flows
from uait_server_ext.identity.oidc.breaker import FAILURES, OPEN_SECONDS, Breaker
from uait_server_ext.identity.oidc.claims import domain_allowed, from_claims, from_github, mailbox
from uait_server_ext.identity.oidc.configuration import ProviderConfig
from uait_server_ext.identity.oidc.id_token import Expected, check_id_token, number
from uait_server_ext.identity.oidc.provider import github_api
from uait_server_ext.storage.database import Database, sqlite_url

CONFIG = ProviderConfig.model_validate(
    {
        "id": "corp",
        "name": "Corp",
        "issuer": "https://id.example.org",
        "client_id": "c",
        "email_domains": ["example.org"],
    }
)
FLOW = flows.Flow(provider="corp", purpose="login", redirect_uri="https://here/cb", next="/")


class Hand:
    """A clock that is moved by hand."""

    at = 1000.0

    def __call__(self) -> float:
        return self.at


def test_breaker_lets_one_call_through_at_a_time_when_it_is_time() -> None:
    clock = Hand()
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        assert breaker.admits()
        breaker.failed()
    assert not breaker.admits()
    clock.at += OPEN_SECONDS
    assert [breaker.admits() for _ in range(3)] == [True, False, False]
    breaker.succeeded()
    assert all(breaker.admits() for _ in range(3))


@pytest.fixture
def database(tmp_path: Path) -> Any:
    opened = Database(sqlite_url(tmp_path / "uait.db"))
    opened.open()
    yield opened
    opened.close()


def test_flow_is_taken_once_in_time_by_the_browser_that_began(database: Database) -> None:
    def keep(state: str) -> None:
        database.write_now(lambda c: flows.keep(c, FLOW, state=state, binding="b", now=100.0))

    def take(state: str, binding: str, now: float) -> flows.Flow | None:
        return database.write_now(lambda c: flows.take(c, state=state, binding=binding, now=now))

    for state in "abc":
        keep(state)
    assert take("a", "b", 101.0) == FLOW
    assert take("a", "b", 101.0) is None
    assert take("b", "other", 101.0) is None
    assert take("b", "b", 101.0) is None
    assert take("c", "b", 100.0 + flows.LIFETIME_SECONDS) is None
    assert take("\ud800", "b", 101.0) is None


def test_derived_values_differ_by_browser_state_and_use() -> None:
    values = {
        flows.derive(binding, state, what)
        for binding in ("b1", "b2")
        for state in ("s1", "s2")
        for what in ("verifier", "nonce")
    }
    assert len(values) == 8
    assert {len(value) for value in values} == {43}


def test_claims_that_are_no_text_are_left_out() -> None:
    account = from_claims(
        CONFIG, {"iss": "i", "sub": "s", "name": ["x"], "preferred_username": 5, "email": {}}
    )
    assert (account.email, account.username, account.display_name) == (None, "", "")
    assert account.label == "s"


def test_github_takes_the_primary_of_the_verified_addresses() -> None:
    account = from_github(
        CONFIG,
        {"id": 1, "login": "ada", "name": None},
        [
            {"email": "Second@Example.org", "verified": True, "primary": False},
            {"email": "First@Example.org", "verified": True, "primary": True},
            "nonsense",
        ],
    )
    assert account.email == "first@example.org"
    assert account.display_name == "ada"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Ada@Example.ORG", "ada@example.org"),
        ("ada@example.org\n", None),
        ("ada", None),
        ("@example.org", None),
        ("ada@", None),
        ("ada@exämple.org", None),
        ("a" * 300 + "@example.org", None),
        (None, None),
        (["ada@example.org"], None),
    ],
)
def test_mailbox(value: Any, expected: str | None) -> None:
    assert mailbox(value) == expected


@pytest.mark.parametrize(
    ("email", "allowed"),
    [
        ("ada@example.org", True),
        ("ada@evil.net", False),
        ("ada@example.org.evil.net", False),
        ("ada@notexample.org", False),
        ('"ada@example.org"@evil.net', False),
        (None, False),
    ],
)
def test_domain(email: str | None, allowed: bool) -> None:
    assert domain_allowed(CONFIG, email) is allowed


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, 5.0),
        (5.5, 5.5),
        (True, None),
        ("5", None),
        (float("nan"), None),
        (float("inf"), None),
        (10**400, None),
        (None, None),
    ],
)
def test_number(value: Any, expected: float | None) -> None:
    assert number(value) == expected


def test_github_server_of_a_company_has_its_own_api() -> None:
    assert github_api("https://github.com/login/oauth") == "https://api.github.com"
    assert github_api("https://gh.corp.example/login/oauth") == "https://gh.corp.example/api/v3"


@settings(deadline=None)
@given(st.one_of(st.text(), st.none(), st.integers(), st.from_regex(r"[\w-]+\.[\w-]+\.[\w-]*")))
def test_id_token_that_is_none_is_refused_and_never_crashes(token: Any) -> None:
    keys = ({"kty": "RSA", "kid": "x", "n": "AQAB", "e": "AQAB"},)
    with pytest.raises(LoginFailed):
        check_id_token(token, keys, Expected(config=CONFIG, nonce="n", now=0.0))
