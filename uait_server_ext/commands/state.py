"""The state that a command works on: the same database and master key as the server's."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uait_server_ext.paths import default_data_dir, default_model_cache

if TYPE_CHECKING:
    from uait_server_ext.identity.principal import Principal
    from uait_server_ext.services import Foundation, Settings

DataDir = Annotated[
    Path | None,
    typer.Option(help="State of the server, if not the default.", envvar="UAIT_DATA_DIR"),
]
DatabaseUrl = Annotated[
    str, typer.Option(help="As `UaitApp.database_url`.", envvar="UAIT_DATABASE_URL")
]
MasterKeyUrl = Annotated[
    str, typer.Option(help="As `UaitApp.master_key`.", envvar="UAIT_MASTER_KEY")
]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the state is."""

    data_dir: Path | None = None
    database_url: str = ""
    master_key: str = "file:"

    def settings(self) -> Settings:
        """Return what a server would be started with."""
        from uait_server_ext.services import Settings

        data_dir = (self.data_dir or default_data_dir()).expanduser().absolute()
        return Settings(
            data_dir=data_dir,
            model_cache=default_model_cache(),
            root_dir=data_dir,
            database_url=self.database_url,
            master_key=self.master_key,
        )

    @contextmanager
    def opened(self, *, check: bool = True) -> Iterator[Foundation]:
        """Open the database, the master key and the audit log; close them at the end."""
        from uait_server_ext.services import open_foundation

        foundation = open_foundation(self.settings(), check=check)
        try:
            yield foundation
        finally:
            foundation.close()


def operator() -> Principal:
    """Return who runs the command: the OS user, who may do everything with the state."""
    from uait_server_ext.identity.principal import PERMISSIONS, Principal

    name = f"os:{getpass.getuser()}"[:40]
    return Principal(id=name, name=name, kind="service", permissions=frozenset(PERMISSIONS))
