"""Which permission each route of the server needs, by its handler class; unlisted, denied.

Jupyter's authoriser is asked by handlers that have a resource, and only where they remembered to.
JupyterLab's extension manager, settings and workspaces, and most third-party handlers, do not. So
every request is checked here first, from the identity provider, before its handler runs. A class
that nobody listed needs `server:admin`; `UaitApp.route_permissions` lists more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jupyter_server.base.handlers import JupyterHandler
from tornado.routing import Rule, RuleRouter
from tornado.web import RequestHandler

OPEN = "open"
"""A route that answers without a login: the written list is the rows of `ROUTES` that say so."""
UNLISTED = "server:admin"
OWN = "own"
"""A handler that checks the permission of the operation itself."""

READS = ("GET", "HEAD")


def reads(permission: str) -> dict[str, str]:
    """Allow GET and HEAD with a permission."""
    return dict.fromkeys(READS, permission)


def methods(read: str, write: str) -> dict[str, str]:
    """Allow GET and HEAD with one permission, what changes something with another."""
    return reads(read) | dict.fromkeys(("POST", "PUT", "PATCH", "DELETE"), write)


CONTENTS = methods("contents:read", "contents:write")
KERNELS = methods("kernels:read", "kernels:run")
SETTINGS = methods("lab:read", "lab:write")
EXTENSIONS = methods("lab:read", "lab:admin")

ROUTES: dict[str, dict[str, str]] = {
    # jupyter_server: open
    "jupyter_server.base.handlers.APIVersionHandler": reads(OPEN),
    "jupyter_server.base.handlers.FileFindHandler": reads(OPEN),
    "jupyter_server.base.handlers.PublicStaticFileHandler": reads(OPEN),
    "jupyter_server.base.handlers.RedirectWithParams": reads(OPEN),
    "jupyter_server.base.handlers.Template404": methods(OPEN, OPEN),
    "jupyter_server.base.handlers.TrailingSlashHandler": methods(OPEN, OPEN),
    # Only sends on to /api/contents, for anybody.
    "jupyter_server.services.contents.handlers.NotebooksRedirectHandler": methods(OPEN, OPEN),
    "jupyterlab_server.themes_handler.ThemesHandler": reads(OPEN),
    # jupyter_server: closed
    "jupyter_server.base.handlers.AuthenticatedFileHandler": reads("contents:read"),
    "jupyter_server.base.handlers.MainHandler": reads("account:read"),
    "jupyter_server.base.handlers.PrometheusMetricsHandler": reads("server:read"),
    "jupyter_server.kernelspecs.handlers.KernelSpecResourceHandler": reads("kernels:read"),
    "jupyter_server.nbconvert.handlers.NbconvertFileHandler": reads("contents:read"),
    "jupyter_server.nbconvert.handlers.NbconvertPostHandler": {"POST": "contents:write"},
    "jupyter_server.services.api.handlers.APISpecHandler": reads("system:read"),
    "jupyter_server.services.api.handlers.APIStatusHandler": reads("lab:read"),
    "jupyter_server.services.api.handlers.IdentityHandler": methods(
        "account:read", "account:write"
    ),
    "jupyter_server.services.api.handlers.PathResolverHandler": reads("contents:read"),
    "jupyter_server.services.config.handlers.ConfigHandler": SETTINGS,
    "jupyter_server.services.contents.handlers.CheckpointsHandler": CONTENTS,
    "jupyter_server.services.contents.handlers.ContentsHandler": CONTENTS,
    "jupyter_server.services.contents.handlers.ModifyCheckpointsHandler": CONTENTS,
    "jupyter_server.services.contents.handlers.TrustNotebooksHandler": {"POST": "contents:write"},
    "jupyter_server.services.events.handlers.EventHandler": {"POST": "lab:write"},
    "jupyter_server.services.events.handlers.SubscribeWebsocket": reads("server:read"),
    "jupyter_server.services.kernels.handlers.KernelActionHandler": {"POST": "kernels:run"},
    "jupyter_server.services.kernels.handlers.KernelHandler": KERNELS,
    "jupyter_server.services.kernels.handlers.MainKernelHandler": KERNELS,
    "jupyter_server.services.kernels.websocket.KernelWebsocketHandler": reads("kernels:run"),
    "jupyter_server.services.kernelspecs.handlers.KernelSpecHandler": reads("kernels:read"),
    "jupyter_server.services.kernelspecs.handlers.MainKernelSpecHandler": reads("kernels:read"),
    "jupyter_server.services.nbconvert.handlers.NbconvertRootHandler": reads("lab:read"),
    "jupyter_server.services.security.handlers.CSPReportHandler": {"POST": "lab:read"},
    "jupyter_server.services.sessions.handlers.SessionHandler": KERNELS,
    "jupyter_server.services.sessions.handlers.SessionRootHandler": KERNELS,
    "jupyter_server.services.shutdown.ShutdownHandler": {"POST": "server:admin"},
    "jupyter_server.view.handlers.ViewHandler": reads("contents:read"),
    "jupyter_server_terminals.api_handlers.TerminalHandler": methods(
        "terminals:run", "terminals:run"
    ),
    "jupyter_server_terminals.api_handlers.TerminalRootHandler": methods(
        "terminals:run", "terminals:run"
    ),
    "jupyter_server_terminals.handlers.TermSocket": reads("terminals:run"),
    # JupyterLab and Notebook
    "jupyterlab.handlers.announcements.CheckForUpdateHandler": reads("lab:read"),
    "jupyterlab.handlers.announcements.NewsHandler": reads("lab:read"),
    "jupyterlab.handlers.build_handler.BuildHandler": EXTENSIONS,
    "jupyterlab.handlers.extension_manager_handler.ExtensionHandler": EXTENSIONS,
    "jupyterlab.handlers.plugin_manager_handler.PluginHandler": EXTENSIONS,
    "jupyterlab_server.handlers.LabHandler": reads("lab:read"),
    "jupyterlab_server.handlers.NotFoundHandler": reads("lab:read"),
    "jupyterlab_server.licenses_handler.LicensesHandler": reads("lab:read"),
    "jupyterlab_server.listings_handler.ListingsHandler": reads("lab:read"),
    "jupyterlab_server.settings_handler.SettingsHandler": SETTINGS,
    "jupyterlab_server.translations_handler.TranslationsHandler": reads("lab:read"),
    "jupyterlab_server.workspaces_handler.WorkspacesHandler": SETTINGS,
    "notebook.app.ConsoleHandler": reads("lab:read"),
    "notebook.app.CustomCssHandler": reads("lab:read"),
    "notebook.app.FileHandler": reads("contents:read"),
    "notebook.app.NotebookHandler": reads("contents:read"),
    "notebook.app.TerminalHandler": reads("terminals:run"),
    "notebook.app.TreeHandler": reads("contents:read"),
    "notebook_shim.shim.NotebookDirHandler": reads("contents:read"),
    # language servers run programs on files
    "jupyter_lsp.handlers.LanguageServersHandler": reads("lab:read"),
    "jupyter_lsp.handlers.LanguageServerWebSocketHandler": reads("kernels:run"),
    # UAIT
    "uait_server_ext.api.handler.OperationHandler": methods(OWN, OWN),
    "uait_server_ext.api.handler.PublicOperationHandler": methods(OWN, OWN),
    "uait_server_ext.api.openai.handler.OpenAIHandler": methods(OWN, OWN),
    "uait_server_ext.identity.jupyter_pages.AccountPage": reads("account:read"),
    "uait_server_ext.identity.jupyter_pages.DevicePage": reads("account:read"),
    "uait_server_ext.identity.jupyter_pages.LinkPage": reads(OPEN),
    "uait_server_ext.identity.jupyter_pages.LoginPage": reads(OPEN),
    "uait_server_ext.identity.jupyter_pages.LogoutPage": reads(OPEN),
    "uait_server_ext.identity.jupyter_pages.PageFile": reads(OPEN),
    "uait_server_ext.identity.jupyter_pages.SecondFactorPage": reads(OPEN),
}
"""Handler class, then method, then the permission that it needs."""

AUTHORIZER_PERMISSIONS: dict[tuple[str, str], str] = {
    ("api", "read"): "lab:read",
    ("config", "read"): "lab:read",
    ("config", "write"): "lab:write",
    ("contents", "read"): "contents:read",
    ("contents", "write"): "contents:write",
    ("csp", "write"): "lab:read",
    ("events", "execute"): "server:read",
    ("events", "write"): "lab:write",
    ("kernels", "execute"): "kernels:run",
    ("kernels", "read"): "kernels:read",
    ("kernels", "write"): "kernels:run",
    ("kernelspecs", "read"): "kernels:read",
    ("lsp", "execute"): "kernels:run",
    ("lsp", "read"): "lab:read",
    ("nbconvert", "read"): "contents:read",
    ("nbconvert", "write"): "contents:write",
    ("server", "write"): "server:admin",
    ("sessions", "read"): "kernels:read",
    ("sessions", "write"): "kernels:run",
    ("terminals", "execute"): "terminals:run",
    ("terminals", "read"): "terminals:run",
    ("terminals", "write"): "terminals:run",
}
"""What Jupyter's authoriser is asked (resource, action), as our permission."""


