"""Access tokens: what they say, the key ring over time and over processes, the cost of a check."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.identity.credential_store import ADA, ISSUER, Store, open_store, run
from uait_server_ext.errors import Unauthenticated
from uait_server_ext.identity.jwt_claims import AccessClaims, Malformed, parse
from uait_server_ext.identity.tables import signing_keys
from uait_server_ext.identity.tokens import ROTATE_SECONDS, AccessTokens
from uait_server_ext.storage.tables import sealed_values

USER = ("uait-user",)
DAY = 86_400.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def issue(store: Store) -> str:
    return run(
        store.tokens.issue(
            user_id=ADA, epoch=2, scope=["models:run", "account:read"], authenticated_at=store.time
        )
    )


def test_a_token_says_what_it_was_issued_for(store: Store) -> None:
    token = issue(store)
    claims = run(store.tokens.verify(token, USER))
    assert claims == AccessClaims(
        user_id=ADA,
        jti=claims.jti,
        epoch=2,
        scope=frozenset({"models:run", "account:read"}),
        audience="uait-user",
        issued_at=store.time,
        expires_at=store.time + 600,
        kernel_id=None,
        authenticated_at=store.time,
    )
    assert claims.jti.startswith("jti_")


def test_another_library_verifies_it_with_the_published_keys(store: Store) -> None:
    token = issue(store)
    keys = jwt.PyJWKSet.from_dict(run(store.tokens.jwks()))
    header = jwt.get_unverified_header(token)
    assert (header["alg"], header["typ"]) == ("EdDSA", "at+jwt")
    options = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}
    claims = jwt.decode(
        token,
        keys[header["kid"]].key,
        algorithms=["EdDSA"],
        audience="uait-user",
        issuer=ISSUER,
        options=options,  # type: ignore[arg-type]
    )
    assert claims["sub"] == ADA


def test_the_published_keys_hold_no_private_part(store: Store) -> None:
    (key,) = run(store.tokens.jwks())["keys"]
    assert set(key) == {"kty", "crv", "x", "kid", "alg", "use"}


def test_the_private_key_is_sealed_and_shows_itself_nowhere(store: Store) -> None:
    run(store.tokens.open())
    state = store.tokens._state
    assert state
    private = state.ring.private.private_bytes_raw()
    for file in store.folder.iterdir():
        assert private not in file.read_bytes()
    assert "Ed25519PrivateKey" not in repr(state)


def test_the_signing_key_is_replaced_by_age_and_the_old_one_goes(store: Store) -> None:
    old = issue(store)
    kid = jwt.get_unverified_header(old)["kid"]
    store.later(ROTATE_SECONDS - 300)
    almost = issue(store)
    assert jwt.get_unverified_header(almost)["kid"] == kid
    store.later(300)
    new = issue(store)
    assert jwt.get_unverified_header(new)["kid"] != kid
    assert run(store.tokens.verify(almost, USER))  # a rotation ends no living token
    store.later(DAY)
    run(store.tokens.rotate())
    assert store.count(signing_keys) == 2
    assert store.count(sealed_values) == 2 + 2  # both keys, the head, the audit chain's key


def test_processes_on_one_database_share_the_ring(store: Store) -> None:
    others = [AccessTokens(store.database, store.sealer, store.clock, ISSUER) for _ in range(8)]

    async def open_all() -> None:
        await asyncio.gather(*(other.open() for other in others))

    run(open_all())
    assert store.count(signing_keys) == 1
    token = issue(store)
    run(others[0].rotate())
    for other in others:
        assert run(other.verify(token, USER)).user_id == ADA
        assert len(run(other.jwks())["keys"]) == 2


def test_processes_that_rotate_by_age_together_rotate_once(store: Store) -> None:
    run(store.tokens.open())
    store.later(ROTATE_SECONDS)
    others = [AccessTokens(store.database, store.sealer, store.clock, ISSUER) for _ in range(8)]

    async def issue_all() -> None:
        await asyncio.gather(
            *(
                other.issue(user_id=ADA, epoch=0, scope=(), authenticated_at=store.time)
                for other in others
            )
        )

    run(issue_all())
    assert store.count(signing_keys) == 2


def test_a_cached_token_ends_with_its_time_and_with_its_key(store: Store) -> None:
    token = issue(store)
    run(store.tokens.verify(token, USER))
    run(store.tokens.rotate(grace=10))
    run(store.tokens.verify(token, USER))
    store.later(10)
    with pytest.raises(Unauthenticated):
        run(store.tokens.verify(token, USER))


def test_the_cache_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uait_server_ext.identity.tokens.CACHE_ENTRIES", 3)
    tokens = [issue(store) for _ in range(6)]
    for token in tokens:
        run(store.tokens.verify(token, USER))
    assert store.tokens._state
    assert len(store.tokens._state.verified) == 3
    assert run(store.tokens.verify(tokens[0], USER))


def test_a_known_token_is_checked_in_microseconds(store: Store) -> None:
    token = issue(store)

    async def cost() -> float:
        await store.tokens.verify(token, USER)
        best = 1.0
        for _ in range(400):
            began = time.perf_counter()
            await store.tokens.verify(token, USER)
            best = min(best, time.perf_counter() - began)
        return best

    assert run(cost()) < 60e-6  # 15 µs where nothing else runs


@settings(deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    for token in (text, f"a.{text}.b", f"{text}.{text}.{text}"):
        with pytest.raises(Malformed):
            parse(token)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_no_json_makes_the_parser_fail_otherwise(content: object) -> None:
    import base64

    part = base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()
    header = base64.urlsafe_b64encode(b'{"alg":"EdDSA","typ":"at+jwt","kid":"k"}').decode()
    for token in (f"{part}.{part}.{part}", f"{header.rstrip('=')}.{part}.{part}"):
        with pytest.raises(Malformed):
            parse(token)
