"""What an API key may be used for: from which networks, for which operations."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

PLAIN_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)+/?|/", re.ASCII)
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A living key that a request carried."""

    id: str
    user_id: str
    name: str
    scope: frozenset[str]
    routes: tuple[str, ...]
    networks: tuple[Network, ...]
    signing: bool
    expires_at: float | None

    def comes_from(self, address: str) -> bool:
        """Tell whether it may be used from an IP address."""
        if not self.networks:
            return True
        try:
            found = ip_address(address)
        except ValueError:
            return False
        if isinstance(found, IPv6Address) and found.ipv4_mapped:
            found = found.ipv4_mapped
        return any(found in network for network in self.networks)

    def reaches(self, method: str, path: str) -> bool:
        """Tell whether it may be used for a request.

        Args:
            path: below `/uait/v1` for our operations, below the base URL for other routes.
        """
        if not self.routes:
            return True
        return is_plain(path) and any(matches(pattern, method, path) for pattern in self.routes)


def is_plain(path: str) -> bool:
    """Tell whether a path means one thing only: no dot segments, no hidden slash, no empty part."""
    return (
        PLAIN_PATH.fullmatch(path) is not None
        and not {".", ".."} & {part.lower().replace("%2e", ".") for part in path.split("/")}
        and "%2f" not in path.lower()
        and "%5c" not in path.lower()
    )


def matches(pattern: str, method: str, path: str) -> bool:
    """Tell whether a route pattern covers a request; a name in braces stands for one part."""
    wanted_method, _, wanted_path = pattern.partition(" ")
    if wanted_method not in ("*", method):
        return False
    wanted, parts = wanted_path.split("/")[1:], path.split("/")[1:]
    if wanted[-1] == "**":
        wanted.pop()
        if len(parts) <= len(wanted):
            return False
        parts = parts[: len(wanted)]
    return len(wanted) == len(parts) and all(
        ((one == "*" or one.startswith("{")) and part != "") or one == part
        for one, part in zip(wanted, parts, strict=True)
    )
