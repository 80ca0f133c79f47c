"""What the operating system can do to keep the server's memory to itself."""

from __future__ import annotations

import ctypes
import sys

PR_GET_DUMPABLE = 3  # prctl(2)
PR_SET_DUMPABLE = 4


def refuse_dumps() -> bool:
    """Let no other process of this user read this one's memory and environment; no core dumps.

    A kernel runs as the same user as its server: without this it reads the server's secrets from
    `/proc/<pid>/environ` and `/proc/<pid>/mem`. Nothing keeps root from it. Programs that this
    process starts are not affected.

    Returns whether it holds: Linux only, False elsewhere.
    """
    if sys.platform != "linux":
        return False
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    return bool(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0)
