"""Talk to one provider: what it publishes is cached, what it fails at is counted."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from uait_server_ext.errors import LoginFailed, ProviderUnavailable, UaitError
from uait_server_ext.storage.ids import Clock

from . import outgoing
from .breaker import Breaker
from .claims import ExternalAccount, from_claims, from_github
from .configuration import TENANT, ProviderConfig
from .id_token import Expected, UnknownKey, check_id_token
from .metadata import Jwk, Metadata, discovery_url, github_metadata, read_keys, read_metadata

if TYPE_CHECKING:
    from authlib.integrations.httpx_client import AsyncOAuth2Client

METADATA_SECONDS = 3600.0
KEYS_SECONDS = 3600.0
REFETCH_SECONDS = 60.0


class Provider:
    """One configured provider. Its methods end within `outgoing.TOTAL_SECONDS`."""

    def __init__(self, config: ProviderConfig, clock: Clock) -> None:
        self.config = config
        self.clock = clock
        self.breaker = Breaker(clock)
        self._tls: ssl.SSLContext | None = None
        self._metadata: tuple[float, Metadata] | None = None
        self._keys: tuple[float, tuple[Jwk, ...]] | None = None
        self._fetching = asyncio.Lock()

    async def authorization_url(
        self, *, redirect_uri: str, state: str, nonce: str, verifier: str
    ) -> str:
        """Return where the browser goes to log in there.

        Raises:
            ProviderUnavailable: the provider does not answer.
            LoginFailed: what it publishes cannot be trusted.
        """
        metadata = self._known()
        if metadata is None:
            async with self._reaching():
                metadata = await self._published()
        extra = {} if self.config.kind == "github" else {"nonce": nonce}
        async with await self._client(None, metadata, redirect_uri) as client:
            url, _ = client.create_authorization_url(
                metadata.authorization_endpoint, state=state, code_verifier=verifier, **extra
            )
        return str(url)

    async def account(
        self,
        *,
        code: str,
        issuer: str | None,
        redirect_uri: str,
        nonce: str,
        verifier: str,
        client_secret: str | None,
    ) -> ExternalAccount:
        """Return the account that a callback's code stands for.

        Raises:
            LoginFailed: a check did not hold.
            PermissionDenied: people of that tenant may not log in.
            ProviderUnavailable: the provider does not answer.
        """
        async with self._reaching():
            metadata = await self._published()
            self._check_response_issuer(issuer, metadata)
            async with await self._client(client_secret, metadata, redirect_uri) as client:
                token = await outgoing.exchange_code(
                    client, metadata.token_endpoint, code=code, verifier=verifier
                )
                if self.config.kind == "github":
                    account = await self._github_account(client, token)
                else:
                    account = await self._oidc_account(client, metadata, token, nonce)
        return account

    async def _oidc_account(
        self, client: AsyncOAuth2Client, metadata: Metadata, token: dict[str, Any], nonce: str
    ) -> ExternalAccount:
        expected = Expected(config=self.config, nonce=nonce, now=self.clock())
        id_token = token.get("id_token")
        try:
            claims = check_id_token(id_token, await self._signing_keys(client), expected)
        except UnknownKey:
            keys = await self._signing_keys(client, older_than=REFETCH_SECONDS)
            claims = check_id_token(id_token, keys, expected)
        access_token = token.get("access_token")
        if "email" in self.config.scopes and "email" not in claims and metadata.userinfo_endpoint:
            more = await outgoing.get_json(client, metadata.userinfo_endpoint, str(access_token))
            # OpenID Connect Core section 5.3.2: otherwise it may be about somebody else.
            if not isinstance(more, dict) or more.get("sub") != claims["sub"]:
                raise LoginFailed(
                    "The login was refused: the provider's user information is of another person. "
                    "Try again; if it stays so, tell an administrator of this server.",
                    reason="userinfo",
                )
            claims = more | claims
        return from_claims(self.config, claims)

    async def _github_account(
        self, client: AsyncOAuth2Client, token: dict[str, Any]
    ) -> ExternalAccount:
        api, access_token = github_api(self.config.issuer), str(token.get("access_token"))
        user = await outgoing.get_json(client, f"{api}/user", access_token)
        emails = await outgoing.get_json(client, f"{api}/user/emails", access_token)
        return from_github(self.config, user, emails)

    def _check_response_issuer(self, issuer: str | None, metadata: Metadata) -> None:
        """Compare the `iss` of a callback (RFC 9207), against mix-up of two providers."""
        expected = {self.config.issuer}
        if TENANT in self.config.issuer:
            expected = {self.config.issuer.replace(TENANT, t) for t in self.config.tenants}
        if issuer not in expected if issuer is not None else metadata.sends_issuer:
            raise LoginFailed(
                "The login was refused: the answer is not from the provider that was asked. Begin "
                "again from this server's login page.",
                reason="issuer",
            )

    def _known(self) -> Metadata | None:
        if self._metadata and self.clock() < self._metadata[0] + METADATA_SECONDS:
            return self._metadata[1]
        return None

    async def _published(self) -> Metadata:
        async with self._fetching:
            if known := self._known():
                return known
            if self.config.kind == "github":
                found = github_metadata(self.config)
            else:
                async with await self._client(None) as client:
                    document = await outgoing.get_json(client, discovery_url(self.config))
                found = read_metadata(self.config, document)
            self._metadata = (self.clock(), found)
            return found

    async def _signing_keys(
        self, client: AsyncOAuth2Client, older_than: float = KEYS_SECONDS
    ) -> tuple[Jwk, ...]:
        """Return the keys, fetched anew where they are older than so many seconds."""
        async with self._fetching:
            if self._keys and self.clock() < self._keys[0] + older_than:
                return self._keys[1]
            assert self._metadata
            url = self._metadata[1].jwks_uri
            assert url
            keys = read_keys(self.config, await outgoing.get_json(client, url))
            self._keys = (self.clock(), keys)
            return keys

    async def _client(
        self,
        client_secret: str | None,
        metadata: Metadata | None = None,
        redirect_uri: str | None = None,
    ) -> AsyncOAuth2Client:
        if self._tls is None:
            self._tls = await outgoing.load()
        return outgoing.open_client(
            self.config,
            self._tls,
            client_secret=client_secret,
            redirect_uri=redirect_uri,
            token_auth=metadata.token_auth if metadata else None,
        )

    @asynccontextmanager
    async def _reaching(self) -> AsyncIterator[None]:
        """Bound the time, count failures, and say in our words what went wrong."""
        if self._tls is None:
            self._tls = await outgoing.load()
        import httpx2

        if not self.breaker.admits():
            raise self._unavailable("did not answer several times and is left alone for a moment")
        try:
            async with asyncio.timeout(outgoing.TOTAL_SECONDS):
                yield
        except TimeoutError:
            self.breaker.failed()
            raise self._unavailable("took too long") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, RecursionError):
            # The text of these may hold parts of the answer.
            self.breaker.failed()
            raise self._unavailable("did not answer as it should") from None
        except UaitError:
            # It did answer; what it said is another matter.
            self.breaker.succeeded()
            raise
        self.breaker.succeeded()

    def _unavailable(self, what: str) -> ProviderUnavailable:
        return ProviderUnavailable(
            f"{self.config.name} {what}. Try again in a minute, or log in another way.",
            reason="provider",
            retry_after=30,
        )


def github_api(issuer: str) -> str:
    """Return the address of GitHub's API, on github.com or a company's own GitHub server."""
    parts = urlsplit(issuer)
    if parts.netloc == "github.com":
        return "https://api.github.com"
    return f"{parts.scheme}://{parts.netloc}/api/v3"
