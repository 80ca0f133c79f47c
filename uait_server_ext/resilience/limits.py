"""Rate limits: a sliding window for each user, address and API key, per class of operation.

The weight of the last window fades while the present one fills (a sliding window counter): two
numbers a subject, no burst at the window's edge. Counted in this process, or in Redis for several
servers; when Redis is lost, logins are refused and everything else is counted here meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, IPv6Network, ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from uait_server_ext.errors import Busy, DependencyMissing, Unavailable
from uait_server_ext.storage.ids import Clock

if TYPE_CHECKING:
    from limits.aio.storage import RedisStorage

RateClass = Literal["read", "write", "inference", "ingest", "probe", "login"]
SubjectKind = Literal["user", "key", "ip"]

WINDOW_SECONDS = 60
MAX_SUBJECTS = 100_000
REDIS_TIMEOUT_SECONDS = 0.5
REDIS_RETRY_SECONDS = 5.0
IPV6_PREFIX = 64  # what one customer is given: a single address of it is no subject


@dataclass(frozen=True, slots=True)
class Rate:
    """How many requests a minute a user, an API key and an address may send."""

    user: int
    key: int
    ip: int

    def of(self, subject: str) -> int:
        """Return the limit for a subject, by its kind."""
        limit: int = getattr(self, subject[: subject.index(":")])
        return limit


RATES: Mapping[RateClass, Rate] = MappingProxyType(
    {
        "read": Rate(user=1200, key=1200, ip=3000),
        "write": Rate(user=300, key=300, ip=900),
        "inference": Rate(user=240, key=240, ip=720),
        "ingest": Rate(user=60, key=60, ip=180),
        "probe": Rate(user=600, key=600, ip=1200),
        "login": Rate(user=10, key=10, ip=30),
    }
)
"""Requests a minute. Many people may share an address: it may send more than one of them."""


def rates(changes: Mapping[str, Mapping[str, int]]) -> Mapping[RateClass, Rate]:
    """Return the limits with an administrator's changes.

    Raises:
        ValueError: a class or kind of subject that there is not.
    """
    if unknown := set(changes) - set(RATES):
        raise ValueError(f"rate_limits names unknown classes: {', '.join(sorted(unknown))}")
    try:
        return {name: replace(rate, **changes.get(name, {})) for name, rate in RATES.items()}
    except TypeError:
        raise ValueError("rate_limits takes `user`, `key` and `ip` for a class") from None


FAIL_CLOSED: frozenset[RateClass] = frozenset({"login"})
"""Classes that are refused when nobody can count them: guessing passwords must stay slow."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the subject nearest to its limit has left.

    Attributes:
        limit: requests a window.
        remaining: requests left now.
        reset_seconds: until the window ends.
    """

    limit: int
    remaining: int
    reset_seconds: int
    window_seconds: int = WINDOW_SECONDS


@dataclass(frozen=True, slots=True)
class LimitsState:
    """Where requests are counted, and whether that is what was configured."""

    state: Literal["ready", "degraded"]
    detail: str | None = None


def subject(kind: SubjectKind, name: str) -> str:
    """Return `kind:name`; an IPv6 address stands for its /64."""
    if kind == "ip":
        try:
            address = ip_address(name)
        except ValueError:
            return f"ip:{name[:64]}"
        if isinstance(address, IPv6Address):
            if address.ipv4_mapped:
                return f"ip:{address.ipv4_mapped}"
            name = str(IPv6Network((int(address), IPV6_PREFIX), strict=False))
    return f"{kind}:{name}"


class Window:
    """Two neighbouring windows of one subject."""

    __slots__ = ("count", "index", "previous")

    def __init__(self, index: int) -> None:
        self.index = index
        self.count = 0
        self.previous = 0

    def advance(self, index: int) -> None:
        """Move to the present window."""
        if index > self.index:
            self.previous = self.count if index == self.index + 1 else 0
            self.count = 0
            self.index = index


class RateLimits:
    """Count requests and refuse those over the limit."""

    def __init__(
        self,
        url: str = "memory://",
        *,
        rates: Mapping[RateClass, Rate] = RATES,
        clock: Clock = time.time,
        window_seconds: int = WINDOW_SECONDS,
    ) -> None:
        """Count where `url` says: `memory://`, or Redis (`redis://`, `rediss://`, `redis+unix://`).

        Raises:
            DependencyMissing: the URL names Redis and its packages are not installed.
        """
        self.rates = rates
        self.clock = clock
        self.window_seconds = window_seconds
        self._windows: dict[str, Window] = {}
        self._redis = None if url.startswith("memory:") else redis_storage(url)
        self._redis_lost_until = 0.0

    @property
    def state(self) -> LimitsState:
        """Tell where requests are counted now."""
        if self._redis_lost_until:
            return LimitsState(
                "degraded",
                "Redis does not answer: logins are refused, other requests are counted by this "
                "server alone",
            )
        return LimitsState("ready")

    async def hit(self, rate_class: RateClass, subjects: Sequence[str]) -> Allowance:
        """Count one request against every subject; return what the tightest has left.

        Raises:
            Busy: one of them is over its limit; `retry_after` (seconds) says when to come back.
            Unavailable: the class fails closed and the counters cannot be reached.
        """
        if self._redis is None:
            return self.hit_here(rate_class, subjects)
        from limits.errors import StorageError

        if time.monotonic() >= self._redis_lost_until:
            try:
                # One deadline for the whole: the client has its own ideas about trying again.
                async with asyncio.timeout(REDIS_TIMEOUT_SECONDS):
                    allowance = await self._hit_redis(self._redis, rate_class, subjects)
            except (OSError, TimeoutError, StorageError):
                self._redis_lost_until = time.monotonic() + REDIS_RETRY_SECONDS
            else:
                self._redis_lost_until = 0.0
                return allowance
        if rate_class in FAIL_CLOSED:
            raise Unavailable(
                "Nobody can log in now: the store that counts attempts does not answer. Try "
                "again in a few seconds.",
                retry_after=math.ceil(REDIS_RETRY_SECONDS),
            )
        return self.hit_here(rate_class, subjects)

    def hit_here(self, rate_class: RateClass, subjects: Sequence[str]) -> Allowance:
        """Count one request in this process; a refused one counts against nobody."""
        rate = self.rates[rate_class]
        size = self.window_seconds
        index, passed = divmod(self.clock(), size)
        left = size - passed
        tightest = Allowance(0, 1 << 62, math.ceil(left), size)
        windows = []
        for name in subjects:
            limit = rate.of(name)
            window = self._window(f"{rate_class} {name}", int(index))
            used = int(window.previous * left / size) + window.count
            if used >= limit:
                raise over(name, limit, size, window.previous, window.count, left)
            if limit - used - 1 < tightest.remaining:
                tightest = Allowance(limit, limit - used - 1, math.ceil(left), size)
            windows.append(window)
        for window in windows:
            window.count += 1
        return tightest

    async def close(self) -> None:
        """Let go of Redis."""
        if self._redis:
            bridge: Any = self._redis.bridge
            await bridge.get_connection().aclose()

    def _window(self, key: str, index: int) -> Window:
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= MAX_SUBJECTS:
                self._forget(index)
            window = self._windows[key] = Window(index)
        else:
            window.advance(index)
        return window

    def _forget(self, index: int) -> None:
        """Drop the subjects that are silent, else the oldest tenth: memory stays bounded."""
        silent = [key for key, window in self._windows.items() if window.index < index - 1]
        for key in silent or list(self._windows)[: MAX_SUBJECTS // 10]:
            del self._windows[key]

    async def _hit_redis(
        self, redis: RedisStorage, rate_class: RateClass, subjects: Sequence[str]
    ) -> Allowance:
        """Count one request in Redis; subjects before a refused one have been counted."""
        rate, size = self.rates[rate_class], self.window_seconds
        tightest = Allowance(0, 1 << 62, size, size)
        for name in subjects:
            limit, key = rate.of(name), f"{rate_class}/{name}"
            counted = await redis.acquire_sliding_window_entry(key, limit, size)
            previous, left, count, expires = await redis.get_sliding_window(key, size)
            left = left or max(0.0, expires - size)
            if not counted:
                raise over(name, limit, size, previous, count, left)
            remaining = max(0, limit - int(previous * left / size) - count)
            if remaining < tightest.remaining:
                tightest = Allowance(limit, remaining, math.ceil(left), size)
        return tightest


def over(name: str, limit: int, size: int, previous: int, count: int, left: float) -> Busy:
    """Describe a refusal and say when the next request will pass (whole seconds, at least 1)."""
    if count < limit and previous:
        wait = left - (limit - count) * size / previous
    else:  # the present window must fade in its turn
        wait = left + size - limit * size / max(count, 1)
    kind = name.partition(":")[0]
    whose = {"user": "You have", "key": "This API key has", "ip": "Your address has"}[kind]
    retry_after = max(1, math.floor(wait) + 1)
    return Busy(
        f"{whose} sent {limit} requests of this kind in {size} seconds, which is the limit. "
        f"Try again in {retry_after} s.",
        retry_after=retry_after,
        limit=limit,
        window=size,
    )


def redis_storage(url: str) -> RedisStorage:
    """Return the storage behind a Redis URL; connects at the first use.

    Raises:
        DependencyMissing: the packages are not installed.
    """
    try:
        from limits.aio.storage import RedisStorage

        return RedisStorage(
            f"async+{url}",
            wrap_exceptions=True,
            implementation="redispy",  # coredis fails outside its own pool context
            key_prefix="uait:limits",
            socket_timeout=REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
        )
    except ImportError as error:
        raise DependencyMissing(
            f"{url.partition(':')[0]}:// needs packages that are not installed ({error}). "
            "Run `pip install 'uait[redis]'`."
        ) from None
