"""Access and refresh tokens under attack: the numbered cases of V9 and of refresh in V7."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import update

from tests.unit.identity.credential_store import ADA, ISSUER, Store, open_store, run
from uait_server_ext.errors import Unauthenticated, Unavailable
from uait_server_ext.identity.key_ring import raw
from uait_server_ext.identity.tables import revoked_tokens, signing_keys, users

AUDIENCES = ("uait-user", "uait-kernel", "uait-service")
Json = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def issue(store: Store, **changed: Any) -> str:
    facts: Json = {
        "user_id": ADA,
        "epoch": 0,
        "scope": {"models:run", "account:read"},
        "authenticated_at": store.time,
    }
    return run(store.tokens.issue(**facts | changed))


def verify(store: Store, token: str, *audiences: str) -> Any:
    return run(store.tokens.verify(token, audiences or AUDIENCES))


def refused(store: Store, token: str, *audiences: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        verify(store, token, *audiences)
    assert len(token) < 20 or token not in str(caught.value)


def encode(part: bytes | Json) -> str:
    content = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def decode(part: str) -> Json:
    decoded: Json = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return decoded


def private_key(store: Store) -> Ed25519PrivateKey:
    """Return the server's own key: the strongest forger there is."""
    state = run(store.tokens._current())
    return state.ring.private


def forge(
    store: Store,
    *,
    header: Json | bytes | None = None,
    payload: Json | bytes | None = None,
    drop: str | None = None,
    sign: Callable[[bytes], bytes] | None = None,
) -> str:
    """Return a good token with something changed, signed with the right key unless told how."""
    good_header, good_payload, _ = issue(store).split(".")
    new_header = decode(good_header) | header if isinstance(header, dict) else header
    new_payload = decode(good_payload) | payload if isinstance(payload, dict) else payload
    if new_header is None:
        new_header = decode(good_header)
    if new_payload is None:
        new_payload = decode(good_payload)
    if drop:
        for part in (new_header, new_payload):
            if isinstance(part, dict):
                part.pop(drop, None)
    signed = f"{encode(new_header)}.{encode(new_payload)}"
    signature = (sign or private_key(store).sign)(signed.encode())
    return f"{signed}.{encode(signature)}"


def public_bytes(store: Store) -> bytes:
    return raw(private_key(store).public_key())


def test_032_the_forger_of_these_tests_can_make_a_good_token(store: Store) -> None:
    assert verify(store, forge(store)).user_id == ADA


@pytest.mark.parametrize("algorithm", ["none", "None", "NoNe", "NONE", "", None, 7])
def test_032_no_algorithm_is_refused(store: Store, algorithm: Any) -> None:
    for sign in (None, lambda _: b"", lambda _: b"\0" * 64):
        refused(store, forge(store, header={"alg": algorithm}, sign=sign))


def test_032_a_missing_algorithm_or_signature_is_refused(store: Store) -> None:
    refused(store, forge(store, drop="alg"))
    header, payload, _ = issue(store).split(".")
    for token in (f"{header}.{payload}.", f"{header}.{payload}", f"{header}..{payload}", "", "."):
        refused(store, token)


