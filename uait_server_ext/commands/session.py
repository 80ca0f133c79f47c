"""`uait login`, `uait logout`, `uait whoami`: this person's login at a server, from the shell.

The login is the device flow (RFC 8628): the password is typed in the browser, never here. What is
stored is in `uait_kernel.credentials`, where magics and commands find it too.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from uait_kernel.credentials import CredentialFile, Login
    from uait_kernel.endpoint import Endpoint
    from uait_kernel.errors import UaitClientError

app = typer.Typer(no_args_is_help=True)

REJECTED = 2
UNREACHABLE = 3
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
LOOPBACK = ("127.0.0.1", "::1", "localhost")

Url = Annotated[
    str | None, typer.Option(help="The server's address; none: the only one known.", metavar="URL")
]


@app.command()
def login(
    url: Url = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="A permission to ask for, such as `users:read`; may be repeated."),
    ] = None,
) -> None:
    """Log in at a server: approve the code that is shown, in a browser.

    The login is kept in a file that only you can read. Magics and commands use it for this server.
    """
    from uait_kernel.credentials import CredentialFile
    from uait_kernel.errors import UaitClientError

    try:
        endpoint = endpoint_of(url, CredentialFile())
        if endpoint.scheme != "https" and endpoint.host not in LOOPBACK:
            print(f"warning: the way to {endpoint.url} is not encrypted", file=sys.stderr)
        done = device_login(endpoint, " ".join(scope or []) or None, show=print)
        file = CredentialFile()
        with file.locked():
            file.put(endpoint, done)
    except UaitClientError as error:
        fail(error)
    print(f"logged in at {endpoint.url}: {done.scope}")


@app.command()
def logout(url: Url = None) -> None:
    """End the login at a server, there and here."""
    from uait_kernel.credentials import CredentialFile
    from uait_kernel.errors import UaitClientError

    file = CredentialFile()
    try:
        endpoint = endpoint_of(url, file)
        with file.locked():
            stored = file.find(endpoint)
            file.drop(endpoint)
        if stored is None:
            print(f"there was no login at {endpoint.url}")
            return
        end(endpoint, stored.refresh_token)
    except UaitClientError as error:
        fail(error)
    print(f"logged out at {endpoint.url}")


@app.command()
def whoami(url: Url = None) -> None:
    """Show who you are at a server and what you may do there."""
    from uait_kernel.credentials import CredentialFile
    from uait_kernel.discovery import server_at
    from uait_kernel.errors import UaitClientError
    from uait_kernel.transport import Transport

    try:
        endpoint = endpoint_of(url, CredentialFile())
        server = server_at(endpoint.url, os.environ.get("UAIT_TOKEN"), "named")
        me = Transport(server).call("GET", "me")
    except UaitClientError as error:
        fail(error)
    print(f"{me.get('username')} ({me.get('display_name')}) at {server.url}")
    print(f"roles: {' '.join(me.get('roles', []))}")
    print(f"permissions: {' '.join(me.get('permissions', []))}")


def device_login(
    endpoint: Endpoint,
    scope: str | None,
    *,
    show: Callable[[str], object],
    sleep: Callable[[float], object] = time.sleep,
) -> Login:
    """Run the device flow to its end.

    Args:
        show: is given the lines for the person.

    Raises:
        UaitClientError: denied, expired, or the server cannot be reached.
    """
    from uait_kernel.credentials import Login
    from uait_kernel.endpoint import Server, Token
    from uait_kernel.errors import ServerError, UnexpectedAnswer, one_line
    from uait_kernel.transport import Transport

    transport = Transport(Server(endpoint, Token(), "given to login"), timeout=30)
    asked: dict[str, Any] = {"client": f"uait on {platform.node() or 'this machine'}"[:100]}
    if scope:
        asked["scope"] = scope
    begun = transport.call("POST", "device", body=asked)
    try:
        device_code, interval = str(begun["device_code"]), float(begun["interval"])
        page, code = one_line(begun["verification_uri"]), one_line(begun["user_code"])
    except (KeyError, TypeError, ValueError):
        raise UnexpectedAnswer(f"{endpoint.url} answered a login without codes.") from None
    show(f"Open {page} in a browser and type the code {code}")
    while True:
        sleep(interval)
        body = {"grant_type": DEVICE_GRANT, "device_code": device_code}
        try:
            return Login.of(transport.call("POST", "token", body=body), time.time())
        except ServerError as error:
            if error.code == "slow_down":
                interval += 5  # RFC 8628 section 3.5
            elif error.code == "busy":
                interval = max(interval, 10)
            elif error.code != "authorization_pending":
                raise


def end(endpoint: Endpoint, refresh_token: str) -> None:
    """Tell the server that a login is over."""
    from uait_kernel.endpoint import Server, Token
    from uait_kernel.errors import NoAnswer
    from uait_kernel.transport import Transport

    transport = Transport(Server(endpoint, Token(), "stored login"), timeout=10)
    try:
        transport.call("POST", "token", "revoke", body={"token": refresh_token})
    except NoAnswer as error:
        raise NoAnswer(
            f"The login is forgotten here; {endpoint.url} could not be told and ends it when it "
            "has not been used for two weeks."
        ) from error


def endpoint_of(url: str | None, file: CredentialFile) -> Endpoint:
    """Return the server that is meant: the one named, else the only one known.

    Raises:
        UaitClientError: none is known, or several.
    """
    from uait_kernel.discovery import find_server
    from uait_kernel.endpoint import parse_address
    from uait_kernel.errors import UsageMistake

    named = url or os.environ.get("UAIT_URL")
    if named:
        return parse_address(named)[0]
    known = list(file.logins())
    if len(known) > 1:
        raise UsageMistake(f"You are logged in at {', '.join(known)}: say which one with --url.")
    return parse_address(known[0])[0] if known else find_server().endpoint


def fail(error: UaitClientError) -> NoReturn:
    """Print one line of error and exit."""
    from uait_kernel.errors import NoAnswer, ServerNotFound

    print(f"uait: {error}", file=sys.stderr)
    sys.exit(UNREACHABLE if isinstance(error, NoAnswer | ServerNotFound) else REJECTED)
