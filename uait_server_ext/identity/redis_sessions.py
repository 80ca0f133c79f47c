"""Sessions in Redis, for several servers behind a gateway.

::

    uait:session:<sha256 of the secret>    the session as JSON; Redis drops it when it has expired
    uait:sessions:<user id>                hash: session id -> sha256

Where Redis cannot be asked, nobody logs in and nobody is let in by a session: every method raises
`Unavailable`. A Redis that lost its data has ended all sessions.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from uait_server_ext.errors import Unavailable
from uait_server_ext.storage.database import Database, raise_generation
from uait_server_ext.storage.ids import Clock, new_secret, now

from .sessions import (
    SECRET_PREFIX,
    Session,
    SessionLimits,
    beyond,
    digest,
    live,
    new_session,
    newest_first,
    session_ended,
    upgraded,
)

TIMEOUT_SECONDS = 2.0
PREFIX = "uait"


class RedisSessions:
    """The same as `SqlSessions`, in Redis."""

    def __init__(
        self,
        url: str,
        database: Database,
        clock: Clock = now,
        limits: SessionLimits | None = None,
    ) -> None:
        self.database = database
        self.clock = clock
        self.limits = limits or SessionLimits()
        self.redis: Any = Redis.from_url(
            url,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            decode_responses=True,
            retry=Retry(NoBackoff(), 1),  # once more for a connection that had gone stale
        )

    async def start(
        self,
        user_id: str,
        epoch: int,
        factors: Iterable[str],
        pending: bool,
        address: str,
        user_agent: str,
    ) -> tuple[str, Session]:
        session = new_session(
            self.clock(), self.limits, user_id, epoch, factors, pending, address, user_agent
        )
        secret = new_secret(SECRET_PREFIX)
        async with self._asking():
            held = await self._held(user_id)
            surplus = beyond(held.values(), self.limits.per_user - 1)
            if surplus:
                ids = {session.id for session in surplus}
                await self._drop({k: s for k, s in held.items() if s.id in ids})
            await self._keep(secret, session)
        return secret, session

    async def find(self, secret: str) -> Session | None:
        async with self._asking():
            return await self._find(digest(secret))

    async def touch(self, secret: str) -> None:
        at = self.clock()
        async with self._asking():
            session = await self._find(digest(secret))
            if session and session.last_seen_at <= at - self.limits.touch_seconds:
                seen = replace(session, last_seen_at=at)
                # Only where it still is: a session that has just ended does not come back.
                await self.redis.set(
                    session_key(digest(secret)), dumped(seen), ex=self._lasts(seen), xx=True
                )

    async def upgrade(self, secret: str, factors: Iterable[str]) -> tuple[str, Session]:
        fresh = new_secret(SECRET_PREFIX)
        async with self._asking():
            old = await self._find(digest(secret))
            # Of two upgrades at once one finds the key to delete.
            if old is None or not await self.redis.delete(session_key(digest(secret))):
                raise session_ended()
            await self.redis.hdel(user_key(old.user_id), old.id)
            session = upgraded(old, self.clock(), self.limits, factors)
            await self._keep(fresh, session)
        await self._changed()
        return fresh, session

    async def list(self, user_id: str) -> list[Session]:
        async with self._asking():
            held = await self._held(user_id)
        return newest_first(live(held.values(), self.clock(), self.limits))

    async def end(self, user_id: str, session_id: str) -> bool:
        async with self._asking():
            held = await self._held(user_id)
            return await self._drop({k: s for k, s in held.items() if s.id == session_id}) == 1

    async def end_all(self, user_id: str, except_id: str | None = None) -> int:
        async with self._asking():
            held = await self._held(user_id)
            return await self._drop({k: s for k, s in held.items() if s.id != except_id})

    async def close(self) -> None:
        """Close the connections to Redis."""
        await self.redis.aclose()

    async def _find(self, key: str) -> Session | None:
        session = loaded(await self.redis.get(session_key(key)))
        return next(live([session] if session else [], self.clock(), self.limits), None)

    async def _held(self, user_id: str) -> dict[str, Session]:
        """Return a person's sessions by digest; forget the ids that Redis has let expire."""
        ids: dict[str, str] = await self.redis.hgetall(user_key(user_id))
        if not ids:
            return {}
        texts = await self.redis.mget([session_key(key) for key in ids.values()])
        found = {key: loaded(text) for key, text in zip(ids.values(), texts, strict=True)}
        if gone := [name for name, key in ids.items() if found[key] is None]:
            await self.redis.hdel(user_key(user_id), *gone)
        return {key: session for key, session in found.items() if session}

    async def _keep(self, secret: str, session: Session) -> None:
        async with self.redis.pipeline(transaction=True) as pipe:
            lasts = self._lasts(session)
            pipe.set(session_key(digest(secret)), dumped(session), ex=lasts)
            pipe.hset(user_key(session.user_id), session.id, digest(secret))
            pipe.expire(user_key(session.user_id), math.ceil(self.limits.absolute_seconds) + 1)
            await pipe.execute()

    async def _drop(self, found: dict[str, Session]) -> int:
        if not found:
            return 0
        ended = int(await self.redis.delete(*map(session_key, found)))
        for session in found.values():
            await self.redis.hdel(user_key(session.user_id), session.id)
        await self._changed()
        return ended

    async def _changed(self) -> None:
        await self.database.write(lambda connection: raise_generation(connection, "identity"))

    def _lasts(self, session: Session) -> int:
        """Return in how many seconds Redis may drop a session: when it is surely over."""
        ends = min(session.expires_at, session.last_seen_at + self.limits.idle_seconds)
        return max(1, math.ceil(ends - self.clock()))

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            raise Unavailable(
                "The store of sessions does not answer, so nobody can be let in. Try again in a "
                "minute; if it lasts, tell the server's operator that Redis is down.",
                retry_after=30,
            ) from error


def session_key(key: str) -> str:
    """Return where a session is kept."""
    return f"{PREFIX}:session:{key}"


def user_key(user_id: str) -> str:
    """Return where the ids of a person's sessions are kept."""
    return f"{PREFIX}:sessions:{user_id}"


def dumped(session: Session) -> str:
    """Write a session as JSON."""
    return json.dumps(asdict(session))


def loaded(text: Any) -> Session | None:
    """Read a session from JSON; none from nothing."""
    if text is None:
        return None
    fields = json.loads(text)
    return Session(**fields | {"factors": tuple(fields["factors"])})
