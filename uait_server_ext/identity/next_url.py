"""Where a browser may be sent after a login: a path of this server, nothing else."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

MAX_LENGTH = 2000


def local_path(target: str | None, base_url: str) -> str:
    """Return the target where it is a path under the base URL, else the base URL itself.

    Browsers read a backslash as `/`, drop tabs and line ends, and take `//host` for another server;
    proxies may decode an escape before they pass a path on. So whatever could be read as another
    server, as it stands or once decoded, is not followed.
    """
    if not target or len(target) > MAX_LENGTH:
        return base_url
    return (
        target if is_local(target, base_url) and is_local(unquote(target), base_url) else base_url
    )


def is_local(target: str, base_url: str) -> bool:
    """Tell whether a browser that is sent to the target stays under the base URL."""
    if "\\" in target or any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in target):
        return False
    try:
        parts = urlsplit(target)
    except ValueError:
        return False
    if target.startswith("//") or parts.scheme or parts.netloc:
        return False
    # `/base/../elsewhere` leaves the base URL.
    return parts.path.startswith(base_url) and ".." not in parts.path.split("/")
