"""Which UAIT server this kernel uses.

The order, first match wins; an explicit `connect(url, token)` comes before all of it:

1. `UAIT_URL`, with `UAIT_TOKEN` or else the token of the runtime file of that very address or else
   the login that `uait login` has stored for it
2. the Jupyter server that started this kernel (`JPY_PARENT_PID`): with the token of its runtime
   file or, under UAIT's own login, where that holds none, with the kernel's proof
3. JupyterHub's variables (`JUPYTERHUB_SERVICE_URL`, `JUPYTERHUB_API_TOKEN`)
4. the newest Jupyter server on this machine that answers as UAIT, also with a stored login

`UAIT_TOKEN` without `UAIT_URL` is not used: it would go to a server it may not be meant for.
The kernel's proof also opens that server when `UAIT_URL` or `connect` names it without a token.
No server is started here, and no token is ever printed: it stays inside `Token`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from .credentials import stored_token
from .endpoint import Endpoint, Server, Token, parse_address
from .errors import (
    Busy,
    NoAnswer,
    NotFound,
    ServerError,
    ServerNotFound,
    UaitClientError,
    Unavailable,
    UnexpectedAnswer,
    UsageMistake,
)
from .kernel_proof import KernelToken, exchange_with, own_kernel
from .runtime_files import (
    RunningServer,
    is_alive,
    running_servers,
    runtime_folder,
    server_of_process,
)
from .transport import START_HINT, Transport

PROBE_SECONDS = 1.0


def find_server(environment: Mapping[str, str] | None = None, folder: Path | None = None) -> Server:
    """Return the server to use.

    Args:
        environment: instead of this process's.
        folder: instead of Jupyter's runtime folder.

    Raises:
        ServerNotFound: nothing was found; the message says in one line what was tried.
        UsageMistake: a variable holds no address, or a token that cannot be one.
    """
    variables = os.environ if environment is None else environment
    folder = folder or runtime_folder()
    tried: list[str] = []
    for found in _routes(variables, folder):
        if isinstance(found, Server):
            return found
        tried.append(found)
    raise ServerNotFound(f"No UAIT server found: {'; '.join(tried)}. {START_HINT}")


def server_at(url: str, token: str | None, route: str, folder: Path | None = None) -> Server:
    """Return the server at an address.

    Without a token it takes the one of the link, or else of the runtime file of that very address,
    or else the stored login there.

    Raises:
        UsageMistake: that is no address, or no token.
    """
    endpoint, linked = parse_address(url)
    chosen = Token(token or "") or linked
    if not chosen:
        endpoint, chosen = _opened_here(endpoint, folder or runtime_folder())
    if not chosen:
        chosen = stored_token(endpoint) or chosen
    return Server(endpoint, chosen, route)


def _opened_here(endpoint: Endpoint, folder: Path) -> tuple[Endpoint, Token]:
    """Return what opens the server of this very address, as far as this machine knows.

    That is the token of its runtime file, or the proof of this kernel, which is made for the
    address that the file gives; an empty token where there is neither.
    """
    for server in running_servers(folder):
        if endpoint.same_server(server.endpoint):
            if not server.token and str(server.pid) == os.environ.get("JPY_PARENT_PID"):
                proven = _proven(server)
                return (server.endpoint, proven) if proven else (endpoint, server.token)
            return endpoint, server.token
    return endpoint, Token()


def _routes(variables: Mapping[str, str], folder: Path) -> Iterator[Server | str]:
    """Yield what each route finds: a server, or why there is none."""
    yield _from_variable(variables, folder)
    yield _parent(variables, folder)
    yield _hub(variables)
    yield _newest(variables, folder)


def _from_variable(variables: Mapping[str, str], folder: Path) -> Server | str:
    """Use `UAIT_URL`."""
    url = variables.get("UAIT_URL", "").strip()
    if not url:
        return "UAIT_URL is not set"
    try:
        return server_at(url, variables.get("UAIT_TOKEN"), "from UAIT_URL", folder)
    except UsageMistake as error:
        raise UsageMistake(f"UAIT_URL or UAIT_TOKEN cannot be used. {error}") from None


def _parent(variables: Mapping[str, str], folder: Path) -> Server | str:
    """Use the Jupyter server that started this kernel, unless it says that UAIT is not in it."""
    pid = variables.get("JPY_PARENT_PID", "")
    server = server_of_process(folder, int(pid)) if pid.isdecimal() else None
    if server is None or not is_alive(server.pid):
        return "this kernel was started by no Jupyter server"
    route = "the server of this kernel"
    address = f"{server.endpoint.url} ({route})"
    try:
        if not _is_uait(server):
            return f"{address} is without UAIT"
    except NoAnswer:
        pass  # too busy to answer a probe, or restarting: the request itself will tell
    if server.token:
        return Server(server.endpoint, server.token, route)
    try:
        proven = _proven(server)
    except ServerError as error:
        return f"{address} gives this kernel no token: {error.problem.get('detail')}"
    if proven is None and server.password_only:
        return f"{address} has a password login only, set UAIT_TOKEN"
    return Server(server.endpoint, proven or server.token, route)


def _proven(server: RunningServer) -> KernelToken | None:
    """Prove this kernel to the server that started it; None where the server takes no proofs.

    Raises:
        ServerError: it takes them and does not accept this one.
    """
    kernel = own_kernel()
    if kernel is None:
        return None
    token = KernelToken(exchange_with(server.endpoint, kernel))
    try:
        token.headers()
    except (Busy, NoAnswer):
        pass  # not now: the request itself will try again
    except (NotFound, Unavailable, UnexpectedAnswer):
        return None  # Jupyter's own login, or no UAIT at all
    return token


def _hub(variables: Mapping[str, str]) -> Server | str:
    """Use the person's own server under JupyterHub."""
    url, token = variables.get("JUPYTERHUB_SERVICE_URL"), variables.get("JUPYTERHUB_API_TOKEN")
    if not url or not token:
        return "no JupyterHub"
    try:
        endpoint, _ = parse_address(url)
        return Server(endpoint, Token(token), "from JupyterHub")
    except UsageMistake:
        return "JUPYTERHUB_SERVICE_URL is no address to connect to"


def _newest(variables: Mapping[str, str], folder: Path) -> Server | str:
    """Use the newest Jupyter server on this machine that answers as UAIT."""
    servers = running_servers(folder)
    for server in servers:
        if str(server.pid) == variables.get("JPY_PARENT_PID"):
            continue  # looked at before, and it will not do
        try:
            token = server.token or stored_token(server.endpoint) or server.token
            if (token or not server.password_only) and _is_uait(server):
                return Server(server.endpoint, token, "running on this machine")
        except NoAnswer:
            continue
    if servers:
        return f"of the Jupyter servers on this machine ({len(servers)}) none answers as UAIT"
    return "no Jupyter server runs on this machine"


def _is_uait(server: RunningServer) -> bool:
    """Ask the public probe, without the token.

    Raises:
        NoAnswer: nothing came within a second.
    """
    probe = Transport(Server(server.endpoint, Token(), "probe"), timeout=PROBE_SECONDS)
    try:
        return probe.call("GET", "health", "live").get("live") is True
    except NoAnswer:
        raise
    except UaitClientError:
        return False
