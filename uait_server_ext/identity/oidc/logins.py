"""Logging in and linking through providers: from the browser's leaving to who it is.

One callback is: take the flow (a transaction), ask the provider, then find, link or make the user
(a second transaction). Whose session starts then, and whether a second factor must follow, is the
same for every first factor (`identity/login.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from uait_server_ext.errors import (
    FlowInvalid,
    LoginFailed,
    NotFound,
    PermissionDenied,
    ProviderUnavailable,
    UaitError,
)
from uait_server_ext.events.audit import AuditEvent, AuditLog
from uait_server_ext.identity.next_url import local_path
from uait_server_ext.storage.database import Database, raise_generation
from uait_server_ext.storage.ids import Clock, new_secret, now

from . import flows, linking
from .claims import ExternalAccount
from .configuration import SEALED, ProviderConfig
from .flows import Flow, Purpose
from .provider import Provider

if TYPE_CHECKING:
    from uait_server_ext.identity.directory import Directory, Standing
    from uait_server_ext.identity.principal import Principal
    from uait_server_ext.identity.sessions import Sessions
    from uait_server_ext.storage.sealing import Sealer

BINDING = re.compile(r"[\w-]{32,128}", re.ASCII)
MAX_STATE = 200
MAX_CODE = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """Where the browser sees this server (`scheme://host`, the base URL), and which one it is."""

    origin: str
    base_url: str
    address: str
    binding: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Begun:
    """Send the browser to the URL and give it the binding cookie."""

    url: str
    binding: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Callback:
    """What the provider put in the query of the callback."""

    state: str | None = field(default=None, repr=False)
    code: str | None = field(default=None, repr=False)
    issuer: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """What was finished, for whom, and the path to which the browser goes then."""

    purpose: Purpose
    user_id: str
    location: str


class OidcLogins:
    """The identity providers of one server."""

    def __init__(
        self,
        database: Database,
        *,
        audit: AuditLog,
        directory: Directory,
        sessions: Sessions,
        sealer: Sealer,
        providers: Sequence[ProviderConfig],
        client_secrets: Mapping[str, str],
        clock: Clock = now,
    ) -> None:
        self.database = database
        self.audit = audit
        self.directory = directory
        self.sessions = sessions
        self.sealer = sealer
        self.clock = clock
        self._client_secrets = dict(client_secrets)
        self._providers = {config.id: Provider(config, clock) for config in providers}

    def offered(self) -> list[tuple[str, str]]:
        """Return id and name of each provider, as configured."""
        return [(provider.config.id, provider.config.name) for provider in self._providers.values()]

    async def begin(self, provider_id: str, place: Place, next_url: str | None = None) -> Begun:
        """Begin a login.

        Raises:
            NotFound: there is no such provider.
            ProviderUnavailable: it does not answer.
        """
        return await self._begin(
            Flow(
                provider=provider_id,
                purpose="login",
                redirect_uri=self._redirect_uri(provider_id, place),
                next=local_path(next_url, place.base_url),
            ),
            place,
        )

    async def begin_link(self, provider_id: str, place: Place, principal: Principal) -> Begun:
        """Begin to link an external account to the user of a session.

        The caller has made sure that the session's proof is fresh, and that its owner wants this:
        no other site may be able to begin a link.

        Raises:
            NotFound: there is no such provider.
            PermissionDenied: the caller has no session.
            ProviderUnavailable: the provider does not answer.
        """
        standing = await self._standing(principal.id)
        if principal.kind != "user" or not await self._session_lives(
            principal.id, principal.credential
        ):
            raise PermissionDenied("Only a person who is logged in in a browser can link accounts.")
        return await self._begin(
            Flow(
                provider=provider_id,
                purpose="link",
                redirect_uri=self._redirect_uri(provider_id, place),
                next=f"{place.base_url}uait/account",
                user_id=principal.id,
                session_id=principal.credential,
                epoch=standing.epoch if standing else None,
            ),
            place,
        )

    async def finish(self, provider_id: str, callback: Callback, place: Place) -> Finished:
        """Finish what the browser began, and record how it went.

        Raises:
            NotFound: there is no such provider.
            FlowInvalid: no flow waits for this state in this browser.
            LoginFailed: the provider's answer did not hold.
            PermissionDenied: the account is known to be good, and may not log in.
            ProviderUnavailable: the provider does not answer.
        """
        provider = self._provider(provider_id)
        try:
            flow = await self._take(provider_id, callback.state, place.binding)
            account = await self._account(provider, flow, callback, place)
            if flow.purpose == "link":
                return await self._finish_link(provider, flow, account, place)
            return await self._finish_login(provider, flow, account, place)
        except UaitError as error:
            await self.audit.record(
                AuditEvent(
                    action="login.oidc",
                    outcome="failed" if isinstance(error, ProviderUnavailable) else "refused",
                    principal=None,
                    kind="user",
                    address=place.address,
                    target=provider_id,
                    detail={"reason": str(error.extensions.get("reason", error.code))},
                )
            )
            raise

    async def accounts(self, user_id: str) -> list[tuple[ProviderConfig, linking.Linked]]:
        """Return a user's linked accounts of the providers that are configured."""
        rows = await self.database.read(lambda connection: linking.linked(connection, user_id))
        return [
            (provider.config, row)
            for row in rows
            for provider in self._providers.values()
            if provider.config.owns(row.issuer)
        ]

    async def unlink(self, principal: Principal, provider_id: str, address: str) -> None:
        """Take a user's accounts at a provider away; other sessions of the user end.

        Raises:
            NotFound: none is linked.
            Conflict: it is the only way in which the user can log in.
        """
        config = self._provider(provider_id).config

        def work(connection: Connection) -> None:
            found = {row.issuer for row in linking.linked(connection, principal.id)}
            issuers = {issuer for issuer in found if config.owns(issuer)}
            if not issuers:
                raise NotFound(f"No {config.name} account is linked to your user.")
            others = any(
                provider.config.owns(issuer)
                for issuer in found - issuers
                for provider in self._providers.values()
            )
            linking.unlink(connection, principal.id, issuers, others=others)
            raise_generation(connection, "identity")
            self._record(connection, "account.unlink", principal.id, config, address)

        await self.database.write(work)
        await self.sessions.end_all(principal.id, except_id=principal.credential)

    async def store_client_secret(self, provider_id: str, secret: str) -> None:
        """Seal the client secret of a provider whose `client_secret_ref` is `sealed`."""
        name = sealed_name(self._provider(provider_id).config)
        await self.database.write(lambda c: self.sealer.put(c, name, secret.encode()))

    async def _begin(self, flow: Flow, place: Place) -> Begun:
        binding = place.binding if usable(place.binding) else new_secret("bind")
        assert binding
        state = new_secret("st")
        url = await self._provider(flow.provider).authorization_url(
            redirect_uri=flow.redirect_uri,
            state=state,
            nonce=flows.derive(binding, state, "nonce"),
            verifier=flows.derive(binding, state, "verifier"),
        )
        await self.database.write(
            lambda c: flows.keep(c, flow, state=state, binding=binding, now=self.clock())
        )
        return Begun(url=url, binding=binding)

    async def _take(self, provider_id: str, state: str | None, binding: str | None) -> Flow:
        flow = None
        if state and len(state) <= MAX_STATE and binding:
            flow = await self.database.write(
                lambda c: flows.take(c, state=state, binding=binding, now=self.clock())
            )
        if flow is None or flow.provider != provider_id:
            raise FlowInvalid(
                "This login is unknown, was used already, took longer than ten minutes, or began "
                "in another browser. Begin again from the login page.",
                reason="state",
            )
        return flow

    async def _account(
        self, provider: Provider, flow: Flow, callback: Callback, place: Place
    ) -> ExternalAccount:
        if callback.error is not None:
            raise LoginFailed(
                f"{provider.config.name} did not log you in. Try again, or log in another way.",
                reason="denied",
            )
        if not callback.code or len(callback.code) > MAX_CODE:
            raise LoginFailed(
                "The provider's answer has no code. Begin again from the login page.", reason="code"
            )
        assert callback.state
        assert place.binding
        return await provider.account(
            code=callback.code,
            issuer=callback.issuer,
            redirect_uri=flow.redirect_uri,
            nonce=flows.derive(place.binding, callback.state, "nonce"),
            verifier=flows.derive(place.binding, callback.state, "verifier"),
            client_secret=await self._client_secret(provider.config),
        )

    async def _finish_login(
        self, provider: Provider, flow: Flow, account: ExternalAccount, place: Place
    ) -> Finished:
        config = provider.config

        def work(connection: Connection) -> str:
            user_id = linking.owner(connection, account)
            if user_id is None:
                user_id = linking.create_user(
                    connection, self.directory, config, account, self.clock()
                )
                self._record(connection, "account.link", user_id, config, place.address)
            standing = self.directory.standing(connection, user_id)
            if standing is None or standing.disabled:
                raise PermissionDenied(
                    "This account is not active. Ask an administrator of this server.",
                    reason="disabled",
                )
            return user_id

        user_id = await self.database.write(work)
        return Finished("login", user_id, local_path(flow.next, place.base_url))

    async def _finish_link(
        self, provider: Provider, flow: Flow, account: ExternalAccount, place: Place
    ) -> Finished:
        user_id = flow.user_id
        assert user_id
        # The session cookie may not come along from another site; the flow knows the session.
        lives = await self._session_lives(user_id, flow.session_id)

        def work(connection: Connection) -> None:
            standing = self.directory.standing(connection, user_id)
            if not lives or standing is None or standing.disabled or standing.epoch != flow.epoch:
                raise PermissionDenied(
                    "Your login ended before the account was linked. Log in and link it again.",
                    reason="session",
                )
            linking.link(connection, account, user_id, self.clock())
            self._record(connection, "account.link", user_id, provider.config, place.address)

        await self.database.write(work)
        return Finished("link", user_id, local_path(flow.next, place.base_url))

    async def _session_lives(self, user_id: str, session_id: str | None) -> bool:
        return any(
            session.id == session_id and not session.pending
            for session in await self.sessions.list(user_id)
        )

    async def _standing(self, user_id: str) -> Standing | None:
        return await self.database.read(lambda c: self.directory.standing(c, user_id))

    async def _client_secret(self, config: ProviderConfig) -> str | None:
        if config.client_secret_ref is None:
            return None
        if config.client_secret_ref != SEALED:
            return self._client_secrets[config.id]
        try:
            sealed = await self.database.read(lambda c: self.sealer.get(c, sealed_name(config)))
        except NotFound:
            raise ProviderUnavailable(
                f"The client secret of {config.name} is not stored. Tell an administrator of this "
                "server; other ways to log in work.",
                reason="client",
            ) from None
        return sealed.decode()

    def _provider(self, provider_id: str) -> Provider:
        found = self._providers.get(provider_id)
        if found is None:
            raise NotFound("There is no identity provider of that name. See the login page.")
        return found

    def _redirect_uri(self, provider_id: str, place: Place) -> str:
        self._provider(provider_id)
        return f"{place.origin}{place.base_url}uait/v1/login/oidc/{provider_id}/callback"

    def _record(
        self,
        connection: Connection,
        action: str,
        user_id: str,
        config: ProviderConfig,
        address: str,
    ) -> None:
        self.audit.append(
            connection,
            AuditEvent(
                action=action,
                outcome="ok",
                principal=user_id,
                kind="user",
                address=address,
                target=config.id,
            ),
        )


def usable(binding: str | None) -> bool:
    """Tell whether a binding cookie is one of ours; kept, so that two tabs can log in at once."""
    return binding is not None and BINDING.fullmatch(binding) is not None


def sealed_name(config: ProviderConfig) -> str:
    """Return the name under which a client secret is sealed."""
    return f"oidc:{config.id}"
