"""Network addresses: who really sends a request, and where this server may connect for its users.

A URL that a user may set (a provider, a webhook) must not reach what only the server can reach:
its own host, its network, the cloud's metadata. `check_url` says so early; `outbound.py` asks
again at the moment of connecting, and connects to the address that was checked.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from urllib.parse import urlsplit

from uait_server_ext.errors import AddressRefused, Unavailable

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Return the addresses of a host name; raises OSError where there are none."""

SCHEMES = {"http": 80, "https": 443}
MAX_URL = 2048
MAX_HOPS = 32
RESOLVE_SECONDS = 5.0
NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?")
NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
NAT64 = IPv6Network("64:ff9b::/96")
COMPATIBLE = IPv6Network("::/96")


@dataclass(frozen=True, slots=True)
class Allowed:
    """What an administrator has opened although it is not public: networks, and host names."""

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()

    @classmethod
    def of(cls, entries: Iterable[str]) -> Allowed:
        """Read entries such as `10.1.0.0/16`, `127.0.0.1`, `ollama.internal`.

        Raises:
            ValueError: an entry is neither a network nor a host name.
        """
        networks: list[Network] = []
        hosts = set()
        for entry in entries:
            text = entry.strip().lower()
            try:
                networks.append(ip_network(text))
            except ValueError:
                if not is_name(text):
                    raise ValueError(f"{entry!r} is neither a network nor a host name") from None
                hosts.add(text.rstrip("."))
        return cls(tuple(networks), frozenset(hosts))


@dataclass(frozen=True, slots=True)
class Target:
    """A checked URL: its host, its port, and the addresses it may be connected by."""

    host: str
    port: int
    addresses: tuple[str, ...]


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses that the system gives for a name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def check_url(
    url: str, allowed: Allowed | None = None, resolver: Resolver | None = None
) -> Target:
    """Tell where a URL leads, if it leads where this server may go.

    Raises:
        AddressRefused: another scheme than http(s), user and password in it, a host written in
            an unusual way, or one of its addresses is neither public nor allowed.
        Unavailable: the name cannot be resolved now.
    """
    host, port = split_url(url)
    return await check_host(host, port, allowed, resolver)


def split_url(url: str) -> tuple[str, int]:
    """Return the host and port of a URL that is written as expected; see `check_url`."""
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or set(url) & set(" \\"):
        raise AddressRefused("The URL has characters that no URL has. Check how it is written.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise AddressRefused("The URL cannot be read. Check how it is written.") from None
    if parts.scheme not in SCHEMES:
        raise AddressRefused("The URL must begin with https:// or http://.")
    if "@" in parts.netloc:
        raise AddressRefused("The URL holds a user name. Store credentials in the vault instead.")
    if not parts.hostname or port == 0:
        raise AddressRefused("The URL has no host.")
    return parts.hostname, port or SCHEMES[parts.scheme]


async def check_host(
    host: str, port: int, allowed: Allowed | None = None, resolver: Resolver | None = None
) -> Target:
    """Resolve a host and check every address it has; see `check_url`."""
    allowed = allowed or Allowed()
    host = host.lower()
    literal = literal_address(host)
    if literal is not None:
        addresses: Sequence[str] = [str(literal)]
    elif is_name(host):
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                addresses = await (resolver or resolve)(host, port)
        except (OSError, UnicodeError):  # TimeoutError is an OSError
            raise Unavailable(f"The host {host[:100]} cannot be found. Check the name.") from None
    else:
        raise AddressRefused(
            f"The host {host[:100]!r} is not a name or a plain address. Write it in full."
        )
    if not addresses:
        raise Unavailable(f"The host {host[:100]} has no address. Check the name.")
    if host.rstrip(".") not in allowed.hosts:
        for address in addresses:
            if not may_connect(address, allowed.networks):
                # The address itself would tell a stranger how the inner network is laid out.
                raise AddressRefused(
                    f"The host {host[:100]} is not on the public internet. An administrator can "
                    "allow it by its name or network."
                )
    return Target(host, port, tuple(addresses))


def may_connect(address: str, networks: Iterable[Network] = ()) -> bool:
    """Tell whether an address is public, or in one of the networks."""
    try:
        plain = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inner = embedded(plain)
    return any(plain in network or inner in network for network in networks) or (
        is_public(plain) and is_public(inner)
    )


def is_public(address: Address) -> bool:
    """Tell whether an address is one host on the public internet."""
    if isinstance(address, IPv6Address) and (address.is_site_local or address in COMPATIBLE):
        return False
    return (address.is_global or address in NAT64 or mapped(address) is not None) and not (
        address.is_multicast or address.is_unspecified or address.is_loopback
    )


def embedded(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for, else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return (
        address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1] or address
    )


def mapped(address: Address) -> IPv4Address | None:
    """Return the IPv4 address of `::ffff:1.2.3.4`."""
    return address.ipv4_mapped if isinstance(address, IPv6Address) else None


def literal_address(host: str) -> Address | None:
    """Return the address that a host is written as, in its usual form only."""
    try:
        return ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def is_name(host: str) -> bool:
    """Tell whether a host is a DNS name; `2130706433`, `0x7f.1` and `017700000001` are not."""
    if len(host) > 253 or not NAME.fullmatch(host):
        return False
    return not NUMERIC.fullmatch(host.rstrip(".").rpartition(".")[2])


def client_address(peer: str, forwarded_for: Sequence[str], trusted: tuple[Network, ...]) -> str:
    """Return the address of the client, as far as proxies that we trust can tell it.

    The lines of `X-Forwarded-For` are read from their end, for as long as the address that added
    an entry is trusted; without a list of proxies, and from anybody else, they are ignored.
    """
    address = peer
    if not trusted or not in_networks(peer, trusted):
        return address
    entries = ",".join(forwarded_for).rsplit(",", MAX_HOPS)[-MAX_HOPS:]
    for entry in reversed(entries):
        told = bare_address(entry)
        if told is None:  # `unknown`, a name, nonsense: what stands left of it is worth no more
            return address
        address = told
        if not in_networks(address, trusted):
            return address
    return address


def in_networks(address: str, networks: tuple[Network, ...]) -> bool:
    """Tell whether an address is in one of the networks."""
    plain = bare_address(address)
    return plain is not None and any(ip_address(plain) in network for network in networks)


def bare_address(entry: str) -> str | None:
    """Return the address in `1.2.3.4`, `1.2.3.4:5`, `2001:db8::1`, `[2001:db8::1]:5`, or none."""
    text = entry.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return str(mapped(address) or address)
