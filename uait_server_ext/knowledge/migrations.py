"""The row store's schema as a list of numbered steps; each runs once, in its own transaction.

A step is never changed after a release: a new one is added. ``{dimension}`` is the length of the
collection's vectors.

Two rules for whoever adds one: code to the SQL and the client calls that DuckDB 1.5 and 2.0 share,
and put a unique index only on values that are never reused (DuckDB refuses a key that the same
transaction deleted).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uait_server_ext.errors import Conflict

if TYPE_CHECKING:
    import duckdb

M001_FIRST = """
CREATE TABLE meta (key VARCHAR NOT NULL, value VARCHAR NOT NULL);
CREATE TABLE sources (path VARCHAR NOT NULL, shown VARCHAR NOT NULL, added_at VARCHAR NOT NULL);

-- Files that an ingest took on (error is null) or could not read.
CREATE TABLE files (path VARCHAR NOT NULL, shown VARCHAR NOT NULL, error VARCHAR);

CREATE SEQUENCE document_ids;
CREATE TABLE documents (
    id BIGINT NOT NULL,
    path VARCHAR NOT NULL,      -- absolute: what the document is known by
    shown VARCHAR NOT NULL,     -- what people see
    title VARCHAR NOT NULL,
    media_type VARCHAR NOT NULL,
    size_bytes BIGINT NOT NULL,
    modified_ns BIGINT NOT NULL,
    sha256 VARCHAR NOT NULL,
    ingested_at VARCHAR NOT NULL
);

-- A chunk is never changed and its id never used again: a changed document gets new ones.
CREATE SEQUENCE chunk_ids;
CREATE TABLE chunks (
    id BIGINT PRIMARY KEY,
    document_id BIGINT NOT NULL,
    place_start BIGINT NOT NULL,
    place_end BIGINT NOT NULL,
    label VARCHAR NOT NULL,
    page INTEGER,
    cell INTEGER,
    line INTEGER,
    text VARCHAR NOT NULL,
    indexed VARCHAR NOT NULL,   -- title, headings and text: what is embedded and searched
    digest VARCHAR NOT NULL,    -- of `indexed`
    vector FLOAT[{dimension}] NOT NULL
);

-- What the derived indexes have to follow.
CREATE SEQUENCE journal_seq;
CREATE TABLE journal (seq BIGINT NOT NULL, op VARCHAR NOT NULL, chunk_id BIGINT NOT NULL);
"""

MIGRATIONS: tuple[tuple[str, str], ...] = (("m001_first", M001_FIRST),)


def migrate(connection: duckdb.DuckDBPyConnection, *, dimension: int) -> None:
    """Bring the schema up to date.

    Raises:
        Conflict: the file was written by a newer version of UAIT.

    """
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (number INTEGER, name VARCHAR)")
    (done,) = connection.execute("SELECT count(*) FROM migrations").fetchall()[0]
    if done > len(MIGRATIONS):
        raise Conflict(
            f"The collection was written by a newer UAIT (schema {done}, this one knows "
            f"{len(MIGRATIONS)}): update UAIT."
        )
    for number, (name, script) in enumerate(MIGRATIONS[done:], start=done + 1):
        connection.execute("BEGIN")
        try:
            connection.execute(script.replace("{dimension}", str(dimension)))
            connection.execute("INSERT INTO migrations VALUES (?, ?)", [number, name])
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
