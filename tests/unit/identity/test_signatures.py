"""Signed requests: what one signature lets pass, once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, func, select

from uait_server_ext.errors import NotFound, SignatureRefused
from uait_server_ext.identity.signatures import (
    COVERED,
    RequestSignatures,
    SignedRequest,
    sign,
    verify,
)
from uait_server_ext.identity.tables import nonces
from uait_server_ext.storage.database import Database, sqlite_url

KEY, SECRET = "key_1", b"s" * 43
URL = "https://lab.example.com/uait/v1/vault/secrets/x?version=2"
BODY = b'{"value":"v"}'
AT = 1_800_000_000.0


class Hand:
    at = AT

    def __call__(self) -> float:
        return self.at


class Sealed:
    """Two keys that have signing secrets."""

    def get(self, connection: Connection, name: str) -> bytes:
        if name not in ("signing:key_1", "signing:key_2"):
            raise NotFound("nothing is sealed under this name")
        return SECRET if name == "signing:key_1" else b"t" * 43


@pytest.fixture
def clock() -> Hand:
    return Hand()


@pytest.fixture
def signatures(tmp_path: Path, clock: Hand) -> Iterator[RequestSignatures]:
    database = Database(sqlite_url(tmp_path / "x.db"))
    database.open()
    yield RequestSignatures(database, Sealed(), clock)
    database.close()


def signed(
    method: str = "PUT", url: str = URL, body: bytes = BODY, at: float = AT, **options: Any
) -> SignedRequest:
    settings: dict[str, Any] = {"key_id": KEY, "secret": SECRET, "clock": lambda: at}
    headers = sign(method, url, body, **settings | options)
    return SignedRequest(method, url, list(headers.items()), body)


def without(request: SignedRequest, *names: str) -> SignedRequest:
    return replace(request, headers=[h for h in request.headers if h[0] not in names])


def changed(request: SignedRequest, name: str, old: str, new: str) -> SignedRequest:
    headers = [(n, v.replace(old, new) if n == name else v) for n, v in request.headers]
    assert headers != request.headers
    return replace(request, headers=headers)


def require(signatures: RequestSignatures, request: SignedRequest, key: str = KEY) -> None:
    asyncio.run(signatures.require(key, request))


def test_a_signed_request_passes_once(signatures: RequestSignatures) -> None:
    request = signed()
    require(signatures, request)
    with pytest.raises(SignatureRefused, match="used before"):
        require(signatures, request)
    require(signatures, signed())


@pytest.mark.parametrize("components", COVERED, ids=len)
def test_either_way_to_name_the_address_will_do(
    signatures: RequestSignatures, components: tuple[str, ...]
) -> None:
    require(signatures, signed(components=components))


def test_behind_a_proxy_that_ends_tls_the_second_way_holds(signatures: RequestSignatures) -> None:
    request = signed(components=COVERED[1])
    require(signatures, replace(request, url=URL.replace("https", "http")))


def test_a_request_without_body_is_signed_with_the_digest_of_nothing(
    signatures: RequestSignatures,
) -> None:
    request = signed(method="DELETE", body=b"")
    require(signatures, request)
    with pytest.raises(SignatureRefused):
        require(signatures, replace(signed(method="DELETE", body=b""), body=b"{}"))


def test_each_change_is_refused(signatures: RequestSignatures) -> None:
    good = signed()
    bad = {
        "method": replace(good, method="DELETE"),
        "host": replace(good, url=URL.replace("lab.", "evil.")),
        "path": replace(good, url=URL.replace("/x", "/y")),
        "query": replace(good, url=URL.replace("version=2", "version=3")),
        "body": replace(good, body=BODY + b" "),
        "body and digest": replace(
            without(good, "Content-Digest"),
            body=b"{}",
            headers=[
                *without(good, "Content-Digest").headers,
                ("Content-Digest", dict(signed(body=b"{}").headers)["Content-Digest"]),
            ],
        ),
        "no digest": without(good, "Content-Digest"),
        "no signature": without(good, "Signature"),
        "no input": without(good, "Signature-Input"),
        "nothing": replace(good, headers=[]),
        "two digests": replace(good, headers=[*good.headers, ("Content-Digest", "sha-256=:AAAA:")]),
        "created": changed(good, "Signature-Input", f"created={int(AT)}", f"created={int(AT) + 1}"),
        "key id": changed(good, "Signature-Input", KEY, "key_2"),
        "tag": changed(good, "Signature-Input", '"uait"', '"other"'),
        "algorithm": changed(good, "Signature-Input", "hmac-sha256", "ed25519"),
        "label only": changed(good, "Signature", "uait=", "evil="),
        "other secret": signed(secret=b"x" * 43),
        "other key": signed(key_id="key_2", secret=b"t" * 43),
        "short nonce": signed(nonce="short"),
        "long nonce": signed(nonce="n" * 81),
    }
    passed = []
    for what, request in bad.items():
        try:
            require(signatures, request)
        except SignatureRefused:
            continue
        passed.append(what)
    assert passed == []
    require(signatures, good)


@pytest.mark.parametrize(
    "components",
    [
        ("@method", "@target-uri"),
        ("@method", "content-digest"),
        ("@target-uri", "content-digest"),
        ("@method", "@authority", "@path", "content-digest"),
        ("@method", '"@query-param";name="version"', "@authority", "@path", "content-digest"),
        ("@method", "@target-uri", '"content-digest";key="sha-256"'),
    ],
    ids=str,
)
def test_fewer_covered_components_are_refused(components: tuple[str, ...]) -> None:
    # Made by hand: a signer that was given a body covers its digest by itself.
    from http_message_signatures import HTTPMessageSigner

    from uait_server_ext.identity.signatures import Message, OneKey, hmac

    headers = {"Content-Digest": dict(signed().headers)["Content-Digest"]}
    resolver: Any = OneKey(KEY, SECRET)
    from datetime import UTC, datetime

    HTTPMessageSigner(signature_algorithm=hmac(), key_resolver=resolver).sign(
        Message(SignedRequest("PUT", URL, ()), headers),
        key_id=KEY,
        created=datetime.fromtimestamp(AT, UTC),
        nonce="n" * 32,
        tag="uait",
        covered_component_ids=components,
        use_existing_digest=True,
    )
    request = SignedRequest("PUT", URL, list(headers.items()), BODY)
    with pytest.raises(SignatureRefused):
        verify(request, KEY, SECRET, lambda: AT)


@pytest.mark.parametrize(("age", "passes"), [(59, True), (61, False), (-4, True), (-6, False)])
def test_the_window_is_sixty_seconds(
    signatures: RequestSignatures, age: float, passes: bool
) -> None:
    request = signed(at=AT - age)
    if passes:
        require(signatures, request)
    else:
        with pytest.raises(SignatureRefused):
            require(signatures, request)


def test_a_nonce_is_kept_until_its_signature_is_too_old(
    signatures: RequestSignatures, clock: Hand
) -> None:
    request = signed(at=AT + 4)  # a client whose clock is ahead
    require(signatures, request)
    for later in (0, 30, 63):
        clock.at = AT + later
        with pytest.raises(SignatureRefused):
            require(signatures, request)


def test_nonces_are_stored_after_verification_only_and_not_for_ever(
    signatures: RequestSignatures, clock: Hand
) -> None:
    def count() -> int:
        return signatures.database.read_now(
            lambda connection: connection.scalar(select(func.count()).select_from(nonces)) or 0
        )

    for _ in range(5):
        with pytest.raises(SignatureRefused):
            require(signatures, signed(secret=b"x" * 43))
    assert count() == 0
    for _ in range(5):
        require(signatures, signed())
    assert count() == 5
    clock.at += 120
    require(signatures, signed(at=clock.at))
    assert count() == 1


def test_two_parallel_uses_pass_once(signatures: RequestSignatures) -> None:
    request = signed()

    async def run() -> list[BaseException | None]:
        return await asyncio.gather(
            *(signatures.require(KEY, request) for _ in range(8)), return_exceptions=True
        )

    results = asyncio.run(run())
    assert results.count(None) == 1
    assert all(isinstance(result, SignatureRefused) for result in results if result)


def test_another_keys_signature_is_not_this_keys(signatures: RequestSignatures) -> None:
    with pytest.raises(SignatureRefused):
        require(signatures, signed(), "key_2")
    with pytest.raises(SignatureRefused, match="no signing secret"):
        require(signatures, signed(), "key_3")


@given(
    st.text(st.characters(codec="latin-1"), max_size=200),
    st.text(st.characters(codec="latin-1"), max_size=200),
    st.text(max_size=60),
)
def test_any_header_is_refused_and_never_an_error(given_input: str, value: str, url: str) -> None:
    headers = [("Signature-Input", given_input), ("Signature", value), ("Content-Digest", value)]
    with pytest.raises(SignatureRefused):
        verify(SignedRequest("PUT", url, headers, BODY), KEY, SECRET, lambda: AT)


@given(st.data())
def test_a_signature_with_anything_changed_is_refused(data: st.DataObject) -> None:
    request = signed()
    headers = list(request.headers)
    index = data.draw(st.integers(0, len(headers) - 1))
    name, value = headers[index]
    at = data.draw(st.integers(0, len(value) - 1))
    letter = data.draw(st.characters(min_codepoint=32, max_codepoint=126))
    headers[index] = (name, value[:at] + letter + value[at + 1 :])
    tampered = replace(request, headers=headers)
    try:
        verify(tampered, KEY, SECRET, lambda: AT)
    except SignatureRefused:
        return
    # Unchanged, or changed where it says the same (the spare bits of base64, white space).
    assert name in ("Signature", "Signature-Input", "Content-Digest")
    assert tampered.method == request.method


def test_no_secret_is_in_a_text(signatures: RequestSignatures) -> None:
    request = signed()
    assert BODY.decode() not in repr(request)
    assert dict(request.headers)["Signature"] not in repr(request)
    with pytest.raises(SignatureRefused) as caught:
        require(signatures, signed(secret=b"x" * 43))
    assert SECRET.decode() not in str(caught.value)
    assert caught.value.__cause__ is None
