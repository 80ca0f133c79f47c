"""The identity of a server: what its parts are, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING

from uait_server_ext.errors import Unavailable
from uait_server_ext.events.audit import AuditEvent, AuditLog
from uait_server_ext.resilience.addresses import client_address
from uait_server_ext.storage.database import Database
from uait_server_ext.storage.ids import Clock, now

from .api_keys import ApiKeys
from .authenticate import Authenticator
from .devices import Devices
from .directory import Directory
from .factors import Factors
from .groups import Groups
from .kernel_proof import KernelBindings, KernelTokens, LiveKernels
from .links import Links
from .oidc.logins import OidcLogins
from .passkeys import Passkeys
from .passwords import Passwords
from .refresh import RefreshTokens
from .refusals import Refusals
from .sessions import open_sessions
from .signatures import RequestSignatures
from .throttle import Throttle
from .tokens import AccessTokens

if TYPE_CHECKING:
    from uait_server_ext.storage.sealing import Sealer

    from .oidc.configuration import ProviderConfig
    from .principal import Principal


@dataclass(frozen=True, slots=True)
class IdentitySettings:
    """The traits of `UaitApp` that identity needs, in plain Python."""

    issuer: str = "uait"
    public_url: str = ""
    sessions_url: str = ""
    second_factor_required_roles: tuple[str, ...] = ()
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    oidc_providers: Sequence[ProviderConfig] = ()
    client_secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


class Identity:
    """People and callers of one server."""

    def __init__(
        self,
        settings: IdentitySettings,
        *,
        database: Database,
        sealer: Sealer,
        audit: AuditLog,
        clock: Clock = now,
    ) -> None:
        self.settings = settings
        self.database = database
        self.audit = audit
        self.clock = clock
        self.directory = Directory(database, audit, clock)
        self.groups = Groups(self.directory)
        self.links = Links(database, audit, clock)
        self.passwords = Passwords()
        self.throttle = Throttle(database, clock)
        self.sessions = open_sessions(settings.sessions_url, database, clock)
        self.tokens = AccessTokens(database, sealer, clock, settings.issuer)
        self.refresh = RefreshTokens(database, self.directory, self.tokens, audit, clock)
        self.devices = Devices(database, self.directory, self.refresh, audit, clock)
        self.api_keys = ApiKeys(database, self.directory, sealer, audit, clock)
        self.signatures = RequestSignatures(database, sealer, clock)
        self.factors = Factors(
            database, sealer, audit, self.throttle, clock, settings.second_factor_required_roles
        )
        self.directory.on_delete.append(self.factors.forget)
        self.passkeys = Passkeys(database, audit, clock)
        self.oidc = OidcLogins(
            database,
            audit=audit,
            directory=self.directory,
            sessions=self.sessions,
            sealer=sealer,
            providers=settings.oidc_providers,
            client_secrets=settings.client_secrets,
            clock=clock,
        )
        self.refusals = Refusals(audit, clock)
        self.kernels = KernelBindings(clock)
        self._kernel_tokens: KernelTokens | None = None
        self.authenticator = Authenticator(
            database,
            directory=self.directory,
            sessions=self.sessions,
            tokens=self.tokens,
            api_keys=self.api_keys,
            factors=self.factors,
            kernels=self.kernels,
            clock=clock,
        )

    @property
    def kernel_tokens(self) -> KernelTokens:
        """Return what issues tokens to kernels.

        Raises:
            Unavailable: this server runs no kernels.
        """
        if self._kernel_tokens is None:
            raise Unavailable("This server runs no kernels.")
        return self._kernel_tokens

    async def close(self) -> None:
        """Let go of stores outside the database."""
        await self.sessions.close()
        self.passwords.close()

    def serve_kernels(self, kernels: LiveKernels) -> None:
        """Issue tokens to these kernels from now on."""
        self._kernel_tokens = KernelTokens(
            self.database,
            directory=self.directory,
            tokens=self.tokens,
            audit=self.audit,
            bindings=self.kernels,
            kernels=kernels,
            clock=self.clock,
        )

    def refused(
        self,
        action: str,
        *,
        target: str,
        address: str,
        principal: Principal | None = None,
        **detail: str | int | bool,
    ) -> None:
        """Note a refused request for the audit log; does not wait."""
        self.refusals.note(
            AuditEvent(
                action=action,
                outcome="refused",
                principal=principal.id if principal else None,
                kind=principal.kind if principal else None,
                address=address,
                target=target,
                detail=detail,
            )
        )

    def client_address(self, peer: str, forwarded_for: list[str]) -> str:
        """Return who really sends a request: proxies are believed only where they are listed."""
        return client_address(peer, forwarded_for, self.settings.trusted_proxies)
