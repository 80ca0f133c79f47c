"""The lowest versions that have the fixes of known vulnerabilities.

There is no advisory database without a network, so the floors are written down with their reasons;
raise one when an advisory says so.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Floor:
    """The lowest version that is safe to run, and why.

    Attributes:
        optional: it may be absent; where it is there, it must be new enough.
    """

    version: str
    reason: str
    optional: bool = False


FLOORS: dict[str, Floor] = {
    "jupyter-server": Floor(
        "2.21.1", "CVE-2026-40934, CVE-2026-44727, CVE-2026-86049: sessions, XSS, tokens in logs"
    ),
    "jupyterlab": Floor("4.6.2", "CVE-2026-42266, CVE-2026-42557, CVE-2026-73417: code execution"),
    "tornado": Floor("6.5.8", "CVE-2026-49853 and GHSA-8423-8fgw-73vq: request parsing"),
    "PyJWT": Floor("2.12.0", "CVE-2026-32597: unknown `crit` was accepted"),
    "Authlib": Floor("1.8.0", "CVE-2026-27962: a key in the token's header was believed"),
    "cryptography": Floor("50.0.0", "CVE-2026-69247"),
    "jupyterhub": Floor("5.5.1", "CVE-2026-54338, GHSA-c4gm-pwx9-9w8j", optional=True),
}


def below_floor() -> list[str]:
    """Return what is installed and older than its floor, or missing."""
    from importlib import metadata

    from packaging.version import Version

    found = []
    for package, floor in FLOORS.items():
        try:
            installed = metadata.version(package)
        except metadata.PackageNotFoundError:
            if not floor.optional:
                found.append(f"{package} is not installed")
            continue
        if Version(installed) < Version(floor.version):
            found.append(f"{package} {installed} < {floor.version} ({floor.reason})")
    return found
