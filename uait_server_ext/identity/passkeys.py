"""Passkeys (WebAuthn level 3): something that a person has, opened by what they know or are.

The server keeps public keys only. User verification is always required, so a passkey is two factors
in one and logs in alone. Needs the extra `uait[passkeys]`; `ceremonies.py` keeps the challenges.
"""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, delete, func, select, update

from uait_server_ext.errors import Conflict, DependencyMissing, InvalidInput, UaitError
from uait_server_ext.events.audit import AuditEvent, AuditLog
from uait_server_ext.storage.database import Database, raise_generation
from uait_server_ext.storage.ids import Clock, now

from .ceremonies import (
    Challenge,
    Credential,
    begin,
    refused,
    relying_party,
    response_of,
    take,
    unknown_ceremony,
)
from .directory import raise_epoch
from .factor_models import Passkey
from .tables import passkeys

if TYPE_CHECKING:
    from webauthn.helpers.structs import PublicKeyCredentialDescriptor

MAX_PASSKEYS = 20
SERVER_NAME = "UAIT"


class Passkeys:
    """The passkeys of all people: adding one, and logging in with it."""

    def __init__(self, database: Database, audit: AuditLog, clock: Clock = now) -> None:
        self.database = database
        self.audit = audit
        self.clock = clock

    def available(self, origin: str) -> bool:
        """Tell whether a browser that sees this server under the origin can use passkeys here."""
        try:
            relying_party(origin)
        except InvalidInput:
            return False
        return importlib.util.find_spec("webauthn") is not None

    async def options_to_add(
        self, user_id: str, username: str, display_name: str, origin: str, binding: str
    ) -> dict[str, Any]:
        """Begin to add a passkey: the options for `navigator.credentials.create`.

        Raises:
            DependencyMissing: the extra is not installed.
            InvalidInput: the origin is one for which no browser makes passkeys.
            Conflict: the user has as many passkeys as are kept.
        """

        def work(connection: Connection) -> dict[str, Any]:
            require_library()
            from webauthn import generate_registration_options, options_to_json
            from webauthn.helpers import bytes_to_base64url
            from webauthn.helpers.structs import (
                AuthenticatorSelectionCriteria,
                ResidentKeyRequirement,
                UserVerificationRequirement,
            )

            known = descriptors(connection, user_id)
            if len(known) >= MAX_PASSKEYS:
                raise Conflict(
                    f"You have {MAX_PASSKEYS} passkeys, as many as are kept. Remove one first."
                )
            options = generate_registration_options(
                rp_id=relying_party(origin),
                rp_name=SERVER_NAME,
                user_id=user_id.encode(),
                user_name=username,
                user_display_name=display_name,
                exclude_credentials=known,
                authenticator_selection=AuthenticatorSelectionCriteria(
                    resident_key=ResidentKeyRequirement.REQUIRED,
                    user_verification=UserVerificationRequirement.REQUIRED,
                ),
            )
            challenge = bytes_to_base64url(options.challenge)
            begin(connection, "passkey-add", challenge, binding, user_id, self.clock())
            return dict(json.loads(options_to_json(options)))

        return await self.database.write(work)

    async def add(
        self,
        user_id: str,
        name: str,
        credential: Credential,
        origin: str,
        binding: str | None,
        address: str | None = None,
    ) -> Passkey:
        """End a ceremony that `options_to_add` began, and keep the public key.

        Raises:
            FlowInvalid: the challenge is unknown, was used, or is another browser's or user's.
            Unauthenticated: the challenge is too old, or the answer does not prove the passkey.
            Conflict: this passkey is known.
        """
        require_library()
        challenge = await self.database.write(
            lambda connection: take(connection, "passkey-add", credential, binding, self.clock())
        )
        if challenge.user_id != user_id:
            raise unknown_ceremony()

        def work(connection: Connection) -> Passkey:
            added = self._keep(connection, user_id, name, credential, origin, challenge)
            self.audit.append(
                connection,
                AuditEvent(
                    action="factor.add",
                    outcome="ok",
                    principal=user_id,
                    kind="user",
                    address=address,
                    target=user_id,
                    detail={"factor": "passkey"},
                ),
            )
            raise_generation(connection, "identity")
            raise_epoch(connection, [user_id])
            return added

        return await self.database.write(work)

    async def options_to_log_in(
        self, origin: str, binding: str, user_id: str | None = None
    ) -> dict[str, Any]:
        """Begin a login: the options for `navigator.credentials.get`.

        Without a user the browser offers the passkeys that it has for this server; with one (a
        second factor, a step-up) only that user's are taken.

        Raises:
            DependencyMissing: the extra is not installed.
            InvalidInput: the origin is one for which no browser makes passkeys.
        """

        def work(connection: Connection) -> dict[str, Any]:
            require_library()
            from webauthn import generate_authentication_options, options_to_json
            from webauthn.helpers import bytes_to_base64url
            from webauthn.helpers.structs import UserVerificationRequirement

            options = generate_authentication_options(
                rp_id=relying_party(origin),
                allow_credentials=descriptors(connection, user_id) if user_id else [],
                user_verification=UserVerificationRequirement.REQUIRED,
            )
            challenge = bytes_to_base64url(options.challenge)
            begin(connection, "passkey", challenge, binding, user_id, self.clock())
            return dict(json.loads(options_to_json(options)))

        return await self.database.write(work)

    async def log_in(
        self,
        credential: Credential,
        origin: str,
        binding: str | None,
        address: str | None = None,
    ) -> str:
        """End a ceremony that `options_to_log_in` began; return the id of the passkey's user.

        Raises:
            FlowInvalid: the challenge is unknown, was used, or is another browser's.
            Unauthenticated: the challenge is too old, the passkey is unknown or another user's,
                the answer does not prove it, or its counter went back.
        """
        require_library()
        challenge: Challenge | None = None
        try:
            challenge = await self.database.write(
                lambda connection: take(connection, "passkey", credential, binding, self.clock())
            )
            taken = challenge
            return await self.database.write(
                lambda connection: self._prove(connection, credential, origin, taken, address)
            )
        except UaitError as error:
            await self.audit.record(
                AuditEvent(
                    action="login.passkey",
                    outcome="refused",
                    principal=challenge.user_id if challenge else None,
                    kind="user",
                    address=address,
                    detail={"reason": error.code},
                )
            )
            raise

    def _keep(
        self,
        connection: Connection,
        user_id: str,
        name: str,
        credential: Credential,
        origin: str,
        challenge: Challenge,
    ) -> Passkey:
        from webauthn import base64url_to_bytes, verify_registration_response
        from webauthn.helpers import bytes_to_base64url

        try:
            verified = verify_registration_response(
                credential=dict(credential),
                expected_challenge=base64url_to_bytes(challenge.text),
                expected_rp_id=relying_party(origin),
                expected_origin=origin,
                require_user_verification=True,
            )
        except Exception:  # the library's parsers raise what they like at hostile input
            raise refused() from None
        key_id = bytes_to_base64url(verified.credential_id)
        if connection.scalar(select(func.count()).where(passkeys.c.credential_id == key_id)):
            raise Conflict("This passkey is known already. Use it, or choose another device.")
        added = Passkey(key_id, name, self.clock(), None)
        connection.execute(
            passkeys.insert().values(
                credential_id=key_id,
                user_id=user_id,
                public_key=verified.credential_public_key,
                sign_count=verified.sign_count,
                transports=" ".join(transports_of(credential)),
                name=name,
                created_at=added.created_at,
            )
        )
        return added

    def _prove(
        self,
        connection: Connection,
        credential: Credential,
        origin: str,
        challenge: Challenge,
        address: str | None,
    ) -> str:
        from webauthn import base64url_to_bytes, verify_authentication_response
        from webauthn.helpers import bytes_to_base64url

        key = connection.execute(
            select(passkeys).where(passkeys.c.credential_id == str(credential.get("id")))
        ).one_or_none()
        if key is None or challenge.user_id not in (None, key.user_id):
            raise refused()
        handle = response_of(credential).get("userHandle")
        if handle is not None and handle != bytes_to_base64url(key.user_id.encode()):
            raise refused()
        try:
            verified = verify_authentication_response(
                credential=dict(credential),
                expected_challenge=base64url_to_bytes(challenge.text),
                expected_rp_id=relying_party(origin),
                expected_origin=origin,
                credential_public_key=key.public_key,
                credential_current_sign_count=key.sign_count,
                require_user_verification=True,
            )
        except Exception:  # the library's parsers raise what they like at hostile input
            raise refused() from None
        counted = connection.execute(
            update(passkeys)
            .where(
                passkeys.c.credential_id == key.credential_id,
                passkeys.c.sign_count == key.sign_count,
            )
            .values(sign_count=verified.new_sign_count, last_used_at=self.clock())
        )
        if counted.rowcount != 1:  # a copy of the passkey was quicker
            raise refused()
        self.audit.append(
            connection,
            AuditEvent(
                action="login.passkey",
                outcome="ok",
                principal=key.user_id,
                kind="user",
                address=address,
                target=key.credential_id[:40],
            ),
        )
        return str(key.user_id)


