"""The Jupyter server extension: configuration, start and stop. No logic lives here."""

from __future__ import annotations

import os
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, cast

from jupyter_server.extension.application import ExtensionApp
from traitlets import Bool, Dict, Enum, Float, Int, List, Unicode

from .api.handler import OperationHandler, PublicOperationHandler
from .api.operation import PUBLIC, Operation
from .errors import InvalidInput
from .identity.jupyter_provider import UaitIdentityProvider
from .identity.principal import ROLES
from .paths import default_data_dir, default_model_cache
from .services import Backend, Services, Settings, open_foundation, open_identity

if TYPE_CHECKING:
    from .identity.service import Identity

HUB_EXTENSION = "jupyterhub-singleuser"


class UaitApp(ExtensionApp):
    """Universal AI Tools for Jupyter: models, knowledge and batch runs beside your notebooks."""

    name = "uait"
    description = __doc__
    load_other_extensions = True
    services: Services | None = None

    data_dir = Unicode(
        help="Folder of UAIT's state: database, keys, collections. Default: `uait` in Jupyter's "
        "data folder."
    ).tag(config=True)
    model_cache = Unicode(
        help="Folder of model files, shared by your servers. Default: `$UAIT_MODEL_CACHE`, else "
        "`uait/models` in Jupyter's data folder."
    ).tag(config=True)
    chat_model = Unicode("auto", help="Model id that `auto` stands for in chats and answers.").tag(
        config=True
    )
    embedding_model = Unicode("all-minilm-l6-v2", help="Embedding model of new collections.").tag(
        config=True
    )
    backend = Enum(
        ("auto", "mlx", "llamacpp"),
        default_value="auto",
        help="Backend of local chat models. `auto`: MLX on Metal or CUDA, else llama.cpp where "
        "it is installed, else MLX on the CPU.",
    ).tag(config=True)
    auto_pull = Bool(
        True, help="Fetch a model of the catalogue when it is first used. Off: `uait models pull`."
    ).tag(config=True)
    memory_budget = Int(
        0,
        min=0,
        help="Memory that all loaded models together may take (bytes); idle ones give way to "
        "others, the one used longest ago first. 0: three quarters of the machine's.",
    ).tag(config=True)
    model_keep_alive = Float(
        1800.0,
        min=0.0,
        help="Seconds after which a model that nobody asks gives its memory back. 0: never.",
    ).tag(config=True)
    model_streams = Int(
        0,
        min=0,
        help="Requests that a model answers at once. 0: as many as its backend can.",
    ).tag(config=True)
    model_queue = Int(
        16,
        min=1,
        help="Requests that wait for a model; more are answered 429 (busy).",
    ).tag(config=True)
    knowledge_roots = List(
        Unicode(),
        help="Folders from which documents may be added to collections, besides the server's "
        "root. Default: your home folder.",
    ).tag(config=True)
    max_file_bytes = Int(
        50 * 1024 * 1024, help="A document larger than this is reported and not read (bytes)."
    ).tag(config=True)

    database_url = Unicode(
        help="SQLAlchemy URL of the database of people, keys, secrets and the audit log. Default: "
        "SQLite in the data folder."
    ).tag(config=True)
    sessions_url = Unicode(
        help="`redis://…` keeps login sessions there, for several servers. Default: the database."
    ).tag(config=True)
    master_key = Unicode(
        "file:",
        help="Where the key comes from under which secrets are sealed: `file:PATH`, "
        "`passphrase:`, `keyring:`, `vault://…`. Default: a file in the data folder's `keys`.",
    ).tag(config=True)
    routing_file = Unicode(
        help="TOML file of the tiers, providers and rules by which `auto` chooses a model. "
        "Default: `routing.toml` in the data folder; without it, the models of this machine."
    ).tag(config=True)
    secret_sources = Dict(
        help="Other vaults that secrets may refer to: `{'openbao': {'address': 'https://…', "
        "'token_file': '/path'}}`."
    ).tag(config=True)
    second_factor_required_roles = List(
        Unicode(), help="Roles whose people must have a second factor."
    ).tag(config=True)
    limits_url = Unicode(
        "memory://", help="`redis://…` counts rate limits there, for several servers."
    ).tag(config=True)
    rate_limits = Dict(
        help="Requests a minute, by class: `{'read': {'user': 1200, 'key': 1200, 'ip': 3000}}`. "
        "What is not named stays as it is."
    ).tag(config=True)
    public_url = Unicode(
        help="`https://host[:port]` under which browsers reach this server, behind a proxy that "
        "ends TLS. Default: as the request says."
    ).tag(config=True)
    trusted_proxies = List(
        Unicode(), help="Networks (CIDR) of proxies whose X-Forwarded-For is believed."
    ).tag(config=True)
    oidc_providers = List(
        Dict(), help="OpenID Connect and OAuth providers to log in with; see the documentation."
    ).tag(config=True)
    route_permissions = Dict(
        help="Permissions of other extensions' routes: handler class, then method, then "
        "permission. A class that nobody listed is for administrators."
    ).tag(config=True)
    hub_roles = Dict(
        {"owner": "admin"},
        help="Under JupyterHub, the roles of the hub's people on this server: `owner`, `admin`, "
        "`user:NAME`, `group:NAME`, `service:NAME` or `*`, then the role.",
    ).tag(config=True)
    kernel_encryption = Enum(
        ("required", "auto", "disabled"),
        default_value="required",
        help="CurveZMQ between server and kernels. `required`: a kernel that cannot do it does "
        "not start; `auto`: it starts without.",
    ).tag(config=True)
    kernel_environment = List(
        Unicode(), help="Names of environment variables that kernels get besides the usual ones."
    ).tag(config=True)

    def _knowledge_roots_default(self) -> list[str]:
        return [str(Path.home())]

    def _data_dir_default(self) -> str:
        return str(default_data_dir())

    def _model_cache_default(self) -> str:
        return str(default_model_cache())

    @property
    def under_hub(self) -> bool:
        """Whether JupyterHub's single-user server has started us: then the hub is the identity."""
        return bool(
            self.serverapp and HUB_EXTENSION in self.serverapp.extension_manager.extension_points
        )

    def load_config_file(self, suppress_errors: bool = True) -> None:  # type: ignore[override]
        """Read the configuration; under JupyterHub, join its identity provider."""
        super().load_config_file(suppress_errors)
        if self.under_hub:
            from .identity.jupyter_hub import join

            join(self)

    def initialize_settings(self) -> None:
        """Compose the services; nothing starts before the server does."""
        if self.services is None:
            self.services = Services(self.service_settings(), self.log)
        if self.under_hub:
            from .identity.jupyter_hub import adopt

            adopt(self)

    def open_identity(self) -> Identity:
        """Open what this server needs to know people by; blocks. Called by `UaitServerApp`.

        Raises:
            UaitError: the database, the master key or the sessions' store cannot be opened.
        """
        from .identity.oidc.configuration import read_client_secrets, read_providers
        from .identity.service import IdentitySettings
        from .resilience.limits import RateLimits, rates

        if unknown := set(self.second_factor_required_roles) - set(ROLES):
            raise InvalidInput(
                f"UaitApp.second_factor_required_roles names {', '.join(sorted(unknown))}. The "
                f"roles are {', '.join(ROLES)}."
            )
        settings = self.service_settings()
        providers = read_providers(self.oidc_providers)
        try:
            proxies = tuple(ip_network(one) for one in self.trusted_proxies)
            limits = RateLimits(self.limits_url, rates=rates(self.rate_limits))
        except ValueError as error:
            raise InvalidInput(
                f"UaitApp.trusted_proxies or rate_limits cannot be used: {error}. Correct it and "
                "start again."
            ) from None
        client_secrets = read_client_secrets(providers, os.environ)
        foundation = open_foundation(settings)
        identity = open_identity(
            IdentitySettings(
                public_url=self.public_url.rstrip("/"),
                sessions_url=self.sessions_url,
                second_factor_required_roles=tuple(self.second_factor_required_roles),
                trusted_proxies=proxies,
                oidc_providers=providers,
                client_secrets=client_secrets,
            ),
            foundation,
        )
        self.services = Services(
            settings,
            self.log,
            foundation=foundation,
            identity=identity,
            limits=limits,
        )
        return identity

    def service_settings(self) -> Settings:
        """Return the traits in plain Python."""
        assert self.serverapp
        return Settings(
            data_dir=Path(self.data_dir or default_data_dir()).expanduser().absolute(),
            model_cache=Path(self.model_cache or default_model_cache()).expanduser().absolute(),
            root_dir=Path(self.serverapp.root_dir).absolute(),
            base_url=self.serverapp.base_url,
            chat_model=self.chat_model,
            embedding_model=self.embedding_model,
            backend=cast(Backend, self.backend),
            auto_pull=self.auto_pull,
            memory_budget=self.memory_budget,
            model_keep_alive=self.model_keep_alive,
            model_streams=self.model_streams,
            model_queue=self.model_queue,
            knowledge_roots=tuple(Path(p).expanduser() for p in self.knowledge_roots),
            max_file_bytes=self.max_file_bytes,
            database_url=self.database_url,
            master_key=self.master_key,
            secret_sources=self.secret_sources,
            routing_file=Path(self.routing_file).expanduser() if self.routing_file else None,
        )

    def initialize_handlers(self) -> None:
        """Route every declared operation through its handler; add the pages of the login."""
        # Some two hundred models of requests and answers: only a server needs them.
        from .api.openai import operations as openai_operations
        from .api.openai.handler import OpenAIHandler
        from .api.v1 import operations

        assert self.services
        for pattern, by_method in routes(operations()).items():
            public = any(op.permission == PUBLIC for op in by_method.values())
            handler = PublicOperationHandler if public else OperationHandler
            self.handlers.append(
                (pattern, handler, {"operations": by_method, "services": self.services})
            )
        for pattern, by_method in routes(openai_operations()).items():
            self.handlers.append(
                (pattern, OpenAIHandler, {"operations": by_method, "services": self.services})
            )

        if self.services.has_identity:
            from .identity.jupyter_pages import pages

            self.handlers.extend(pages())

    async def _start_jupyter_server_extension(self, serverapp: object) -> None:
        assert self.services
        if self.under_hub:
            from .identity.jupyter_hub import refuse_open_routes

            refuse_open_routes(self)
        self.services.start()
        if self.services.has_identity:
            await self.show_setup_link()

    async def show_setup_link(self) -> None:
        """Print the link to the first administrator's account, where there is nobody yet."""
        assert self.services
        assert self.serverapp
        link = await self.services.identity.links.first_setup()
        if link:
            # Not through the logger: a secret has no place in a log file.
            print(
                "\n    Nobody has an account here yet. Make the first one, an administrator's:\n\n"
                f"        {link.url(self.public_url or self.serverapp.connection_url)}\n",
                file=sys.stderr,
                flush=True,
            )

    async def stop_extension(self) -> None:
        """Stop the services when the server stops."""
        provider = getattr(self.serverapp, "identity_provider", None)
        if isinstance(provider, UaitIdentityProvider):
            provider.connections.stop()
        if self.services:
            await self.services.stop()


def routes(declared: list[Operation]) -> dict[str, dict[str, Operation]]:
    """Group operations by path pattern; a public one shares its path with no other.

    Raises:
        ValueError: two operations claim one method and path, or a public and a closed one share
            a path.
    """
    grouped: dict[str, dict[str, Operation]] = {}
    for op in declared:
        by_method = grouped.setdefault(op.prefix + op.pattern, {})
        if op.method in by_method:
            raise ValueError(f"{op.key} is declared twice")
        by_method[op.method] = op
    for pattern, by_method in grouped.items():
        if len({op.permission == PUBLIC for op in by_method.values()}) > 1:
            raise ValueError(f"{pattern} has a public and a closed operation")
    return grouped
