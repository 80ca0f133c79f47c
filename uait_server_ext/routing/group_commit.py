"""Group commit: pieces of work that come while a transaction runs go into the next one together.

A piece that cannot be done *returns* an error before it has written anything; that is raised to its
own caller only. What a piece raises undoes the whole transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from sqlalchemy import Connection

from uait_server_ext.errors import UaitError
from uait_server_ext.storage.database import Database

Work = Callable[[Connection], UaitError | None]
MAX_PIECES = 200


class Piece(NamedTuple):
    """Work that waits for its transaction."""

    work: Work
    done: asyncio.Future[None]


class GroupCommit:
    """Runs pieces of work in as few transactions as the database keeps up with."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._waiting: list[Piece] = []
        self._draining: asyncio.Task[None] | None = None

    async def run(self, work: Work) -> None:
        """Do a piece of work; return when it is committed. Raises the error that it returns."""
        await self.later(work)

    def later(self, work: Work) -> asyncio.Future[None]:
        """Have a piece of work done; the answer is done when it is committed."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(Piece(work, done))
        if self._draining is None or self._draining.done():
            self._draining = asyncio.ensure_future(self._drain())
        return done

    async def _drain(self) -> None:
        while self._waiting:
            pieces = self._waiting[:MAX_PIECES]
            del self._waiting[:MAX_PIECES]
            try:
                outcomes = await self.database.write(partial(all_of, pieces))
            except Exception as error:
                for piece in pieces:
                    if not piece.done.done():
                        piece.done.set_exception(error)
                continue
            for piece, refusal in zip(pieces, outcomes, strict=True):
                if piece.done.done():
                    continue
                if refusal is None:
                    piece.done.set_result(None)
                else:
                    piece.done.set_exception(refusal)


def all_of(pieces: Sequence[Piece], connection: Connection) -> list[UaitError | None]:
    """Do every piece; return what each returns."""
    return [piece.work(connection) for piece in pieces]
