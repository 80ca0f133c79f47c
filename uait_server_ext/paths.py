"""Where UAIT keeps its state, and with which file modes.

::

    <data>/                 jupyter_data_dir()/uait, or UaitApp.data_dir
      uait.db               people, keys, secrets, the audit log
      audit.anchor          the audit log's head, outside the database
      keys/                 the master key, where its source is a file
      knowledge/<name>/     one folder a collection
      models/<id>/          model files, verified; shared by every server of this user

Folders are made with mode 0700: documents and models belong to the person who runs the server.
"""

from __future__ import annotations

import os
from pathlib import Path

from jupyter_core.paths import jupyter_data_dir

from uait_server_ext.errors import InvalidInput

MODEL_CACHE_VARIABLE = "UAIT_MODEL_CACHE"


def default_data_dir() -> Path:
    """Return where state lives unless the configuration says otherwise."""
    return Path(jupyter_data_dir()) / "uait"


def default_model_cache() -> Path:
    """Return the model cache: `UAIT_MODEL_CACHE` where set, else beside the other state."""
    configured = os.environ.get(MODEL_CACHE_VARIABLE)
    return Path(configured).expanduser() if configured else default_data_dir() / "models"


def named_path(named: str | Path, base: Path) -> Path:
    """Return the path that a caller names, links followed; a relative one begins at ``base``.

    Raises:
        InvalidInput: nothing can be there: too long a name, a NUL, links in a circle, ``~nobody``.
    """
    try:
        path = (base / Path(named).expanduser()).resolve()
        path.is_symlink()  # asks the system, which says what `resolve` passes over
    except (OSError, RuntimeError, ValueError):
        raise InvalidInput(
            f"There can be no file or folder {str(named)[:200]!r}. Check how the path is written."
        ) from None
    return path


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner can enter, and return it."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path