class RoutePolicy:
    """The permission of every handler class and method."""

    def __init__(self, added: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self._routes: dict[str, Mapping[str, str]] = {**ROUTES, **(added or {})}

    def permission(self, handler: type[RequestHandler], method: str) -> str:
        """Return what a request to a handler needs; `server:admin` where nobody listed it."""
        return self._routes.get(class_name(handler), {}).get(method, UNLISTED)

    def is_open(self, handler: type[RequestHandler], method: str) -> bool:
        """Tell whether the written list lets a request pass without a login."""
        return self.permission(handler, method) == OPEN

    def without_login(self, handlers: Iterator[type[RequestHandler]]) -> list[str]:
        """Return the classes that Jupyter's login does not reach and the written list not opens.

        `allow_unauthenticated_access=False` guards `JupyterHandler`s only: a plain tornado handler
        answers everybody, whatever is configured.
        """
        return sorted(
            {
                class_name(handler)
                for handler in handlers
                if not issubclass(handler, JupyterHandler) and not self.is_open(handler, "GET")
            }
        )

    def unlisted(self, handlers: Iterator[type[RequestHandler]]) -> list[str]:
        """Return the classes that no list names."""
        return sorted({class_name(one) for one in handlers} - set(self._routes))


def class_name(handler: type[RequestHandler]) -> str:
    """Return a class's full name."""
    return f"{handler.__module__}.{handler.__qualname__}"


def handler_classes(router: Any) -> Iterator[type[RequestHandler]]:
    """Walk a live router and return every handler class behind it."""
    for _, handler in live_routes(router):
        yield handler


def live_routes(router: Any) -> Iterator[tuple[str, type[RequestHandler]]]:
    """Walk a live router and return each path pattern with its handler class."""
    for rule in router.rules:
        assert isinstance(rule, Rule)
        target = rule.target
        if isinstance(target, RuleRouter):
            yield from live_routes(target)
        elif isinstance(target, type) and issubclass(target, RequestHandler):
            regex = getattr(rule.matcher, "regex", None)
            yield (regex.pattern if regex else str(rule.matcher)), target