def passkeys_of(connection: Connection, user_id: str) -> list[Passkey]:
    """Return the passkeys of a user, the oldest first."""
    rows = connection.execute(
        select(
            passkeys.c.credential_id,
            passkeys.c.name,
            passkeys.c.created_at,
            passkeys.c.last_used_at,
        )
        .where(passkeys.c.user_id == user_id)
        .order_by(passkeys.c.created_at, passkeys.c.credential_id)
    )
    return [Passkey(*row) for row in rows]


def forget_passkey(connection: Connection, user_id: str, credential_id: str) -> bool:
    """Forget a passkey; tell whether the user had it."""
    gone = connection.execute(
        delete(passkeys).where(
            passkeys.c.credential_id == credential_id, passkeys.c.user_id == user_id
        )
    )
    return gone.rowcount == 1


def descriptors(connection: Connection, user_id: str) -> list[PublicKeyCredentialDescriptor]:
    """Return the passkeys of a user as a browser wants to be told of them."""
    from webauthn import base64url_to_bytes
    from webauthn.helpers.structs import AuthenticatorTransport, PublicKeyCredentialDescriptor

    rows = connection.execute(
        select(passkeys.c.credential_id, passkeys.c.transports).where(passkeys.c.user_id == user_id)
    )
    return [
        PublicKeyCredentialDescriptor(
            id=base64url_to_bytes(credential_id),
            transports=[AuthenticatorTransport(name) for name in transports.split()] or None,
        )
        for credential_id, transports in rows
    ]


def transports_of(credential: Credential) -> list[str]:
    """Return the ways to reach the authenticator that it named and WebAuthn knows."""
    from webauthn.helpers.structs import AuthenticatorTransport

    named = response_of(credential).get("transports")
    known = [transport.value for transport in AuthenticatorTransport]
    return [name for name in known if isinstance(named, list) and name in named]


def require_library() -> None:
    """Import the WebAuthn library.

    Raises:
        DependencyMissing: it is not installed.
    """
    try:
        import webauthn  # noqa: F401
    except ImportError:
        raise DependencyMissing(
            "Passkeys need the package `webauthn`. Install it with: pip install 'uait[passkeys]'"
        ) from None
