"""Logins through an independent OpenID provider: cases 18 to 31 where it takes part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.security.oidc_logins import BASE_URL, ORIGIN, Browser, World, world
from tests.security.real_idp import CLIENT_ID, CLIENT_SECRET, log_in_there, real_provider
from uait_server_ext.errors import FlowInvalid, LoginFailed, PermissionDenied, ProviderUnavailable

CALLBACK = f"{ORIGIN}{BASE_URL}uait/v1/login/oidc/real/callback"


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    with real_provider(CALLBACK) as running:
        yield running


@pytest.fixture
def there(issuer: str, tmp_path: Path) -> Iterator[World]:
    entry = {
        "id": "real",
        "name": "Real",
        "issuer": issuer,
        "client_id": CLIENT_ID,
        "client_secret_ref": "sealed",
        "auto_create": "analyst",
        "email_domains": ["example.org"],
        "allow_insecure": True,
    }
    with world(tmp_path, [entry], {}) as made:
        made.run(made.logins.store_client_secret("real", CLIENT_SECRET))
        yield made


def log_in(there: World, name: str) -> str:
    address, query = log_in_there(there.begin("real"), name)
    assert address == CALLBACK
    return there.who(there.finish("real", query))


def test_029_good_login_goes_where_it_was_going(there: World, issuer: str) -> None:
    address, query = log_in_there(there.begin("real", next_url=f"{BASE_URL}lab"), "ada")
    assert address == CALLBACK
    assert query["iss"] == issuer
    finished = there.finish("real", query)
    assert finished.location == f"{BASE_URL}lab"
    assert there.who(finished) == "ada"
    assert log_in(there, "ada") == "ada"
    assert there.linked() == [("ada", "ada")]


def test_019_callback_replayed_is_refused(there: World) -> None:
    _, query = log_in_there(there.begin("real"), "ada")
    there.finish("real", query)
    with pytest.raises(FlowInvalid):
        there.finish("real", query)


def test_020_login_of_another_browser_is_refused(there: World) -> None:
    _, query = log_in_there(there.begin("real"), "ada")
    with pytest.raises(FlowInvalid):
        there.finish("real", query, Browser("bind_" + "x" * 43))


@pytest.mark.parametrize("issuer_sent", [None, "https://accounts.example.net"])
def test_021_issuer_missing_or_wrong_is_refused(there: World, issuer_sent: str | None) -> None:
    _, query = log_in_there(there.begin("real"), "ada")
    del query["iss"]
    with pytest.raises(LoginFailed) as caught:
        there.finish("real", query | ({"iss": issuer_sent} if issuer_sent else {}))
    assert caught.value.extensions["reason"] == "issuer"


def test_024_code_of_another_login_is_refused(there: World) -> None:
    """A code stolen from a victim and put into the attacker's own login (RFC 9700 section 2.1)."""
    _, stolen = log_in_there(there.begin("real", Browser()), "victim")
    _, own = log_in_there(there.begin("real"), "mallory")
    with pytest.raises(LoginFailed) as caught:
        there.finish("real", own | {"code": stolen["code"]})
    assert caught.value.extensions["reason"] == "code"


def test_026_unverified_email_makes_no_user(there: World) -> None:
    _, query = log_in_there(there.begin("real"), "unverified-eve")
    with pytest.raises(PermissionDenied) as caught:
        there.finish("real", query)
    assert caught.value.extensions["reason"] == "unknown-account"


def test_026_equal_email_is_not_linked(there: World) -> None:
    there.user("boss", "admin", email="ada@example.org")
    _, query = log_in_there(there.begin("real"), "ada")
    with pytest.raises(PermissionDenied) as caught:
        there.finish("real", query)
    assert caught.value.extensions["reason"] == "email-in-use"
    assert there.linked() == []


def test_029_provider_refuses_a_code_without_its_verifier(there: World, issuer: str) -> None:
    url = there.begin("real")
    assert parse_qs(urlsplit(url).query)["code_challenge_method"] == ["S256"]
    _, query = log_in_there(url, "ada")
    form = {"grant_type": "authorization_code", "code": query["code"], "redirect_uri": CALLBACK}
    for extra in ({}, {"code_verifier": "x" * 43}):
        answer = httpx.post(
            f"{issuer}/token", data=form | extra, auth=(CLIENT_ID, CLIENT_SECRET), trust_env=False
        )
        assert answer.status_code == 400
        assert answer.json()["error"] == "invalid_grant"


def test_031_denied_consent_is_a_clear_error(there: World) -> None:
    _, query = log_in_there(there.begin("real"), "ada", consent=False)
    assert query["error"] == "access_denied"
    with pytest.raises(LoginFailed) as caught:
        there.finish("real", query)
    assert caught.value.extensions["reason"] == "denied"


def test_031_wrong_client_secret_is_a_clear_error(there: World) -> None:
    there.run(there.logins.store_client_secret("real", "another secret altogether"))
    _, query = log_in_there(there.begin("real"), "ada")
    with pytest.raises(ProviderUnavailable) as caught:
        there.finish("real", query)
    assert caught.value.extensions["reason"] == "client"
