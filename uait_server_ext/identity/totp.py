"""Time-based one-time passwords (RFC 6238): six digits, 30 seconds, SHA-1, as the apps expect.

The seed is sealed; what is in the table opens nothing. A device counts once a code confirmed it,
and a code counts once: the step of the last accepted code is stored, and no earlier one is taken
after it (RFC 6238 section 5.2).
"""

from __future__ import annotations

import hmac
import io
import re
from typing import Protocol

from sqlalchemy import ColumnElement, Connection, delete, func, select, true, update

from uait_server_ext.errors import Conflict, InvalidInput, NotFound
from uait_server_ext.storage.ids import Clock, new_id, now

from .factor_models import TotpDevice, TotpEnrolment
from .tables import totp_devices

STEP_SECONDS = 30
DRIFT_STEPS = (0, -1, 1)
"""Steps off the server's clock at which a code is still taken, the likeliest first."""
CONFIRM_SECONDS = 15 * 60
MAX_DEVICES = 5
CODE = re.compile(r"[0-9]{6}")


class Seals(Protocol):
    """Keeps what must be read back; `storage/sealing.py` is the real one."""

    def put(self, connection: Connection, name: str, plaintext: bytes) -> None: ...

    def get(self, connection: Connection, name: str) -> bytes: ...

    def delete(self, connection: Connection, name: str) -> None: ...


class Totp:
    """The authenticator apps of all people. Each method runs in the caller's transaction."""

    def __init__(self, seals: Seals, clock: Clock = now, issuer: str = "UAIT") -> None:
        self.seals = seals
        self.clock = clock
        self.issuer = issuer

    def enrol(
        self, connection: Connection, user_id: str, username: str, name: str
    ) -> TotpEnrolment:
        """Begin with a new device; one that was begun before and never confirmed is forgotten.

        Raises:
            Conflict: the user has as many devices as allowed.
        """
        import pyotp

        if len(self.devices(connection, user_id)) >= MAX_DEVICES:
            raise Conflict(
                f"You have {MAX_DEVICES} authenticator apps, as many as are kept. Remove one first."
            )
        self._forget_all(connection, user_id, totp_devices.c.confirmed_at.is_(None))
        device_id, secret = new_id("otp"), pyotp.random_base32()
        connection.execute(
            totp_devices.insert().values(
                id=device_id,
                user_id=user_id,
                name=name,
                created_at=self.clock(),
                last_counter=-1,
            )
        )
        self.seals.put(connection, f"totp:{device_id}", secret.encode())
        uri = pyotp.TOTP(secret).provisioning_uri(name=username, issuer_name=self.issuer)
        return TotpEnrolment(device_id, secret, uri)

    def confirm(self, connection: Connection, user_id: str, device_id: str, code: str) -> None:
        """Make a device count, by a first code from it.

        Raises:
            NotFound: no device of this user waits under that id, or it has waited too long.
            InvalidInput: the code is wrong.
        """
        waiting = connection.scalar(
            select(totp_devices.c.id).where(
                totp_devices.c.id == device_id,
                totp_devices.c.user_id == user_id,
                totp_devices.c.confirmed_at.is_(None),
                totp_devices.c.created_at > self.clock() - CONFIRM_SECONDS,
            )
        )
        if waiting is None:
            raise NotFound("No authenticator app waits for its first code there. Begin again.")
        if not self._accept(connection, device_id, code):
            raise InvalidInput(
                "The code is wrong. Type the newest one, and check that the clocks of the device "
                "and of this server agree."
            )
        connection.execute(
            update(totp_devices)
            .where(totp_devices.c.id == device_id)
            .values(confirmed_at=self.clock())
        )

    def check(self, connection: Connection, user_id: str, code: str) -> bool:
        """Take a code of any confirmed device of the user, once."""
        return any(
            self._accept(connection, device.id, code)
            for device in self.devices(connection, user_id)
        )

    def devices(self, connection: Connection, user_id: str) -> list[TotpDevice]:
        """Return the confirmed devices of a user, the oldest first."""
        rows = connection.execute(
            select(totp_devices.c.id, totp_devices.c.name, totp_devices.c.created_at)
            .where(totp_devices.c.user_id == user_id, totp_devices.c.confirmed_at.is_not(None))
            .order_by(totp_devices.c.created_at, totp_devices.c.id)
        )
        return [TotpDevice(*row) for row in rows]

    def remove(self, connection: Connection, user_id: str, device_id: str) -> bool:
        """Forget a device and its seed; tell whether the user had it."""
        found = connection.scalar(
            select(func.count()).where(
                totp_devices.c.id == device_id, totp_devices.c.user_id == user_id
            )
        )
        if found:
            self._forget(connection, device_id)
        return bool(found)

    def remove_all(self, connection: Connection, user_id: str) -> None:
        """Forget every device of a user, also one that was never confirmed."""
        self._forget_all(connection, user_id, true())

    def _accept(self, connection: Connection, device_id: str, code: str) -> bool:
        import pyotp

        code = code.replace(" ", "")
        if not CODE.fullmatch(code):
            return False
        hotp = pyotp.HOTP(self.seals.get(connection, f"totp:{device_id}").decode())
        here = int(self.clock() // STEP_SECONDS)
        for counter in (here + drift for drift in DRIFT_STEPS):
            if hmac.compare_digest(hotp.at(counter), code):
                # One statement, so that of two requests with the same code one finds no row.
                used = connection.execute(
                    update(totp_devices)
                    .where(totp_devices.c.id == device_id, totp_devices.c.last_counter < counter)
                    .values(last_counter=counter)
                )
                return used.rowcount == 1
        return False

    def _forget_all(self, connection: Connection, user_id: str, which: ColumnElement[bool]) -> None:
        of_user = select(totp_devices.c.id).where(totp_devices.c.user_id == user_id, which)
        for device_id in connection.scalars(of_user).all():
            self._forget(connection, device_id)

    def _forget(self, connection: Connection, device_id: str) -> None:
        connection.execute(delete(totp_devices).where(totp_devices.c.id == device_id))
        self.seals.delete(connection, f"totp:{device_id}")


def qr_svg(uri: str) -> str:
    """Draw a URI as a QR code: an SVG of dark modules on a white ground, with a quiet zone."""
    import segno

    drawn = io.BytesIO()
    segno.make(uri, error="m", micro=False).save(
        drawn, kind="svg", scale=5, border=4, light="#fff", xmldecl=False, title="QR code"
    )
    return drawn.getvalue().decode()
