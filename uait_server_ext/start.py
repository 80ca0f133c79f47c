"""Start a server whose login is UAIT's, or none at all: what `uait lab` and `uait serve` run.

`UaitServerApp` is Jupyter's server with its identity provider and authoriser set after every
configuration was read, so that no file and no option takes them away. When UAIT cannot load, was
disabled, or anything stands in the place of its provider, the server does not start.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import urlsplit

from jupyter_server.serverapp import ServerApp
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from jupyter_server.utils import url_path_join

from .api.handler import OperationHandler
from .api.security_headers import apply, protect
from .app import UaitApp
from .errors import Conflict, UaitError
from .hardening import refuse_dumps
from .identity.jupyter_kernels import Encryption, secure_kernels, secure_terminals
from .identity.jupyter_provider import UaitAuthorizer, UaitIdentityProvider
from .identity.jupyter_routes import RoutePolicy, handler_classes
from .identity.jupyter_sockets import OpenConnections
from .identity.kernel_environment import KernelEnvironment

if TYPE_CHECKING:
    from .identity.service import Identity

NO_ORIGIN = "(?!)"
"""A pattern that matches nothing: Jupyter else echoes any origin to who sends a token."""

EXTENSION = "uait_server_ext"
LOOK_AGAIN_SECONDS = 10.0
HUB_VARIABLE = "JUPYTERHUB_SERVICE_URL"


class UaitServerApp(ServerApp):
    """A Jupyter server that knows people: see the module."""

    name = "jupyter-server"
    identity: Identity | None = None

    def init_configurables(self) -> None:
        """Put UAIT's identity in place, whatever the configuration says."""
        app = self.uait_extension()
        try:
            self.identity = app.open_identity()
        except UaitError as error:
            self.refuse(error.detail)
        except Exception as error:
            self.log.exception("UAIT's state could not be opened")
            self.refuse(str(error))
        self.identity_provider_class = UaitIdentityProvider
        self.authorizer_class = UaitAuthorizer
        self.allow_unauthenticated_access = False
        self.disable_check_xsrf = False
        self.trust_xheaders = False
        if not self.allow_origin and not self.allow_origin_pat:
            self.allow_origin_pat = NO_ORIGIN
        if app.public_url:
            # Jupyter answers by no other name than its own, against DNS rebinding.
            self.local_hostnames = [*self.local_hostnames, urlsplit(app.public_url).hostname or ""]
        apply(self)
        super().init_configurables()
        provider = self.identity_provider
        assert isinstance(provider, UaitIdentityProvider)
        provider.identity = self.identity
        provider.policy = RoutePolicy(app.route_permissions)
        provider.connections = OpenConnections(self.identity.authenticator)
        self.identity.serve_kernels(
            secure_kernels(
                self,
                self.identity.kernels,
                environment=KernelEnvironment(app.kernel_environment),
                encryption=cast(Encryption, app.kernel_encryption),
            )
        )

    def init_webapp(self) -> None:
        """Put the security headers where every answer passes, also those of tornado itself."""
        super().init_webapp()
        protect(self.web_app, f"{self.base_url}uait/", https=self.is_https())

    def is_https(self) -> bool:
        """Tell whether browsers reach this server by https."""
        return bool(self.certfile) or self.uait_extension().public_url.startswith("https:")

    def uait_extension(self) -> UaitApp:
        """Return our extension, or do not start."""
        point = self.extension_manager.extension_points.get("uait")
        if point is None or not isinstance(point.app, UaitApp):
            self.refuse(
                "UAIT's extension is not enabled. See `jupyter server extension list`; enable it "
                "with `jupyter server extension enable uait_server_ext`."
            )
        return point.app

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Initialise, then see whether everything that keeps the door is in place."""
        super().initialize(*args, **kwargs)
        if not self._dispatching:
            app = self.uait_extension()
            secure_terminals(self, KernelEnvironment(app.kernel_environment))
            self.verify()

    def start(self) -> None:
        """Start, and look at the routes once more: extensions may add some when they start."""
        self.io_loop.call_later(LOOK_AGAIN_SECONDS, self.verify)
        super().start()

    def verify(self) -> None:
        """Refuse to start, or to go on, unless UAIT governs every route."""
        failed: list[str] = []
        settings = self.web_app.settings
        # Handlers look in the settings, the server at its own traits: one object must be both.
        if (
            type(self.identity_provider) is not UaitIdentityProvider
            or settings.get("identity_provider") is not self.identity_provider
        ):
            failed.append("another identity provider is in place")
        if (
            type(self.authorizer) is not UaitAuthorizer
            or settings.get("authorizer") is not self.authorizer
        ):
            failed.append("another authoriser is in place")
        if settings.get("allow_unauthenticated_access") is not False:
            failed.append("routes without a login are allowed")
        if settings.get("disable_check_xsrf") or not settings.get("xsrf_cookies"):
            failed.append("the check of cross-site requests is off")
        app = self.uait_extension()
        if app.services is None or not app.services.has_identity:
            failed.append("UAIT's services were not composed")
        policy = RoutePolicy(app.route_permissions)
        handlers = list(handler_classes(self.web_app.default_router))
        if OperationHandler not in handlers:
            failed.append("UAIT's routes are missing; the log above has the reason")
        if plain := policy.without_login(iter(handlers)):
            failed.append(
                f"these handlers answer without any login, whatever is configured: "
                f"{', '.join(plain)}. Disable the extensions that they belong to"
            )
        if failed:
            self.refuse("; ".join(failed) + ".")
        for one in policy.unlisted(iter(handlers)):
            self.log.warning(
                "%s is on no list of routes: only administrators reach it. List it in "
                "UaitApp.route_permissions.",
                one,
            )

    def refuse(self, reason: str) -> NoReturn:
        """Say why this server does not start, and end."""
        self.log.critical("UAIT refuses to start: %s", reason)
        self.exit(1)
        sys.exit(1)


class NoFiles(AsyncLargeFileManager):
    """Files that no route shows: a service is for programs and pages, not for its disk."""

    def get_extra_handlers(self) -> list[Any]:
        """Return no `/files`."""
        return []


class UaitService(UaitServerApp):
    """UAIT for many people: no JupyterLab, no kernels, no files, no terminals."""

    default_services = ("api", "auth", "security", "shutdown")  # type: ignore[assignment]

    def init_configurables(self) -> None:
        """Leave out what would show files."""
        self.contents_manager_class = NoFiles
        self.default_url = url_path_join(self.base_url, "uait/account")
        super().init_configurables()


def begin() -> None:
    """Do what comes before anything else.

    Raises:
        Conflict: JupyterHub has started this process.
    """
    if os.environ.get(HUB_VARIABLE):
        raise Conflict(
            "Under JupyterHub the hub knows who people are: let it start `jupyterhub-singleuser`, "
            "where UAIT adds its roles. See the documentation for operators."
        )
    refuse_dumps()


def start_lab(arguments: list[str]) -> None:
    """Start JupyterLab with UAIT; every option of `jupyter lab` is taken."""
    from jupyterlab.labapp import LabApp

    begin()
    # LabApp takes the instance that it finds; what is enabled here, no configuration disables.
    UaitServerApp.instance(jpserver_extensions={"jupyterlab": True, EXTENSION: True})
    LabApp.launch_instance(argv=arguments)


def start_service(arguments: list[str]) -> None:
    """Start UAIT without JupyterLab, kernels, contents and terminals: for many people."""
    begin()
    server = UaitService.instance(jpserver_extensions={EXTENSION: True})
    server.initialize(argv=arguments, find_extensions=False)
    server.start()
