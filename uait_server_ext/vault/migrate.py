"""Move secrets from the environment and a `.env` file into the vault; may be run again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from .environment import (
    assignments,
    left_in_profiles,
    read_env_file,
    remove_from_file,
    secrets_of,
)
from .models import NewSecret
from .service import Holder, Vault


@dataclass(slots=True)
class Migration:
    """What was done with each variable."""

    outcomes: dict[str, str] = field(default_factory=dict)
    """Name to `created`, `changed` or `unchanged`."""
    removed: list[str] = field(default_factory=list)
    """Names taken out of the file."""
    in_environment: list[str] = field(default_factory=list)
    """Names that this process was started with: whoever starts the server sets them."""
    in_profiles: list[tuple[str, int, str]] = field(default_factory=list)
    """(file, line, name) of what the shell still sets."""


async def migrate(
    vault: Vault,
    holder: Holder,
    *,
    env_file: Path | None,
    remove: bool,
    environ: Mapping[str, str] = os.environ,
    home: Path | None = None,
) -> Migration:
    """Seal every secret that is found, shared; then take them out of the file where asked.

    The file wins over the environment. Its values go only after they are in the vault, durably.

    Raises:
        NotFound: the file is not there.
    """
    text = read_env_file(env_file) if env_file else ""
    in_file = secrets_of({a.name: a.value for a in assignments(text)})
    in_environment = secrets_of(environ)
    done = Migration(in_environment=sorted(in_environment))
    for name, value in sorted((in_environment | in_file).items()):
        new = NewSecret(
            name=name, value=SecretStr(value), description="from the environment", shared=True
        )
        done.outcomes[name] = await vault.put(holder, new)
    if env_file and remove and in_file:
        remove_from_file(env_file, in_file)
        done.removed = sorted(in_file)
    done.in_profiles = left_in_profiles(home or Path.home(), done.outcomes)
    return done
