"""Putting routing together from its file: providers with their keys, policy, budgets, cache."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from uait_server_ext.events.audit import AuditLog
from uait_server_ext.inference.models import Embedder
from uait_server_ext.storage.database import Database

from .answers_file import AnswersFile
from .budget import Budgets
from .budget_models import worst_case
from .cache import AnswerCache
from .config import Routing
from .models import LOCAL
from .policy import RoutingPolicy
from .posterior import Posterior
from .providers import Provider
from .providers.keys import Lease, LeasedKey
from .providers.local import LocalModels, LocalProvider
from .rules import read_policy
from .service import Router

TakeLease = Callable[[str, str, int], Awaitable[Lease]]
UseLease = Callable[[str], Awaitable[SecretStr]]


@dataclass(frozen=True, slots=True)
class VaultLeases:
    """The vault, as keys use it."""

    take: TakeLease
    release: UseLease

    async def lease(self, secret: str, purpose: str, seconds: int) -> Lease:
        """Give the right to use a secret."""
        return await self.take(secret, purpose, seconds)

    async def use(self, lease_id: str) -> SecretStr:
        """Return the value behind a lease."""
        return await self.release(lease_id)


@dataclass(frozen=True, slots=True)
class RoutingParts:
    """What a server holds of routing."""

    router: Router
    budgets: Budgets
    policy: RoutingPolicy | None
    answers: AnswersFile | None

    async def stop(self) -> None:
        """Close connections; keep what was learned."""
        await self.router.stop()
        if self.policy is not None:
            await self.policy.stop()
        if self.answers is not None:
            await asyncio.to_thread(self.answers.close)


async def assemble(
    routing: Routing,
    *,
    local: LocalModels,
    embedder: Embedder,
    database: Database,
    audit: AuditLog,
    lease: TakeLease,
    use: UseLease,
    answers: Path,
    log: logging.Logger,
) -> RoutingParts:
    """Build the router and what it stands on.

    Raises:
        InvalidInput: the policy's part of the file cannot be used.
        DependencyMissing: a provider's kind needs an extra that is not installed.
    """
    budgets = Budgets(database, audit=audit)
    policy = None
    if routing.tiers or routing.file.policy:
        names = {tier.name for tier in routing.tiers}
        settings = read_policy(routing.file.policy, names)
        policy = RoutingPolicy(settings, routing.tiers, posterior=Posterior(database))
        await policy.start()
    cache, disk = None, None
    entries = routing.file.cache
    if entries.exact or entries.semantic:
        if entries.on_disk:
            disk = await asyncio.to_thread(AnswersFile, answers, entries.entries)
        salt = hashlib.blake2b(routing.file.model_dump_json().encode(), digest_size=8).hexdigest()
        cache = AnswerCache(entries, embedder, disk, salt=salt)
    router = Router(
        local,
        providers_of(routing, local, VaultLeases(lease, use)),
        routing,
        policy=policy,
        budgets=budgets,
        estimate=worst_case,
        cache=cache,
        log=log,
    )
    return RoutingParts(router, budgets, policy, disk)


def providers_of(routing: Routing, local: LocalModels, leases: VaultLeases) -> dict[str, Provider]:
    """Build the providers that the file names, and the one of this machine."""
    made: dict[str, Provider] = {LOCAL: LocalProvider(local)}
    for name, settings in routing.file.providers.items():
        key = LeasedKey(name, settings.key, leases) if settings.key else None
        if settings.kind == "openai":
            from .providers.openai_http import OpenAIProvider

            made[name] = OpenAIProvider(name, settings, key)
        elif settings.kind == "litellm":
            from .providers.litellm import LiteLLMProvider

            made[name] = LiteLLMProvider(name, key)
        elif name != LOCAL:
            made[name] = made[LOCAL]
    return made
