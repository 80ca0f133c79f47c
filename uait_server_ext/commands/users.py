"""`uait users`: people of this server, for who operates the machine.

It works on the database directly, so it also helps when nobody can log in. A running server sees
each change at once. Links are printed; hand each to its person over a channel you trust.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from uait_server_ext.identity.principal import ROLES

from .state import DatabaseUrl, DataDir, MasterKeyUrl, Place, operator

if TYPE_CHECKING:
    from uait_server_ext.identity.links import IssuedLink
    from uait_server_ext.identity.service import Identity

app = typer.Typer(help="People of this server.", no_args_is_help=True)

LOCAL = "local"
"""What the audit log has for an address where a command on the machine did it."""

Name = Annotated[str, typer.Argument(help="User name.")]
Role = Annotated[str, typer.Option(help=f"One of: {', '.join(ROLES)}.")]
Server = Annotated[
    str, typer.Option("--url", help="The server's address, for the link.", envvar="UAIT_URL")
]
DEFAULT_SERVER = "http://localhost:8888/"


@app.callback()
def place(
    context: typer.Context,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = "",
    master_key: MasterKeyUrl = "file:",
) -> None:
    """People of this server."""
    context.obj = Place(data_dir, database_url, master_key)


@app.command("list")
def list_users(context: typer.Context) -> None:
    """List people with their roles and groups."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("user", "name", "roles", "groups", "state")
    with identity(context) as here:
        offset, total = 0, 1
        while offset < total:
            page, total = asyncio.run(here.directory.users(offset, 1000))
            if not page:
                break
            offset += len(page)
            for user in page:
                state = "disabled" if user.disabled else "active"
                cells = (
                    user.username,
                    user.display_name,
                    *map(" ".join, (user.roles, user.groups)),
                )
                table.add_row(*map(Text, (*cells, state)))
    Console().print(table)


@app.command()
def add(
    context: typer.Context,
    name: Name,
    role: Role = "viewer",
    display_name: Annotated[str | None, typer.Option(help="Name that people read.")] = None,
    url: Server = DEFAULT_SERVER,
) -> None:
    """Add a person and print the link with which they choose a password."""
    from uait_server_ext.identity.enrolment import reset_link

    async def work(here: Identity) -> IssuedLink:
        user_id = await here.directory.add(
            operator(), name, display_name=display_name, roles=[role], address=LOCAL
        )
        return await reset_link(here, operator(), user_id, LOCAL)

    with identity(context) as here:
        print_link(asyncio.run(work(here)), url)


@app.command()
def invite(context: typer.Context, role: Role = "viewer", url: Server = DEFAULT_SERVER) -> None:
    """Print a link with which somebody makes an account of their own, once, within a week."""
    from uait_server_ext.identity.enrolment import invite

    with identity(context) as here:
        print_link(asyncio.run(invite(here, operator(), role, LOCAL)), url)


@app.command()
def reset(context: typer.Context, name: Name, url: Server = DEFAULT_SERVER) -> None:
    """Print a link with which a person sets a new password, once, within a day."""
    from uait_server_ext.identity.enrolment import reset_link

    async def work(here: Identity) -> IssuedLink:
        user = await here.directory.user_named(name)
        return await reset_link(here, operator(), user.id, LOCAL)

    with identity(context) as here:
        print_link(asyncio.run(work(here)), url)


@app.command("remove-factors")
def remove_factors(context: typer.Context, name: Name) -> None:
    """Remove every second factor of a person who lost them; everything they hold ends."""

    async def work(here: Identity) -> None:
        user = await here.directory.user_named(name)
        await here.factors.remove_all(user.id, operator().id, LOCAL)

    with identity(context) as here:
        asyncio.run(work(here))
    print(f"{name} has no second factor")


@app.command("provider-secret")
def provider_secret(
    context: typer.Context,
    provider: Annotated[str, typer.Argument(help="Id of an identity provider.")],
) -> None:
    """Seal the client secret of a provider whose `client_secret_ref` is `sealed`.

    The secret is asked for, or read from standard input.
    """
    from .vault import ask_value

    secret = ask_value(f"client secret of {provider}")
    with context.obj.opened() as foundation:
        foundation.database.write_now(
            lambda connection: foundation.sealer.put(
                connection, f"oidc:{provider}", secret.encode()
            )
        )
    print(f"{provider}: its client secret is sealed")


@app.command()
def disable(context: typer.Context, name: Name) -> None:
    """Let a person in no more; their sessions and tokens end at once."""
    change(context, name, disabled=True)
    print(f"{name} is disabled")


@app.command()
def enable(context: typer.Context, name: Name) -> None:
    """Let a disabled person in again."""
    change(context, name, disabled=False)
    print(f"{name} is enabled")


@app.command()
def role(
    context: typer.Context,
    name: Name,
    roles: Annotated[list[str], typer.Argument(help=f"Of: {', '.join(ROLES)}.")],
) -> None:
    """Give a person these roles instead of those they have."""
    change(context, name, roles=roles)
    print(f"{name} has the roles {', '.join(sorted(set(roles)))}")


@app.command()
def delete(
    context: typer.Context,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a person with their sessions, keys and factors."""
    if not yes:
        typer.confirm(f"Delete {name} and everything that is only theirs?", abort=True)

    async def work(here: Identity) -> None:
        user = await here.directory.user_named(name)
        await here.directory.delete(operator(), user.id, address=LOCAL)

    with identity(context) as here:
        asyncio.run(work(here))
    print(f"{name} is deleted")


def change(
    context: typer.Context,
    name: str,
    *,
    roles: list[str] | None = None,
    disabled: bool | None = None,
) -> None:
    """Change a person."""

    async def work(here: Identity) -> None:
        user = await here.directory.user_named(name)
        await here.directory.change(
            operator(), user.id, roles=roles, disabled=disabled, address=LOCAL
        )

    with identity(context) as here:
        asyncio.run(work(here))


@contextmanager
def identity(context: typer.Context) -> Iterator[Identity]:
    """Open the identity of the server's state."""
    from uait_server_ext.identity.service import IdentitySettings
    from uait_server_ext.services import open_identity

    with context.obj.opened() as foundation:
        here = open_identity(IdentitySettings(), foundation)
        try:
            yield here
        finally:
            here.passwords.close()


def print_link(link: IssuedLink, server: str) -> None:
    """Print a one-time link by itself, so that a script can take it."""
    print(link.url(server))
