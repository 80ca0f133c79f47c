"""Operations of logins through identity providers, and of the accounts that people linked.

Beginning a link is a POST, so that no other site can make a browser begin one: else a stranger's
account at the provider could be linked to whoever is logged in here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

from pydantic import Field

from uait_server_ext.api.operation import PUBLIC, Call, operation
from uait_server_ext.schema import Schema

from .login import client, enter

if TYPE_CHECKING:
    from uait_server_ext.identity.oidc.logins import Begun, Place

ProviderId = Annotated[str, Field(max_length=32, description="Id of the configured provider.")]
# Printable ASCII, as RFC 6749 appendix A has it; four of them fit a request line.
Sent = Annotated[str, Field(max_length=4096, pattern=r"^[\x20-\x7e]*$")]


class LinkedAccount(Schema):
    """An account at a provider with which one can log in."""

    provider: str
    name: str = Field(description="Of the provider.")
    label: str = Field(description="Of the account there.")
    linked_at: float


class AccountList(Schema):
    """One's linked accounts, the oldest first."""

    accounts: list[LinkedAccount]


class LinkStart(Schema):
    """Where the browser goes to prove the other account."""

    url: str


@operation("GET", "/login/oidc/{provider}", permission=PUBLIC, rate="login")
async def begin_provider_login(
    call: Call, provider: ProviderId, next: Annotated[str | None, Field(max_length=2000)] = None
) -> None:
    """Send the browser to an identity provider; `next` is where it goes after the login."""
    begun = await call.services.identity.oidc.begin(provider, place(call), next)
    bind(call, begun)
    call.reply.redirect(begun.url)


@operation(
    "GET", "/login/oidc/{provider}/callback", permission=PUBLIC, rate="login", open_query=True
)
async def finish_provider_login(
    call: Call,
    provider: ProviderId,
    state: Sent | None = None,
    code: Sent | None = None,
    iss: Sent | None = None,
    error: Sent | None = None,
) -> None:
    """Take the browser back from an identity provider: log in, or link the account.

    What else a provider adds to the query is ignored (RFC 6749 section 4.1.2).
    """
    from uait_server_ext.identity.login import admit
    from uait_server_ext.identity.oidc.logins import Callback

    identity = call.services.identity
    finished = await identity.oidc.finish(
        provider, Callback(state=state, code=code, issuer=iss, error=error), place(call)
    )
    location = finished.location
    if finished.purpose == "login":
        logged_in = await admit(
            identity, finished.user_id, ("oidc",), client(call), provider=provider
        )
        entered = enter(call, logged_in)
        if entered.must_enrol:
            location = f"{call.request.base_url}uait/account"
        elif entered.state == "second-factor":
            query = urlencode({"next": location})
            location = f"{call.request.base_url}uait/second-factor?{query}"
    call.reply.redirect(location)


@operation("GET", "/me/accounts", permission="account:read", rate="read")
async def list_accounts(call: Call) -> AccountList:
    """List the accounts at identity providers with which one can log in."""
    found = await call.services.identity.oidc.accounts(call.principal.id)
    return AccountList(
        accounts=[
            LinkedAccount(
                provider=config.id, name=config.name, label=row.label, linked_at=row.linked_at
            )
            for config, row in found
        ]
    )


@operation(
    "POST",
    "/me/accounts/{provider}/link",
    permission="account:write",
    rate="login",
    sensitive=True,
)
async def begin_account_link(call: Call, provider: ProviderId) -> LinkStart:
    """Begin to link an account at a provider to oneself: the browser goes to `url`."""
    begun = await call.services.identity.oidc.begin_link(provider, place(call), call.principal)
    bind(call, begun)
    return LinkStart(url=begun.url)


@operation(
    "DELETE", "/me/accounts/{provider}", permission="account:write", rate="write", sensitive=True
)
async def unlink_account(call: Call, provider: ProviderId) -> None:
    """Unlink one's account at a provider; one's other sessions end."""
    await call.services.identity.oidc.unlink(call.principal, provider, call.request.address)


def place(call: Call) -> Place:
    """Return where the browser sees this server, and which browser it is."""
    from uait_server_ext.identity.oidc.logins import Place

    request = call.request
    return Place(request.origin, request.base_url, request.address, request.binding)


def bind(call: Call, begun: Begun) -> None:
    """Give the browser the cookie without which the flow cannot be finished."""
    if begun.binding != call.request.binding:
        call.reply.set_binding(begun.binding)