@pytest.mark.parametrize("algorithm", ["HS256", "HS512", "RS256", "ES256", "PS256", "Ed448"])
def test_033_the_public_key_is_no_secret_of_another_algorithm(store: Store, algorithm: str) -> None:
    public = public_bytes(store)
    jwks = json.dumps(run(store.tokens.jwks())["keys"][0]).encode()
    for secret in (public, base64.urlsafe_b64encode(public), jwks, b""):

        def sign(message: bytes, secret: bytes = secret) -> bytes:
            return hmac.digest(secret, message, hashlib.sha256)

        refused(store, forge(store, header={"alg": algorithm}, sign=sign))
    refused(store, forge(store, header={"alg": algorithm}))


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c", "x5t"])
def test_034_a_token_cannot_bring_its_key(
    store: Store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: connected.append(address))
    attacker = Ed25519PrivateKey.generate()
    x = base64.urlsafe_b64encode(raw(attacker.public_key())).rstrip(b"=").decode()
    values: Json = {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": x}, "x5c": [x], "x5t": x}
    header = {name: values.get(name, "http://127.0.0.1:9/keys.json")}
    refused(store, forge(store, header=header, sign=attacker.sign))
    refused(store, forge(store, header=header))
    assert connected == []


@pytest.mark.parametrize(
    "kid",
    [
        "../../dev/null",
        "' OR 1=1--",
        "key' UNION SELECT public_jwk FROM signing_keys--",
        "k" * 10_000,
        "",
        "\x00",
        "KEY_",
        None,
        ["a"],
        {"a": 1},
        0,
    ],
)
def test_035_a_strange_key_id_is_refused(store: Store, kid: Any) -> None:
    refused(store, forge(store, header={"kid": kid}))
    refused(store, forge(store, header={"kid": kid}, sign=lambda m: hmac.digest(b"", m, "sha256")))
    refused(store, forge(store, drop="kid"))
    assert store.count(signing_keys) == 1


def test_036_an_expired_token_is_refused(store: Store) -> None:
    token = issue(store)
    store.later(599.5)
    assert verify(store, token)
    store.later(0.5)
    refused(store, token)


def test_036_a_token_of_a_kernel_lives_five_minutes(store: Store) -> None:
    token = issue(store, audience="uait-kernel", kernel_id="k1")
    store.later(299)
    assert verify(store, token).kernel_id == "k1"
    store.later(1)
    refused(store, token)


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_036_a_token_from_the_future_is_refused(store: Store, claim: str) -> None:
    refused(store, forge(store, payload={claim: int(store.time) + 31}))
    assert verify(store, forge(store, payload={claim: int(store.time) + 30}))


@pytest.mark.parametrize("claim", ["exp", "iat", "nbf", "auth_time", "epoch"])
@pytest.mark.parametrize("value", ["1900000000", 1.9e9, True, None, [], -1, 10**30, 1e400])
def test_036_a_time_that_is_none_is_refused(store: Store, claim: str, value: Any) -> None:
    refused(store, forge(store, payload={claim: value}))


@pytest.mark.parametrize("word", [b"Infinity", b"-Infinity", b"NaN", b"1e400", b"0x7fffffff"])
def test_036_a_number_that_is_not_json_is_refused(store: Store, word: bytes) -> None:
    payload = base64.urlsafe_b64decode(issue(store).split(".")[1] + "==")
    exp = str(int(store.time) + 600).encode()
    assert exp in payload
    refused(store, forge(store, payload=payload.replace(exp, word)))


@pytest.mark.parametrize(
    "claim", ["iss", "aud", "sub", "jti", "iat", "exp", "scope", "epoch", "auth_time"]
)
def test_036_a_missing_claim_is_refused(store: Store, claim: str) -> None:
    refused(store, forge(store, drop=claim))


def test_037_the_issuer_and_the_audience_are_exact(store: Store) -> None:
    for issuer in ("uait", ISSUER + "/", ISSUER.upper(), "", [ISSUER], None):
        refused(store, forge(store, payload={"iss": issuer}))
    for audience in (["uait-user"], "uait-user ", "UAIT-USER", "*", "", None, ["uait-user", "x"]):
        refused(store, forge(store, payload={"aud": audience}))


def test_037_a_token_for_a_kernel_does_not_open_the_users_api(store: Store) -> None:
    kernel = issue(store, audience="uait-kernel", kernel_id="k1")
    user = issue(store)
    for _ in range(2):  # the second time from the cache
        refused(store, kernel, "uait-user")
        refused(store, user, "uait-kernel", "uait-service")
        assert verify(store, kernel, "uait-kernel")
        assert verify(store, user, "uait-user")


@pytest.mark.parametrize("kind", ["JWT", "id_token+jwt", "rt+jwt", "AT+JWT", "", None, "jose"])
def test_037_another_type_of_token_is_refused(store: Store, kind: Any) -> None:
    refused(store, forge(store, header={"typ": kind}))


def test_037_a_refresh_token_is_no_access_token(store: Store) -> None:
    refused(store, store.login())


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"], "exp": 1},
        {"crit": []},
        {"b64": False, "crit": ["b64"]},
        {"b64": True},
        {"zip": "DEF"},
        {"cty": "JWT"},
        {"anything": 1},
    ],
)
def test_038_a_header_that_wants_more_is_refused(store: Store, header: Json) -> None:
    refused(store, forge(store, header=header))


