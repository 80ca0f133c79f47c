"""UAIT in a notebook: `%load_ext uait_kernel`, or the same as functions.

::

    import uait_kernel as uait
    answer = uait.ask("What does the report say about costs?", collection="reports")

Importing this package is cheap: everything behind its names is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from .client import Client
    from .errors import UaitClientError
    from .functions import add, ask, chat, collections, connect, models, resume, search, status
    from .results.answer import Answer

__all__ = [
    "Answer",
    "Client",
    "UaitClientError",
    "add",
    "ask",
    "chat",
    "collections",
    "connect",
    "models",
    "resume",
    "search",
    "status",
]

_HOMES = {"Answer": "results.answer", "Client": "client", "UaitClientError": "errors"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_HOMES.get(name, 'functions')}", __name__)
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "load_ipython_extension", "unload_ipython_extension"]


def load_ipython_extension(ipython: InteractiveShell) -> None:
    """Register `%ask`, `%%ask`, `%kb` and `%models`; `%load_ext uait_kernel` calls this."""
    from .magics import load

    load(ipython)


def unload_ipython_extension(ipython: InteractiveShell) -> None:
    """Take the magics away again; `%unload_ext uait_kernel` calls this."""
    from .magics import unload

    unload(ipython)
