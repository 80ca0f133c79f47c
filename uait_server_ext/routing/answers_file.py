"""Kept answers in a SQLite file of their own: a cache, so it may be deleted at any time."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from uait_server_ext.storage.database import create_private

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, answer BLOB NOT NULL, expires_at REAL NOT NULL
) WITHOUT ROWID
"""
TRIM_EVERY = 100


class AnswersFile:
    """One file, read and written in a thread of its own."""

    def __init__(self, path: Path, entries: int) -> None:
        """Open or create the file; blocks. Only its owner can read it."""
        create_private(path)
        self._entries = entries
        self._puts = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="uait-answers")
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute(SCHEMA)

    async def get(self, key: str) -> bytes | None:
        """Return what was put under a key and has not expired."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._get, key)

    async def put(self, key: str, answer: bytes, expires_at: float) -> None:
        """Keep an answer; from time to time the ones that expire first go."""
        await asyncio.get_running_loop().run_in_executor(
            self._thread, self._put, key, answer, expires_at
        )

    def close(self) -> None:
        """Close the file."""
        self._thread.shutdown()
        self._connection.close()

    def _get(self, key: str) -> bytes | None:
        row = self._connection.execute(
            "SELECT answer FROM answers WHERE key = ? AND expires_at > ?", (key, time.time())
        ).fetchone()
        return None if row is None else bytes(row[0])

    def _put(self, key: str, answer: bytes, expires_at: float) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, answer, expires_at)
        )
        self._puts += 1
        if self._puts % TRIM_EVERY == 0:
            self._connection.execute(
                "DELETE FROM answers WHERE expires_at <= ? OR key NOT IN "
                "(SELECT key FROM answers ORDER BY expires_at DESC LIMIT ?)",
                (time.time(), self._entries),
            )
