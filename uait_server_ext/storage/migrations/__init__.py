"""Numbered schema steps (Alembic); a step is never changed after a release."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, inspect, text

from uait_server_ext.errors import Conflict

LATEST = "0003"
"""The newest step: a database that stands there needs no Alembic, whose import is slow."""


def migrate(engine: Engine) -> None:
    """Bring a database up to date.

    Raises:
        Conflict: a newer UAIT has written it.
    """
    current = version(engine)
    if current == LATEST:
        return
    from alembic import command
    from alembic.config import Config

    if current and current > LATEST:
        raise Conflict(
            f"The database was written by a newer UAIT (schema {current}, this one knows "
            f"{LATEST}): update UAIT."
        )
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, LATEST)


def version(engine: Engine) -> str | None:
    """Return the step at which a database stands, none for an empty one."""
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return found
