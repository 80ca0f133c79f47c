"""API keys and the credential headers under attack: cases 59, 61 and 74 of the plain modules."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.identity.credential_store import BEN, Store, open_store, run
from uait_server_ext.errors import PermissionDenied, Unauthenticated
from uait_server_ext.identity.credentials import Credential, credential_of
from uait_server_ext.identity.tables import api_keys
from uait_server_ext.identity.token_models import ApiKeyRequest

KEY = "uait_" + "k" * 43
ATTACKS = [
    "' OR 1=1--",
    '"; DROP TABLE api_keys; --',
    "uait_' UNION SELECT secret_sha256 FROM api_keys--",
    "%00",
    "uait_%00",
    "uait_\x00",
    "uait_" + "k" * 42 + "'",
    "uait_" + "k" * 100_000,
    "{{7*7}}",
    "../../etc/passwd",
    "\ud800",
    "ключ",
    "",
    " ",
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def request(*permissions: str) -> ApiKeyRequest:
    return ApiKeyRequest(name="mine", permissions=list(permissions))


def test_059_a_key_cannot_hold_more_than_its_maker(store: Store) -> None:
    viewer = store.person(BEN)
    for wanted in (("users:write",), ("models:run", "vault:reveal"), ("kernels:run",)):
        with pytest.raises(PermissionDenied):
            run(store.api_keys.create(viewer, request(*wanted)))
    assert store.count(api_keys) == 0
    assert store.events() == [("key.create", "refused")] * 3


def test_059_a_narrow_token_cannot_make_a_broader_key(store: Store) -> None:
    narrow = store.person(permissions=frozenset({"models:run"}), credential="jti_1")
    with pytest.raises(PermissionDenied):
        run(store.api_keys.create(narrow, request("knowledge:read")))
    # What it was given before a role was taken away counts no more.
    former = store.person(BEN, permissions=store.standing("usr_ada").permissions)
    with pytest.raises(PermissionDenied):
        run(store.api_keys.create(former, request("users:write")))


@pytest.mark.parametrize("kind", ["api-key", "kernel", "agent", "service"])
def test_059_a_key_or_kernel_makes_no_keys(store: Store, kind: str) -> None:
    with pytest.raises(PermissionDenied):
        run(store.api_keys.create(store.person(kind=kind), request("models:run")))
    assert store.count(api_keys) == 0


@pytest.mark.parametrize(
    "header",
    [
        ("Authorization", f"Bearer {KEY}"),
        ("authorization", f"bearer {KEY}"),
        ("AUTHORIZATION", f"BEARER   {KEY}"),
        ("Authorization", f"token {KEY}"),
        ("X-API-Key", KEY),
        ("x-api-key", f" {KEY} "),
    ],
)
def test_061_every_header_that_may_carry_a_key_means_the_same(header: tuple[str, str]) -> None:
    found = credential_of([("Host", "example.org"), header])
    assert found == Credential("api-key", KEY)
    assert KEY not in repr(found)


@pytest.mark.parametrize(
    "value",
    [
        "Basic " + base64.b64encode(f"x:{KEY}".encode()).decode(),
        "Basic " + base64.b64encode(f"{KEY}:".encode()).decode(),
        f"Digest username={KEY}",
        f"ApiKey {KEY}",
        f"Negotiate {KEY}",
        KEY,
        f"Bearer{KEY}",
        f"Bearer\t{KEY}",
        "Bearer",
        "Bearer ",
        "",
        f"Bearer {KEY}, Bearer {KEY}",
        f"Bearer {KEY} {KEY}",
        f"Bearer {KEY}\r\nX-API-Key: {KEY}",
    ],
)
def test_061_other_schemes_are_refused_and_never_ignored(value: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        credential_of([("Authorization", value)])
    assert KEY not in str(caught.value)


def test_061_several_credentials_are_refused() -> None:
    bearer, key = ("Authorization", f"Bearer {KEY}"), ("X-API-Key", KEY)
    empty = ("X-API-Key", "")
    for headers in ([bearer, key], [key, bearer], [bearer, bearer], [key, key], [bearer, empty]):
        with pytest.raises(Unauthenticated):
            credential_of(headers)


def test_061_a_query_string_or_another_header_carries_none() -> None:
    others = ("Cookie", "Proxy-Authorization", "X-Auth-Token", "X-Api-Keys", "Referer", ":path")
    assert credential_of([(name, f"Bearer {KEY}") for name in others]) is None
    assert credential_of([]) is None


def test_061_a_restricted_key_is_restricted_however_it_is_sent(store: Store) -> None:
    wanted = ApiKeyRequest(name="narrow", permissions=["models:run"], routes=["POST /chat"])
    made = run(store.api_keys.create(store.person(), wanted))
    for header in (("Authorization", f"Bearer {made.key}"), ("X-API-Key", made.key)):
        found = credential_of([header])
        assert found
        assert run(store.api_keys.find(found.secret, "127.0.0.1", "POST", "/chat"))
        for method, path in (("GET", "/chat"), ("GET", "/api/kernels/1/channels"), ("GET", "/")):
            with pytest.raises(PermissionDenied):
                run(store.api_keys.find(found.secret, "127.0.0.1", method, path))


@pytest.mark.parametrize("attack", ATTACKS)
def test_074_sql_in_a_key_finds_nothing_and_breaks_nothing(store: Store, attack: str) -> None:
    made = run(store.api_keys.create(store.person(), request("models:run")))
    assert run(store.api_keys.find(attack, "127.0.0.1", "GET", "/chat")) is None
    assert run(store.api_keys.find(made.key, attack, attack, f"/{attack}"))  # it has no limits
    assert store.count(api_keys) == 1


@pytest.mark.parametrize("attack", ATTACKS)
def test_074_sql_in_a_credential_header_is_refused_or_harmless(store: Store, attack: str) -> None:
    for header in (("Authorization", f"Bearer {attack}"), ("X-API-Key", attack)):
        try:
            found = credential_of([header])
        except Unauthenticated:
            continue
        assert found
        assert run(store.api_keys.lookup(found.secret)) is None
        with pytest.raises(Unauthenticated):
            run(store.tokens.verify(found.secret, ("uait-user",)))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Authorization", "X-API-Key", "Cookie", "authorization"]),
            st.text() | st.just(f"Bearer {KEY}") | st.just(KEY),
        ),
        max_size=4,
    )
)
def test_074_no_headers_make_the_reader_fail_otherwise(headers: list[tuple[str, str]]) -> None:
    try:
        found = credential_of(headers)
    except Unauthenticated:
        return
    assert found is None or found.secret.isascii()
