"""The lock-out: how often a login may be tried, without giving strangers a way to lock people out.

::

    who guesses                            is counted under              a window (15 min) allows
    a browser that logged in as ada        user:ada:<browser>            5 failures
    anybody else, as ada                   user:ada                      5 failures
    anybody else, as whoever               ip:<address> (IPv6: its /64)  30 failures
    who has ada's session: her password    proof:<ada's id>              5 failures
    who has ada's password: her codes      totp:<ada's id>               5 failures

So a stranger's guesses close an account for strangers only, for a window that ends by itself
(refused tries do not lengthen it), while its owner's browser still gets in. An attempt is written
down before the password is hashed and taken back when it succeeds: a hundred attempts at once are a
hundred attempts, and none of them costs a hash beyond the limit.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select

from uait_server_ext.errors import TooManyAttempts
from uait_server_ext.storage.database import Database
from uait_server_ext.storage.ids import Clock, now

from .names import username_key
from .tables import attempts, known_browsers, users

WINDOW_SECONDS = 15 * 60.0
ACCOUNT_FAILURES = 5
ADDRESS_FAILURES = 30
MAX_ROWS = 100_000
BROWSER_SECONDS = 90 * 24 * 3600.0
BROWSERS_PER_USER = 20
IPV6_NETWORK_BITS = 64


@dataclass(frozen=True, slots=True)
class Attempt:
    """A login that is being tried: what was written down for it."""

    rows: tuple[int, ...]
    account: str


class Throttle:
    """Counts failed logins in the database, so that every process of a server sees them."""

    def __init__(
        self,
        database: Database,
        clock: Clock = now,
        *,
        account_failures: int = ACCOUNT_FAILURES,
        address_failures: int = ADDRESS_FAILURES,
        window_seconds: float = WINDOW_SECONDS,
    ) -> None:
        self.database = database
        self.clock = clock
        self.account_failures = account_failures
        self.address_failures = address_failures
        self.window_seconds = window_seconds

    async def login(self, claimed_name: str, address: str, binding: str | None) -> Attempt:
        """Write down that somebody tries to log in under a name, before anything is checked.

        Args:
            binding: the browser's binding cookie, where it sent one.

        Raises:
            TooManyAttempts: with `retry_after`, in seconds.
        """

        def work(connection: Connection) -> Attempt:
            account = account_subject(claimed_name)
            if binding and self._knows(connection, claimed_name, binding):
                subject = f"{account}:{digest(binding)[:16]}"
                return self._begin(connection, {subject: self.account_failures}, subject)
            limits = {
                address_subject(address): self.address_failures,
                account: self.account_failures,
            }
            return self._begin(connection, limits, account)

        return await self.database.write(work)

    async def proof(self, user_id: str) -> Attempt:
        """Write down that somebody with a person's session tries their password.

        Raises:
            TooManyAttempts: with `retry_after`, in seconds.
        """
        subject = f"proof:{user_id}"
        return await self.database.write(
            lambda c: self._begin(c, {subject: self.account_failures}, subject)
        )

    async def link(self, address: str) -> Attempt:
        """Write down that somebody tries a one-time link.

        Raises:
            TooManyAttempts: with `retry_after`, in seconds.
        """
        subject = address_subject(address)
        return await self.database.write(
            lambda c: self._begin(c, {subject: self.address_failures}, subject)
        )

    async def withdraw(self, attempt: Attempt) -> None:
        """Take an attempt back that was not decided: neither right nor wrong."""
        await self.database.write(
            lambda c: c.execute(delete(attempts).where(attempts.c.id.in_(attempt.rows)))
        )

    async def check(self, subject: str) -> None:
        """Refuse where a subject has failed too often; see also `failed` and `passed`.

        Raises:
            TooManyAttempts: with `retry_after`, in seconds.
        """
        await self.database.read(
            lambda c: self._check(c, subject, self.account_failures, self.clock())
        )

    async def failed(self, subject: str) -> None:
        """Count a failure of a subject."""

        def work(connection: Connection) -> None:
            self._purge(connection, self.clock())
            list(write_down(connection, [subject], self.clock()))

        await self.database.write(work)

    async def passed(self, subject: str) -> None:
        """Forget the failures of a subject."""
        await self.database.write(
            lambda c: c.execute(delete(attempts).where(attempts.c.subject == subject))
        )

    async def succeeded(self, attempt: Attempt) -> None:
        """Take an attempt back, and forget the account's failures before it.

        Those of the address stay: who has one password may still be guessing others.
        """

        def work(connection: Connection) -> None:
            connection.execute(delete(attempts).where(attempts.c.id.in_(attempt.rows)))
            if not attempt.account.startswith("ip:"):
                connection.execute(delete(attempts).where(attempts.c.subject == attempt.account))

        await self.database.write(work)

    def remember_browser(self, connection: Connection, user_id: str, binding: str) -> None:
        """Note that a person has logged in from the browser with this binding cookie."""
        at = self.clock()
        mine = known_browsers.c.user_id == user_id
        stale = known_browsers.c.seen_at < at - BROWSER_SECONDS
        same = known_browsers.c.binding_sha256 == digest(binding)
        connection.execute(delete(known_browsers).where(mine & (stale | same)))
        connection.execute(
            known_browsers.insert().values(
                user_id=user_id, binding_sha256=digest(binding), seen_at=at
            )
        )
        newest = (
            select(known_browsers.c.binding_sha256)
            .where(mine)
            .order_by(known_browsers.c.seen_at.desc())
            .limit(BROWSERS_PER_USER)
        )
        kept = connection.scalars(newest).all()
        connection.execute(
            delete(known_browsers).where(mine, known_browsers.c.binding_sha256.not_in(kept))
        )

    def _knows(self, connection: Connection, claimed_name: str, binding: str) -> bool:
        known = (
            select(known_browsers.c.seen_at)
            .join(users, users.c.id == known_browsers.c.user_id)
            .where(
                users.c.username_key == username_key(claimed_name),
                known_browsers.c.binding_sha256 == digest(binding),
                known_browsers.c.seen_at > self.clock() - BROWSER_SECONDS,
            )
        )
        return connection.execute(known).first() is not None

    def _begin(self, connection: Connection, limits: dict[str, int], account: str) -> Attempt:
        at = self.clock()
        self._purge(connection, at)
        for subject, limit in limits.items():
            self._check(connection, subject, limit, at)
        return Attempt(tuple(write_down(connection, limits, at)), account)

    def _check(self, connection: Connection, subject: str, limit: int, at: float) -> None:
        newest = (
            select(attempts.c.at)
            .where(attempts.c.subject == subject)
            .order_by(attempts.c.at.desc())
            .limit(limit)
        )
        times = connection.scalars(newest).all()
        if len(times) < limit:
            return
        wait = max(1, math.ceil(times[-1] + self.window_seconds - at))
        raise TooManyAttempts(
            f"Too many attempts have failed. Try again in {math.ceil(wait / 60)} minutes, or from "
            "a browser in which you have logged in before.",
            retry_after=wait,
        )

    def _purge(self, connection: Connection, at: float) -> None:
        connection.execute(delete(attempts).where(attempts.c.at <= at - self.window_seconds))
        newest = connection.scalar(select(func.max(attempts.c.id))) or 0
        connection.execute(delete(attempts).where(attempts.c.id <= newest - MAX_ROWS))


def write_down(connection: Connection, subjects: Iterable[str], at: float) -> Iterable[int]:
    """Add one row a subject and return their ids."""
    for subject in subjects:
        added = connection.execute(attempts.insert().values(subject=subject, at=at))
        assert added.inserted_primary_key
        yield added.inserted_primary_key[0]


def account_subject(claimed_name: str) -> str:
    """Return under what the failures of an account are counted, whether it exists or not."""
    key = username_key(claimed_name)
    return f"user:{key}" if key else f"user#{digest(claimed_name)}"


def address_subject(address: str) -> str:
    """Return under what the failures of an address are counted: a whole /64 of IPv6 is one."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return f"ip:{address[:64]}"
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped:
            return f"ip:{found.ipv4_mapped}"
        return f"ip:{ipaddress.IPv6Network((int(found), IPV6_NETWORK_BITS), strict=False)}"
    return f"ip:{found}"


def digest(text: str) -> str:
    """Return the SHA-256 of text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
