"""Security headers on every response: ours, Jupyter's, a third party's, tornado's own errors.

`apply` gives Jupyter's handlers their policy (they add a sandbox for user files to it); `protect`
stands where every request enters and adds what a response lacks when its headers are sent. It also
bounds the bodies of our own paths before they are read into memory.
"""

from __future__ import annotations

from typing import Any

from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import Application

MAX_READ_BYTES = 8 * 1024 * 1024
"""A larger body is cut off while it is read; one beyond the handler's own limit is answered 413."""

PAGE_POLICY = "; ".join(
    (
        "default-src 'self'",
        # JupyterLab compiles schemas and templates; without it no notebook is shown.
        "script-src 'self' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "frame-src 'self' blob: data:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
"""The policy of pages (JupyterLab's). Nothing is loaded from, or sent to, another host."""

API_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""The policy of the API's answers, which are never a page."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    # Jupyter itself asks for the referrer of its own pages.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "accelerometer=(), camera=(), display-capture=(), "
    "geolocation=(), gyroscope=(), hid=(), magnetometer=(), microphone=(), midi=(), payment=(), "
    "serial=(), usb=()",
}
STRICT_TRANSPORT = "max-age=31536000"

API_HEADERS = {"Content-Security-Policy": API_POLICY, "Cache-Control": "no-store"}
"""Set by the handler of operations over those of pages."""


def apply(serverapp: Any) -> None:
    """Give Jupyter's handlers the policy; before or after its web application is built."""
    settings = getattr(serverapp, "web_app", None)
    settings = serverapp.tornado_settings if settings is None else settings.settings
    configured = dict(settings.get("headers") or {})
    # What an administrator has configured stands, except for the policy's absence.
    settings["headers"] = {"Content-Security-Policy": PAGE_POLICY, **HEADERS, **configured}


def protect(web_app: Application, prefix: str, *, https: bool = False) -> None:
    """Put the headers on every response of an application.

    `prefix` is the path under which our own operations are; `https` says that browsers reach the
    server by https, so that they may be told to stay there.
    """
    wanted = {"Content-Security-Policy": PAGE_POLICY, **HEADERS}
    if https:
        wanted["Strict-Transport-Security"] = STRICT_TRANSPORT
    find_handler = web_app.find_handler

    def find(request: HTTPServerRequest, **options: Any) -> Any:
        connection: Any = request.connection
        send = connection.write_headers

        def write_headers(start_line: Any, headers: HTTPHeaders, chunk: bytes | None = None) -> Any:
            for name, value in wanted.items():
                if name not in headers:
                    headers[name] = value
            if "Server" in headers:  # tornado's version helps only who looks for a hole in it
                del headers["Server"]
            return send(start_line, headers, chunk)

        connection.write_headers = write_headers
        if request.path.startswith(prefix):
            connection.set_max_body_size(MAX_READ_BYTES)
        return find_handler(request, **options)

    web_app.find_handler = find  # type: ignore[method-assign]
