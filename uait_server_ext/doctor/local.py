"""Controls on this machine: files, versions, and who runs the server."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from jupyter_core.paths import jupyter_runtime_dir

from .report import Control, Judgement, NotApplicable, Subject
from .versions import FLOORS, below_floor

SECRETS = ("uait.db*", "audit.anchor", "keys/*")


def state_is_private(subject: Subject) -> Judgement:
    """Nobody else may enter the state's folder, nor read what is secret in it."""
    paths = [subject.state]
    for pattern in SECRETS:
        paths.extend(subject.state.glob(pattern))
    open_to = list(too_open(paths))
    return not open_to, "; ".join(open_to) or f"{len(paths)} files and folders are the owner's"


def key_is_private(subject: Subject) -> Judgement:
    """The master key is readable by its owner only, or is not a file at all."""
    keys = [path for path in (subject.state / "keys").glob("*") if path.is_file()]
    if not keys:
        return True, f"no key file: {subject.foundation.sealer.keyring.source.description}"
    open_to = list(too_open([subject.state / "keys", *keys]))
    if open_to:
        return False, "; ".join(open_to)
    return True, f"{', '.join(path.name for path in keys)}; keep it out of backups of the database"


def runtime_is_private(subject: Subject) -> Judgement:
    """Kernels' keys are in the runtime folder: who reads one runs code in that kernel."""
    runtime = Path(jupyter_runtime_dir())
    if not runtime.is_dir():
        raise NotApplicable("there is no runtime folder")
    kept = [*runtime.glob("kernel-*.json"), *runtime.glob("jpserver-*.json")]
    kept.extend(runtime.glob("jupyter_cookie_secret"))
    open_to = list(too_open(kept))
    return not open_to, "; ".join(open_to) or f"{len(kept)} files are the owner's"


def versions_have_fixes(subject: Subject) -> Judgement:
    """What is installed has the fixes of known vulnerabilities."""
    old = below_floor()
    return not old, "; ".join(old) or f"{len(FLOORS)} floors hold"


def server_is_not_root(subject: Subject) -> Judgement:
    """From root the operating system keeps nothing: a kernel would own the machine."""
    if subject.server is None:
        raise NotApplicable("no server runs")
    owner = subject.server.owner()
    return owner != 0, f"the server runs as user {owner}"


def too_open(paths: list[Path]) -> Iterator[str]:
    """Say which files are another user's, or may be read or changed by others."""
    for path in paths:
        status = path.stat()
        if status.st_uid != os.geteuid():
            yield f"{path} belongs to user {status.st_uid}"
        if mode := stat.S_IMODE(status.st_mode) & 0o077:
            yield f"{path} is open to others ({stat.S_IMODE(status.st_mode):o}, not {mode:o} of it)"


CONTROLS = (
    Control("state-private", "modes and owners of the state's files", state_is_private),
    Control("master-key-private", "mode and owner of the key file", key_is_private),
    Control("runtime-private", "modes of Jupyter's runtime files", runtime_is_private),
    Control("versions", "installed versions against the list of floors", versions_have_fixes),
    Control("not-root", "owner of the server's process", server_is_not_root),
)
