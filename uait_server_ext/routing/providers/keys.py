"""A provider's key, by a lease of the vault: no file, log or error ever holds it.

The vault records each use, durably, before it releases a value. A value is therefore kept for a
minute here: a key that is changed or whose lease is revoked stops working within that time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from pydantic import SecretStr

from uait_server_ext.errors import UaitError, UpstreamRefused

KEEP_SECONDS = 60.0
LEASE_SECONDS = 3600


class Lease(Protocol):
    """The right to use a secret for a while."""

    @property
    def id(self) -> str:
        """What `Leases.use` takes."""


class Leases(Protocol):
    """What keys need of the vault; `services.py` binds it to the router's own principal."""

    async def lease(self, secret: str, purpose: str, seconds: int) -> Lease:
        """Give the right to use a secret."""
        ...

    async def use(self, lease_id: str) -> SecretStr:
        """Return the value behind a lease."""
        ...


class LeasedKey:
    """The key of one provider."""

    def __init__(
        self,
        provider: str,
        reference: str,
        leases: Leases,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._provider = provider
        self._secret = reference.partition(":")[2]
        self._leases = leases
        self._clock = clock
        self._lease: str | None = None
        self._value: SecretStr | None = None
        self._until = 0.0
        self._asking = asyncio.Lock()

    async def value(self) -> SecretStr:
        """Return the key.

        Raises:
            UpstreamRefused: the vault does not give it; says why, an administrator must mend it.
        """
        if self._value is not None and self._clock() < self._until:
            return self._value
        async with self._asking:
            if self._value is None or self._clock() >= self._until:
                try:
                    self._value = await self._ask()
                except UaitError as error:
                    self.forget()
                    raise UpstreamRefused(
                        f"The key of {self._provider} is not to be had: {error.detail} An "
                        f"administrator can set the shared secret `{self._secret}`."
                    ) from error
                self._until = self._clock() + KEEP_SECONDS
            return self._value

    def forget(self) -> None:
        """Ask the vault anew at the next call: the provider did not take the key."""
        self._value = self._lease = None

    async def _ask(self) -> SecretStr:
        if self._lease is not None:
            try:
                return await self._leases.use(self._lease)
            except UaitError:
                self._lease = None  # ended; a new one says whether we still may
        purpose = f"calls of models at {self._provider}"
        self._lease = (await self._leases.lease(self._secret, purpose, LEASE_SECONDS)).id
        return await self._leases.use(self._lease)
