"""What this machine offers to models: cores, memory, accelerators, installed backends.

Looks at files and names only; imports no backend.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import resource
import sys
from pathlib import Path

MOST_THREADS = 8  # small models gain nothing beyond
CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")
CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
OWN_PAGES = Path("/proc/self/statm")
NVIDIA_DEVICE = Path("/dev/nvidiactl")
CUDA_PACKAGES = ("mlx-cuda-13", "mlx-cuda-12", "mlx-cuda")


def cores() -> int:
    """Return how many cores this process may use: its affinity and its container's quota."""
    known = os.sched_getaffinity(0) if sys.platform == "linux" else range(os.cpu_count() or 1)
    count = len(known)
    try:
        quota, period = CGROUP_LIMIT.read_text("ascii").split()
        return max(1, min(count, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such limit here
        return count


def default_threads() -> int:
    """Return how many threads one model uses."""
    return min(cores(), MOST_THREADS)


def memory_bytes() -> int:
    """Return the memory that this machine, or the container that we are in, has."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(physical, int(CGROUP_MEMORY.read_text("ascii")))
    except (OSError, ValueError):  # no such limit here
        return physical


def own_memory() -> int:
    """Return the memory of this process: now, or where that is not told, at its most."""
    try:
        return int(OWN_PAGES.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def has_accelerator() -> bool:
    """Say whether MLX has Metal or CUDA here."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    return NVIDIA_DEVICE.exists() and any(_installed(name) for name in CUDA_PACKAGES)


def has_module(name: str) -> bool:
    """Say whether a top-level module can be imported, without importing it."""
    return importlib.util.find_spec(name) is not None


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
