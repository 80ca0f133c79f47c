"""The Jupyter server extension: configuration, start and stop. No logic lives here."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from jupyter_server.extension.application import ExtensionApp
from traitlets import Bool, Enum, Int, List, Unicode

from .api.handler import OperationHandler, PublicOperationHandler
from .api.openapi import PREFIX
from .api.operation import PUBLIC, Operation
from .api.v1 import operations
from .paths import default_data_dir, default_model_cache
from .services import Backend, Services, Settings


class UaitApp(ExtensionApp):
    """Universal AI Tools for Jupyter: models, knowledge and batch runs beside your notebooks."""

    name = "uait"
    description = __doc__
    load_other_extensions = True

    data_dir = Unicode(
        help="Folder of UAIT's state: collections. Default: `uait` in Jupyter's data folder."
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
    knowledge_roots = List(
        Unicode(),
        help="Folders from which documents may be added to collections, besides the server's "
        "root. Default: your home folder.",
    ).tag(config=True)
    max_file_bytes = Int(
        50 * 1024 * 1024, help="A document larger than this is reported and not read (bytes)."
    ).tag(config=True)

    def _knowledge_roots_default(self) -> list[str]:
        return [str(Path.home())]

    def _data_dir_default(self) -> str:
        return str(default_data_dir())

    def _model_cache_default(self) -> str:
        return str(default_model_cache())

    def initialize_settings(self) -> None:
        """Compose the services; nothing starts before the server does."""
        assert self.serverapp
        self.services = Services(
            Settings(
                data_dir=Path(self.data_dir).expanduser().absolute(),
                model_cache=Path(self.model_cache).expanduser().absolute(),
                root_dir=Path(self.serverapp.root_dir).absolute(),
                base_url=self.serverapp.base_url,
                chat_model=self.chat_model,
                embedding_model=self.embedding_model,
                backend=cast(Backend, self.backend),
                auto_pull=self.auto_pull,
                knowledge_roots=tuple(Path(p).expanduser() for p in self.knowledge_roots),
                max_file_bytes=self.max_file_bytes,
            ),
            self.log,
        )

    def initialize_handlers(self) -> None:
        """Route every declared operation through the one handler."""
        for pattern, by_method in routes(operations()).items():
            public = any(op.permission == PUBLIC for op in by_method.values())
            handler = PublicOperationHandler if public else OperationHandler
            self.handlers.append(
                (pattern, handler, {"operations": by_method, "services": self.services})
            )

    async def _start_jupyter_server_extension(self, serverapp: object) -> None:
        self.services.start()

    async def stop_extension(self) -> None:
        """Stop the services when the server stops."""
        await self.services.stop()


def routes(declared: list[Operation]) -> dict[str, dict[str, Operation]]:
    """Group operations by path pattern; a public one shares its path with no other.

    Raises:
        ValueError: two operations claim one method and path, or a public and a closed one share
            a path.
    """
    grouped: dict[str, dict[str, Operation]] = {}
    for op in declared:
        by_method = grouped.setdefault(PREFIX + op.pattern, {})
        if op.method in by_method:
            raise ValueError(f"{op.key} is declared twice")
        by_method[op.method] = op
    for pattern, by_method in grouped.items():
        if len({op.permission == PUBLIC for op in by_method.values()}) > 1:
            raise ValueError(f"{pattern} has a public and a closed operation")
    return grouped