@pytest.mark.parametrize("claim", ["sub", "exp", "aud", "scope"])
def test_039_a_claim_given_twice_is_refused(store: Store, claim: str) -> None:
    payload = base64.urlsafe_b64decode(issue(store).split(".")[1] + "==")
    value = json.dumps(json.loads(payload)[claim]).encode()
    twice = payload[:-1] + b',"' + claim.encode() + b'":' + value + b"}"
    assert json.loads(twice) == json.loads(payload)
    refused(store, forge(store, payload=twice))


def test_039_a_header_or_an_inner_member_given_twice_is_refused(store: Store) -> None:
    header = base64.urlsafe_b64decode(issue(store).split(".")[0] + "==")
    refused(store, forge(store, header=b'{"alg":"none",' + header[1:]))
    payload = base64.urlsafe_b64decode(issue(store).split(".")[1] + "==")
    refused(store, forge(store, payload=payload[:-1] + b',"x":{"a":1,"a":2}}'))


def test_039_a_token_has_one_spelling(store: Store) -> None:
    token = issue(store)
    for spelled in (token + "=", token + "==", f" {token}", token + "\n", token.replace(".", ". ")):
        refused(store, spelled)
    header, payload, signature = token.split(".")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    # 64 bytes leave four bits of the last letter unused: they must be zero.
    other = letters[letters.index(signature[-1]) + 1]
    refused(store, f"{header}.{payload}.{signature[:-1]}{other}")


def test_039_what_is_no_token_at_all_is_refused(store: Store) -> None:
    nested = b'{"a":' * 900 + b"1" + b"}" * 900
    for payload in (b"", b"[]", b"null", b'"x"', b"\xff\xfe", b"{", nested):
        refused(store, forge(store, payload=payload))
        refused(store, forge(store, header=payload))
    for token in ("a.b.c", "." * 3, "x" * 100_000, "ü.ü.ü", "\ud800.a.b", "a.b.c.d"):
        refused(store, token)
    refused(store, forge(store, payload={"scope": "models:run " * 1000}))


def test_040_what_changes_about_a_user_ends_their_refresh_tokens(store: Store) -> None:
    for change in ({"disabled_at": store.time}, {"epoch": 5}):
        store.change_user(ADA, disabled_at=None)
        token = store.login()
        store.change_user(ADA, **change)
        with pytest.raises(Unauthenticated):
            run(store.refresh.rotate(token))
    token = store.login()
    store.write(lambda c: c.execute(users.delete().where(users.c.id == ADA)))
    with pytest.raises(Unauthenticated):
        run(store.refresh.rotate(token))


def test_040_a_token_carries_the_epoch_at_which_it_was_issued(store: Store) -> None:
    assert verify(store, issue(store, epoch=3)).epoch == 3


@pytest.mark.parametrize(
    "jwk",
    [
        '{"kty":"oct","k":"c2hvcnQ","kid":"%s"}',  # an HMAC key, here of five bytes
        '{"kty":"OKP","crv":"Ed25519","x":"c2hvcnQ","kid":"%s"}',
        '{"kty":"OKP","crv":"Ed25519","kid":"another","x":"%s"}',
        '{"kty":"RSA","n":"AQAB","e":"AQAB","kid":"%s"}',
        "not json",
        "[]",
    ],
)
def test_041_a_key_that_is_not_ed25519_stops_the_start(store: Store, jwk: str) -> None:
    run(store.tokens.open())
    kid = run(store.tokens.jwks())["keys"][0]["kid"]
    content = jwk % kid if "%s" in jwk else jwk
    store.write(lambda c: c.execute(update(signing_keys).values(public_jwk=content)))
    store.tokens._state = None
    with pytest.raises(Unavailable, match="not an Ed25519 key"):
        run(store.tokens.open())


