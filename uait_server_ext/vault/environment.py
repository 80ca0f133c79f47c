"""Secrets in environment variables and `.env` files: find them, take them out.

A variable is a secret by its name (`*_API_KEY`, `*_TOKEN`, `*_PASSWORD` …) or by its value (a URL
with a password in it). UAIT's and Jupyter's own credentials stay: they open the door, not a room.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from uait_server_ext.errors import InvalidInput, NotFound
from uait_server_ext.storage.files import write_atomic

SECRET_NAME = re.compile(
    r"(^|_)(API_?KEY|SECRET|SECRET_KEY|ACCESS_KEY|PRIVATE_KEY|TOKEN|PASSWORD|PASSWD|CREDENTIALS)$"
)
OURS = frozenset(
    {
        "BAO_TOKEN",
        "CONFIGPROXY_AUTH_TOKEN",
        "JPY_API_TOKEN",
        "JUPYTERHUB_API_TOKEN",
        "JUPYTER_TOKEN",
        "UAIT_PASSPHRASE",
        "UAIT_TOKEN",
        "VAULT_TOKEN",
    }
)
PROFILES = (
    ".bash_profile",
    ".bashrc",
    ".config/fish/config.fish",
    ".profile",
    ".zprofile",
    ".zshenv",
    ".zshrc",
)
MAX_FILE_BYTES = 1 << 20

ASSIGNMENT = re.compile(
    r"""^[ \t]*(?:export[ \t]+)?(?P<name>[A-Za-z_]\w*)[ \t]*=[ \t]*
    (?:'(?P<single>[^']*)' | "(?P<double>(?:[^"\\]|\\.)*)" | (?P<plain>[^\s'"#][^\n]*?)?)
    [ \t]*(?:(?<=\s)\#[^\n]*)?\r?$\n?""",
    re.MULTILINE | re.VERBOSE | re.DOTALL,
)
IN_PROFILE = re.compile(r"^\s*(?:export\s+|set\s+(?:-\w+\s+)*)?([A-Za-z_]\w*)[=\s]")
ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True, slots=True)
class Assignment:
    """One `NAME=value` of a file, and the characters it takes there."""

    name: str
    value: str
    start: int
    end: int


def is_secret(name: str, value: str) -> bool:
    """Tell whether a variable holds a secret."""
    if name in OURS or not value:
        return False
    if SECRET_NAME.search(name.upper()):
        return True
    try:
        return bool(urlsplit(value).password)
    except ValueError:
        return False


def secrets_of(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that hold secrets."""
    return {name: value for name, value in variables.items() if is_secret(name, value)}


def read_env_file(path: Path) -> str:
    """Return the text of a `.env` file.

    Raises:
        NotFound: it is not there.
        InvalidInput: it is not text, or too long.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidInput(f"{path} is larger than 1 MB: that is no `.env` file.")
        # Bytes, so that line ends stay as they are.
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise NotFound(f"{path} is not there. Name the file with --env-file.") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not UTF-8 text. Convert it first.") from None


def assignments(text: str) -> list[Assignment]:
    """Return the assignments of a `.env` file, in order.

    Quotes as in a shell: single ones are literal, in double ones `\\n`, `\\"` and `\\\\` are
    escapes. A value that refers to another variable (`${OTHER}`) is left where it is.
    """
    found = []
    for match in ASSIGNMENT.finditer(text):
        single, double, bare = match.group("single", "double", "plain")
        if single is None and "${" in (double or bare or ""):
            continue
        if double is not None:
            value = re.sub(r"\\(.)", lambda m: ESCAPES.get(m[1], m[1]), double, flags=re.DOTALL)
        elif single is not None:
            value = single
        else:
            value = re.split(r"\s#", bare or "", maxsplit=1)[0].rstrip()
        found.append(Assignment(match["name"], value, match.start(), match.end()))
    return found


def without(text: str, names: Iterable[str]) -> str:
    """Return the text of a `.env` file without the assignments to these names."""
    gone = set(names)
    kept, at = [], 0
    for assignment in assignments(text):
        if assignment.name in gone:
            kept.append(text[at : assignment.start])
            at = assignment.end
    return "".join([*kept, text[at:]])


def remove_from_file(path: Path, names: Iterable[str]) -> None:
    """Take assignments out of a `.env` file; a crash leaves the old or the new one."""
    target = path.resolve()
    before = read_env_file(target)
    after = without(before, names)
    if after != before:
        write_atomic(target, after.encode(), mode=target.stat().st_mode & 0o777)


def left_in_profiles(home: Path, names: Iterable[str]) -> list[tuple[str, int, str]]:
    """Return where the shell's start-up files still set these names: (file, line, name)."""
    wanted = set(names)
    found = []
    for profile in PROFILES:
        path = home / profile
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            match = IN_PROFILE.match(line)
            if match and match[1] in wanted:
                found.append((str(path), number, match[1]))
    return found


def scrub(environ: MutableMapping[str, str], names: Iterable[str]) -> list[str]:
    """Delete secrets from an environment, so that no child process inherits them.

    What a process was started with stays visible to its own user under `/proc`.
    """
    gone = [name for name in names if name in environ and is_secret(name, environ[name])]
    for name in gone:
        del environ[name]
    return gone
