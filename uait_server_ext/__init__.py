"""UAIT as a Jupyter server extension and a prebuilt JupyterLab extension."""

from __future__ import annotations

from ._version import __version__

__all__ = ["__version__"]


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "uait"}]


def _jupyter_server_extension_points() -> list[dict[str, object]]:
    from .app import UaitApp

    return [{"module": "uait_server_ext", "app": UaitApp}]
