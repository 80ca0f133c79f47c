"""A passkey authenticator in software: what a phone answers, and what a bad one might.

Follows WebAuthn level 3 (sections 6.1 and 6.5) with ES256 keys and attestation `none`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from fido2 import cbor
from fido2.cose import ES256

USER_PRESENT, USER_VERIFIED, ATTESTED = 0x01, 0x04, 0x40


def encode(data: bytes) -> str:
    """Encode as base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Decode base64url without padding."""
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


@dataclass
class SoftAuthenticator:
    """One passkey. Its attributes are what a test makes wrong.

    Attributes:
        origin: of the page that the browser says it shows.
        rp_id: the host name for which the key was made; that of the options where it is None.
        verifies: whether it checks who holds it.
        count: how often it signed; a copy goes on from an older number.
    """

    origin: str
    rp_id: str | None = None
    verifies: bool = True
    count: int = 0
    credential_id: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    user_handle: bytes = b""

    def create(self, options: dict[str, Any]) -> dict[str, Any]:
        """Answer the options of `navigator.credentials.create`."""
        self.rp_id = self.rp_id or options["rp"]["id"]
        self.user_handle = decode(options["user"]["id"])
        attested = (
            bytes(16)
            + len(self.credential_id).to_bytes(2)
            + self.credential_id
            + cbor.encode(dict(ES256.from_cryptography_key(self.key.public_key())))
        )
        authenticator_data = self._authenticator_data(ATTESTED) + attested
        attestation = {"fmt": "none", "attStmt": {}, "authData": authenticator_data}
        return self._credential(
            clientDataJSON=encode(self._client_data("webauthn.create", options)),
            attestationObject=encode(cbor.encode(attestation)),
            transports=["internal"],
        )

    def get(self, options: dict[str, Any]) -> dict[str, Any]:
        """Answer the options of `navigator.credentials.get`."""
        self.count += 1
        client_data = self._client_data("webauthn.get", options)
        authenticator_data = self._authenticator_data(0)
        signed = authenticator_data + hashlib.sha256(client_data).digest()
        return self._credential(
            clientDataJSON=encode(client_data),
            authenticatorData=encode(authenticator_data),
            signature=encode(self.key.sign(signed, ec.ECDSA(hashes.SHA256()))),
            userHandle=encode(self.user_handle),
        )

    def _client_data(self, kind: str, options: dict[str, Any]) -> bytes:
        data = {"type": kind, "challenge": options["challenge"], "origin": self.origin}
        return json.dumps(data | {"crossOrigin": False}).encode()

    def _authenticator_data(self, flags: int) -> bytes:
        assert self.rp_id
        flags |= USER_PRESENT | (USER_VERIFIED if self.verifies else 0)
        rp_hash = hashlib.sha256(self.rp_id.encode()).digest()
        return rp_hash + bytes([flags]) + self.count.to_bytes(4)

    def _credential(self, **response: Any) -> dict[str, Any]:
        key_id = encode(self.credential_id)
        return {
            "id": key_id,
            "rawId": key_id,
            "type": "public-key",
            "response": response,
            "clientExtensionResults": {},
            "authenticatorAttachment": "platform",
        }