def test_041_a_private_key_that_is_short_or_another_stops_the_start(store: Store) -> None:
    run(store.tokens.open())
    kid = run(store.tokens.jwks())["keys"][0]["kid"]
    for private in (b"short", b"\x01" * 32):
        store.write(partial(store.sealer.put, name=f"jwt:{kid}", plaintext=private))
        store.tokens._state = None
        with pytest.raises(Unavailable, match="not an Ed25519 key"):
            run(store.tokens.open())


def test_042_tokens_that_begin_alike_have_their_own_identities(store: Store) -> None:
    ada, ben = issue(store), issue(store, user_id="usr_ben")
    assert ada[:20] == ben[:20]
    assert verify(store, ada).user_id == ADA
    assert verify(store, ben).user_id == "usr_ben"
    mixed = ada.rpartition(".")[0] + "." + ben.rpartition(".")[2]
    refused(store, mixed)
    assert verify(store, ada).user_id == ADA


def test_043_a_replaced_key_verifies_in_its_grace_only(store: Store) -> None:
    old = issue(store)
    verify(store, old)
    run(store.tokens.rotate(grace=100))
    new = issue(store)
    assert decode(old.split(".")[0])["kid"] != decode(new.split(".")[0])["kid"]
    assert len(run(store.tokens.jwks())["keys"]) == 2
    store.later(99)
    assert verify(store, old)
    store.later(1)
    refused(store, old)
    assert verify(store, new)
    assert len(run(store.tokens.jwks())["keys"]) == 1


def test_043_a_key_can_be_dropped_at_once(store: Store) -> None:
    old = issue(store)
    assert verify(store, old)
    run(store.tokens.rotate(grace=0))
    refused(store, old)
    assert verify(store, issue(store))


def test_046_a_refresh_token_used_twice_ends_its_family(store: Store) -> None:
    first = store.login()
    other = store.login()
    answer = run(store.refresh.rotate(first))
    assert verify(store, answer.access_token)
    with pytest.raises(Unauthenticated):
        run(store.refresh.rotate(first, "203.0.113.9"))
    with pytest.raises(Unauthenticated):
        run(store.refresh.rotate(answer.refresh_token))
    refused(store, answer.access_token)
    assert ("token.reuse", "refused") in store.events()
    assert run(store.audit.verify()).intact
    assert run(store.refresh.rotate(other))  # another login of the same person goes on


def test_047_of_parallel_refreshes_at_most_one_wins(store: Store) -> None:
    import asyncio

    token = store.login()

    async def all_at_once() -> list[Any]:
        attempts = [store.refresh.rotate(token) for _ in range(20)]
        return await asyncio.gather(*attempts, return_exceptions=True)

    outcomes = run(all_at_once())
    won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    lost = [outcome for outcome in outcomes if isinstance(outcome, Unauthenticated)]
    assert (len(won), len(lost)) == (1, 19)
    with pytest.raises(Unauthenticated):
        run(store.refresh.rotate(won[0].refresh_token))


def test_048_a_login_ends_by_idleness_and_at_its_absolute_limit(store: Store) -> None:
    token = store.login()
    store.later(14 * 86_400)
    with pytest.raises(Unauthenticated):
        run(store.refresh.rotate(token))
    token = store.login()
    for _ in range(8):
        store.later(10 * 86_400)
        token = run(store.refresh.rotate(token)).refresh_token
    store.later(10 * 86_400)  # the ninetieth day is too late
    with pytest.raises(Unauthenticated):
        run(store.refresh.rotate(token))


def test_052_a_revoked_token_is_refused_at_once_by_every_process(store: Store) -> None:
    from uait_server_ext.identity.tokens import AccessTokens

    token = issue(store)
    elsewhere = AccessTokens(store.database, store.sealer, store.clock, ISSUER)
    assert run(elsewhere.verify(token, AUDIENCES)).user_id == ADA
    run(store.tokens.revoke(verify(store, token).jti))
    refused(store, token)
    with pytest.raises(Unauthenticated):
        run(elsewhere.verify(token, AUDIENCES))
    store.later(3600)
    run(store.tokens.revoke("jti_another"))
    assert store.count(revoked_tokens) == 1  # the first could not live any longer
