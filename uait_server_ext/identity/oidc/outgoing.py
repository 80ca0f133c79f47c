"""Requests to a provider, none of which can take long, be big, or lead elsewhere.

Redirects are not followed and compressed answers are refused: the limits then hold for what is
read, and an answer comes from where it was asked.
"""

from __future__ import annotations

import asyncio
import importlib
import ssl
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from uait_server_ext.errors import LoginFailed, ProviderUnavailable

from .configuration import ProviderConfig

if TYPE_CHECKING:
    import httpx2
    from authlib.integrations.httpx_client import AsyncOAuth2Client

REQUEST_SECONDS = 5.0
TOTAL_SECONDS = 8.0
MAX_ANSWER_BYTES = 1 << 20
HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "UAIT"}


async def load() -> ssl.SSLContext:
    """Import the client and read the trusted certificates, in a thread: both are slow."""
    for module in ("authlib.integrations.httpx_client", "jwt"):
        await asyncio.to_thread(importlib.import_module, module)
    return await asyncio.to_thread(ssl.create_default_context)


def open_client(
    config: ProviderConfig,
    tls: ssl.SSLContext,
    *,
    client_secret: str | None,
    redirect_uri: str | None = None,
    token_auth: str | None = None,
) -> AsyncOAuth2Client:
    """Return an OAuth 2.0 client with our limits; close it after use."""
    from authlib.integrations.httpx_client import AsyncOAuth2Client

    return AsyncOAuth2Client(
        client_id=config.client_id,
        client_secret=client_secret,
        token_endpoint_auth_method=token_auth if client_secret else "none",
        redirect_uri=redirect_uri,
        scope=" ".join(config.scopes),
        code_challenge_method="S256",
        headers=HEADERS,
        verify=tls,
        timeout=REQUEST_SECONDS,
        follow_redirects=False,
        # A provider on this machine is not reached through a proxy.
        trust_env=not config.allow_insecure,
        event_hooks={"response": [limit_answer]},
    )


async def limit_answer(response: httpx2.Response) -> None:
    """Bound what is read of an answer; called when its head is there and its body is not."""
    import httpx2

    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise httpx2.DecodingError(f"the answer is compressed ({encoding[:20]!r})")

    class Limited(httpx2.AsyncByteStream):
        """The answer's body up to the limit."""

        def __init__(self, stream: httpx2.AsyncByteStream) -> None:
            self.stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in self.stream:
                size += len(chunk)
                if size > MAX_ANSWER_BYTES:
                    raise httpx2.ReadError("the answer is too big")
                yield chunk

        async def aclose(self) -> None:
            await self.stream.aclose()

    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = Limited(response.stream)


async def get_json(client: AsyncOAuth2Client, url: str, access_token: str | None = None) -> Any:
    """Return the JSON document at an address of the provider.

    Raises:
        httpx2.HTTPError: no answer, or one that is not 200 or too big.
        ValueError: it is not JSON.
    """
    import httpx2

    headers = {"Authorization": f"Bearer {access_token}"} if access_token else {}
    response = await client.request("GET", url, headers=headers, withhold_token=True)
    if response.status_code != httpx2.codes.OK:
        raise httpx2.DecodingError(f"it answered {response.status_code}")
    return response.json()


async def exchange_code(
    client: AsyncOAuth2Client, url: str, *, code: str, verifier: str
) -> dict[str, Any]:
    """Exchange the code for tokens (RFC 6749 section 4.1.3, RFC 7636 section 4.5).

    Raises:
        LoginFailed: the provider refuses the code.
        ProviderUnavailable: it refuses us.
        httpx2.HTTPError: and ValueError, where it does not answer as it should.
    """
    from authlib.integrations.base_client import OAuthError

    try:
        token = await client.fetch_token(
            url, grant_type="authorization_code", code=code, code_verifier=verifier
        )
    except OAuthError as error:
        if error.error in ("invalid_client", "unauthorized_client", "incorrect_client_credentials"):
            raise ProviderUnavailable(
                "The identity provider does not know this server's client secret. Tell an "
                "administrator of this server; other ways to log in work.",
                reason="client",
            ) from None
        raise LoginFailed(
            "The login was refused: the provider does not accept its own code. Begin again.",
            reason="code",
        ) from None
    return dict(token)
