"""Signed requests (RFC 9421): a stolen API key alone cannot do what is marked sensitive.

The signature covers the method, the address and the digest of the body (RFC 9530), is at most 60
seconds old and used once. It is an HMAC with the key's own signing secret, which is sent to nobody
after the key was made and is sealed here as `signing:<api key id>`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Connection, delete, insert
from sqlalchemy.exc import IntegrityError

from uait_server_ext.errors import NotFound, SignatureRefused
from uait_server_ext.storage.database import Database
from uait_server_ext.storage.ids import Clock, now

from .tables import nonces

if TYPE_CHECKING:
    from http_message_signatures import HTTPMessageVerifier, VerifyResult

TAG = "uait"
MAX_AGE_SECONDS = 60
CLOCK_SKEW_SECONDS = 5
MIN_NONCE, MAX_NONCE = 16, 80
COVERED = (
    ("@method", "@target-uri", "content-digest"),
    ("@method", "@authority", "@path", "@query", "content-digest"),
)
"""A signature covers one of these whole; the second also holds behind a proxy that ends TLS."""

REFUSED = (
    "This operation takes a signed request (RFC 9421) when an API key calls it: hmac-sha256 with "
    'the key\'s signing secret, tag "uait", `created` now, a fresh `nonce`, over "@method" '
    '"@target-uri" "content-digest".'
)


class SealedSecrets(Protocol):
    """The part of `storage.sealing.Sealer` that is needed here."""

    def get(self, connection: Connection, name: str) -> bytes:
        """Return what is sealed under a name; raises NotFound."""


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request as it came over the wire.

    Attributes:
        method: upper case.
        url: the whole target URI, `https://host/path?query`, as the client wrote it.
        headers: name and value of every header line, in order.
        body: the bytes received.
    """

    method: str
    url: str
    headers: Sequence[tuple[str, str]] = field(repr=False)
    body: bytes = field(default=b"", repr=False)


class RequestSignatures:
    """Check the signatures of requests that API keys make."""

    def __init__(self, database: Database, sealer: SealedSecrets, clock: Clock = now) -> None:
        self.database = database
        self.sealer = sealer
        self.clock = clock

    async def require(self, key_id: str, request: SignedRequest) -> None:
        """Let a request pass that this API key has signed, once.

        Raises:
            SignatureRefused: no signature, another key's, too old, used before, covering less
                than it must, or not of this method, address and body.
        """

        def read_secret(connection: Connection) -> bytes:
            return self.sealer.get(connection, f"signing:{key_id}")

        try:
            secret = await self.database.read(read_secret)
        except NotFound:
            raise SignatureRefused(
                "This API key has no signing secret. Make a key that has one."
            ) from None
        nonce, expires_at = verify(request, key_id, secret, self.clock)

        def spend(connection: Connection) -> None:
            subject = f"signature:{key_id}"
            connection.execute(
                delete(nonces).where(
                    nonces.c.subject == subject, nonces.c.expires_at < self.clock()
                )
            )
            connection.execute(
                insert(nonces).values(subject=subject, nonce=nonce, expires_at=expires_at)
            )

        try:
            # Only now: nonces of requests that nobody signed would fill the table.
            await self.database.write(spend)
        except IntegrityError:
            raise SignatureRefused("This signature was used before. Sign each request.") from None


def verify(
    request: SignedRequest, key_id: str, secret: bytes, clock: Clock = now
) -> tuple[str, float]:
    """Verify a signature; return its nonce and the time until which the nonce must be kept.

    Raises:
        SignatureRefused: see `RequestSignatures.require`.
    """
    from http_message_signatures import HTTPMessageSignaturesException

    resolver: Any = OneKey(key_id, secret)
    try:
        results = verifier(clock)(signature_algorithm=hmac(), key_resolver=resolver).verify(
            Message(request), max_age=None, expect_tag=TAG, body=request.body
        )
    except (HTTPMessageSignaturesException, ValueError):
        # Which of its parts is wrong is nobody's business but the signer's.
        raise SignatureRefused(REFUSED) from None
    if len(results) != 1:
        raise SignatureRefused(REFUSED)
    covered = components(results[0])
    nonce = results[0].nonce or ""
    enough = any(covered.issuperset(needed) for needed in COVERED)
    if not enough or not MIN_NONCE <= len(nonce) <= MAX_NONCE:
        raise SignatureRefused(REFUSED)
    created = int(results[0].parameters["created"])
    return nonce, created + MAX_AGE_SECONDS + CLOCK_SKEW_SECONDS


def sign(
    method: str,
    url: str,
    body: bytes,
    *,
    key_id: str,
    secret: bytes,
    clock: Clock = now,
    nonce: str | None = None,
    components: Sequence[str] = COVERED[0],
) -> dict[str, str]:
    """Return the headers that sign a request: Content-Digest, Signature-Input, Signature."""
    from http_message_signatures import HTTPMessageSigner

    headers: dict[str, str] = {}
    resolver: Any = OneKey(key_id, secret)
    HTTPMessageSigner(signature_algorithm=hmac(), key_resolver=resolver).sign(
        Message(SignedRequest(method, url, ()), headers),
        key_id=key_id,
        created=datetime.fromtimestamp(clock(), UTC),
        nonce=nonce or secrets.token_urlsafe(24),
        label="uait",
        tag=TAG,
        covered_component_ids=components,
        body=body,
    )
    return headers


class Message:
    """A request in the form the library reads; `headers` is what it writes to when it signs."""

    def __init__(self, request: SignedRequest, headers: dict[str, str] | None = None) -> None:
        self.method = request.method
        self.url = request.url
        self.headers: Any = Lines(request.headers) if headers is None else headers


class Lines:
    """Header lines, each by itself: a header sent twice must not look like one."""

    def __init__(self, lines: Sequence[tuple[str, str]]) -> None:
        self._lines = lines

    def items(self) -> Sequence[tuple[str, str]]:
        """Return every line."""
        return self._lines


class OneKey:
    """The only key that may have signed: that of the API key which calls."""

    def __init__(self, key_id: str, secret: bytes) -> None:
        self._key_id = key_id
        self._secret = secret

    def resolve_public_key(self, key_id: str) -> bytes:
        """Return the key to verify with."""
        return self.resolve_private_key(key_id)

    def resolve_private_key(self, key_id: str) -> bytes:
        """Return the key to sign with."""
        if key_id != self._key_id:
            raise ValueError("another key id")
        return self._secret


def hmac() -> Any:
    """Return the one algorithm in use."""
    from http_message_signatures.algorithms import HMAC_SHA256

    return HMAC_SHA256


def components(result: VerifyResult) -> frozenset[str]:
    """Return the names covered whole; one with a parameter covers a part of it only."""
    return frozenset(name.strip('"') for name in result.covered_components if name.endswith('"'))


def verifier(clock: Clock) -> type[HTTPMessageVerifier]:
    """Return the library's verifier, bound to our clock and window."""
    from http_message_signatures import HTTPMessageVerifier, InvalidSignature

    class Verifier(HTTPMessageVerifier):
        def validate_created_and_expires(self, sig_input: Any, max_age: Any = None) -> None:
            created, expires = sig_input.params.get("created"), sig_input.params.get("expires")
            at = clock()
            if type(created) is not int or not (
                at - MAX_AGE_SECONDS <= created <= at + CLOCK_SKEW_SECONDS
            ):
                raise InvalidSignature("not created within the window")
            if expires is not None and (type(expires) is not int or expires < at):
                raise InvalidSignature("expired")

    return Verifier
