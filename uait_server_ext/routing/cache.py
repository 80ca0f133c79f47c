"""Answers kept for equal questions, and for nearly equal ones where that is switched on.

Only answers that the same request would get again are kept: greedy or seeded ones, whole, from the
model that was wanted. Everything is per person and per how far their words may travel; nobody gets
an answer that was another's. Bounded by entries and bytes, the least used go first.

A semantic hit needs the same frame (all of the request but its last question), a cosine of at
least the threshold, and the same numbers and negations: `2 + 2` is near `2 + 3` in every embedding.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from uait_server_ext.inference.models import ChatRequest, Embedder, PlainText

from .config import CacheEntry
from .models import Caller, RoutedDone

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Found = Literal["exact", "semantic"]

MOST_NEIGHBOURS = 256
"""Kept questions of one frame that a question is compared with."""

MARKS = re.compile(r"\d[\d.,]*|\b(?:not|no|never|without|n't|nicht|kein\w*|ohne|nie)\b|n't", re.I)


class Kept(Protocol):
    """Answers that outlive the process."""

    async def get(self, key: str) -> bytes | None:
        """Return what was put under a key and has not expired."""
        ...

    async def put(self, key: str, answer: bytes, expires_at: float) -> None:
        """Keep an answer."""
        ...


@dataclass(slots=True)
class Entry:
    """One answer: its JSON, until when, and the question it answers."""

    answer: bytes
    until: float
    frame: str
    marks: tuple[str, ...] = ()
    vector: npt.NDArray[np.float32] | None = None

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self.answer) + 300 + (0 if self.vector is None else self.vector.nbytes)


class AnswerCache:
    """Answers by who asked what."""

    def __init__(
        self,
        settings: CacheEntry,
        embedder: Embedder | None = None,
        disk: Kept | None = None,
        *,
        salt: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start empty.

        Args:
            salt: changes with the routing file: answers of other models are not found again.
        """
        self.settings = settings
        self.size = 0
        self._embedder = embedder if settings.semantic else None
        self._disk = disk
        self._salt = salt
        self._clock = clock
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._frames: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def on(self) -> bool:
        """Whether anything is kept at all."""
        return self.settings.exact or self.settings.semantic

    def key(self, request: ChatRequest, caller: Caller) -> str:
        """Return the key of a request: who asks, how far the words may go, what is asked."""
        return digest(self._salt, caller, request.model_dump_json(exclude={"deadline_seconds"}))

    async def find(
        self, request: ChatRequest, caller: Caller, key: str
    ) -> tuple[RoutedDone, Found] | None:
        """Return a kept answer."""
        if (entry := self._live(key)) is not None:
            self._entries.move_to_end(key)
            return RoutedDone.model_validate_json(entry.answer), "exact"
        if self._disk is not None and (kept := await self._disk.get(key)) is not None:
            self._add(key, Entry(kept, self._clock() + self.settings.seconds, ""))
            return RoutedDone.model_validate_json(kept), "exact"
        near = await self._near(request, caller)
        return None if near is None else (RoutedDone.model_validate_json(near), "semantic")

    async def put(self, request: ChatRequest, caller: Caller, key: str, done: RoutedDone) -> None:
        """Keep an answer."""
        entry = Entry(done.model_dump_json().encode(), self._clock() + self.settings.seconds, "")
        if self._embedder is not None and comparable(request):
            question = request.messages[-1].content
            vectors = await self._embedder.embed([question], purpose="query")
            entry.frame = self._frame(request, caller)
            entry.marks, entry.vector = marks(question), vectors[0]
        self._add(key, entry)
        if self._disk is not None:
            await self._disk.put(key, entry.answer, entry.until)

    async def _near(self, request: ChatRequest, caller: Caller) -> bytes | None:
        """Return the answer of the nearest question of the same frame, if that is near enough."""
        if self._embedder is None or not comparable(request):
            return None
        question = request.messages[-1].content
        found = marks(question)
        others = [
            (key, entry)
            for key in self._frames.get(self._frame(request, caller), ())[-MOST_NEIGHBOURS:]
            if (entry := self._live(key)) is not None
            and entry.vector is not None
            and entry.marks == found
        ]
        if not others:
            return None
        vector = (await self._embedder.embed([question], purpose="query"))[0]
        scored = [(float(vector @ e.vector), key, e) for key, e in others if e.vector is not None]
        score, key, best = max(scored, key=lambda one: one[0])
        if score < self.settings.threshold:
            return None
        if key in self._entries:
            self._entries.move_to_end(key)
        return best.answer

    def _frame(self, request: ChatRequest, caller: Caller) -> str:
        """Return the digest of all of a request but its last question."""
        rest = request.model_dump_json(exclude={"deadline_seconds": True, "messages": {-1}})
        return digest(self._salt, caller, rest)

    def _live(self, key: str) -> Entry | None:
        entry = self._entries.get(key)
        if entry is not None and entry.until <= self._clock():
            self._drop(key)
            return None
        return entry

    def _add(self, key: str, entry: Entry) -> None:
        if key in self._entries:
            self._drop(key)
        self._entries[key] = entry
        self.size += entry.size
        if entry.frame:
            self._frames.setdefault(entry.frame, []).append(key)
        most = self.settings.megabytes * 1e6
        while len(self._entries) > self.settings.entries or self.size > most:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key)
        self.size -= entry.size
        if entry.frame:
            keys = self._frames[entry.frame]
            keys.remove(key)
            if not keys:
                del self._frames[entry.frame]


def repeatable(request: ChatRequest, caller: Caller) -> bool:
    """Tell whether the same request would get the same answer again: greedy or seeded ones."""
    greedy = request.temperature == 0 or request.seed is not None
    return greedy and caller.checks is None


def comparable(request: ChatRequest) -> bool:
    """Tell whether a nearly equal question may have this one's answer: plain text alone."""
    last = request.messages[-1]
    return (
        last.role == "user"
        and not last.images
        and not request.tools
        and request.logprobs is None
        and isinstance(request.response_format, PlainText)
    )


def marks(question: str) -> tuple[str, ...]:
    """Return what an embedding overlooks: the numbers and negations of a question, in order."""
    return tuple(found.lower().rstrip(".,") for found in MARKS.findall(question))


def digest(salt: str, caller: Caller, text: str) -> str:
    """Return the digest of a text for a caller."""
    told = f"{salt}\0{caller.principal}\0{caller.reach}\0{text}"
    return hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
