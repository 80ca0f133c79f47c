"""Which web site made the browser send a request.

Who may read an answer across origins (CORS) is Jupyter's `allow_origin`, off by default; the
client's address is `resilience/addresses.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from uait_server_ext.errors import PermissionDenied

DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def refuse_cross_site(method: str, headers: Mapping[str, str], host: str) -> None:
    """Refuse what another site makes a browser send with this site's cookies.

    To be asked for every request that carries no `Authorization` header: credentials that a
    browser adds by itself, and public operations.

    Raises:
        PermissionDenied: the request comes from another site.
    """
    origin = headers.get("Origin")
    if origin is not None:
        if same_site(origin, host):
            return
        raise PermissionDenied("Another web site sent this request. Use UAIT's own pages.")
    site = headers.get("Sec-Fetch-Site")
    mode = headers.get("Sec-Fetch-Mode")
    safe = method in ("GET", "HEAD", "OPTIONS")
    # `same-site` is another port or sub-domain: a stranger too. A navigation is a followed link.
    foreign = site is not None and site not in ("same-origin", "none")
    if (foreign and not (safe and mode == "navigate")) or (mode == "no-cors" and not safe):
        raise PermissionDenied("Another web site sent this request. Use UAIT's own pages.")


def same_site(origin: str, host: str) -> bool:
    """Tell whether an `Origin` names the host that the request was sent to."""
    scheme, _, authority = origin.lower().partition("://")
    default = DEFAULT_PORTS.get(scheme)
    if default is None or not host:
        return False
    return authority.removesuffix(default) == host.lower().removesuffix(default)
