"""Measure when `ask` declines, and which sentence it shows, on questions with known evidence.

    python benchmarks/refusal.py --data ../shared/data/chunking [--quick] [--check]

Each of the long documents is a collection. A question is put to its own document (to be answered),
to the others (to be declined), and to its own without the passages that hold its evidence (to be
declined, but nearly all that is left is about the same matter: no rule by evidence can tell). The
thresholds of `evidence.py` come from this table. ``--check`` fails where either error of the first
two is above its limit.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import logging
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import Catalogue
from uait_server_ext.inference.service import Inference
from uait_server_ext.knowledge import evidence
from uait_server_ext.knowledge.answer import WEIGHED
from uait_server_ext.knowledge.collection import Collection
from uait_server_ext.knowledge.models import Hit
from uait_server_ext.knowledge.retrieve import hits, rank
from uait_server_ext.knowledge.service import KnowledgeBase
from uait_server_ext.knowledge.words import subject_of
from uait_server_ext.paths import default_model_cache

if TYPE_CHECKING:
    from uait_server_ext.inference.models import Embedder, Vectors

MAX_WRONG_DECLINES = 0.06
MAX_WRONG_ANSWERS = 0.02
QUICK_COLLECTIONS = ("chatlogs", "state_of_the_union")
SWEEP = (0.06, 0.08, 0.10, 0.11, 0.12, 0.14, 0.16, 0.20)
MODEL = "all-minilm-l6-v2"


@dataclass(frozen=True)
class Question:
    """A question, the document that answers it, and the spans of it that do."""

    text: str
    collection: str
    spans: list[tuple[int, int]]


@dataclass
class Judged:
    """(strength, similarity) of the strongest passage, for questions of one kind."""

    own: list[tuple[float, float]] = field(default_factory=list)
    other: list[tuple[float, float]] = field(default_factory=list)
    without: list[tuple[float, float]] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of chunking_eval")
    parser.add_argument("--quick", action="store_true", help="two documents, without sentences")
    parser.add_argument("--check", action="store_true", help="fail where an error is too frequent")
    options = parser.parse_args(arguments)
    return asyncio.run(run(options.data, quick=options.quick, check=options.check))


async def run(data: Path, *, quick: bool, check: bool) -> int:
    """Build the collections, put the questions, print the tables."""
    names = [file.stem for file in sorted((data / "corpora").glob("*.md"))]
    if quick:
        names = [name for name in names if name in QUICK_COLLECTIONS]
    questions = [question for question in read(data) if question.collection in names]
    with tempfile.TemporaryDirectory(prefix="uait-refusal-") as folder:
        async with models() as inference:
            embedder = inference.embedder
            await build(Path(folder), data, names, inference)
            collections = {name: open_collection(Path(folder) / name, embedder) for name in names}
            try:
                judged, right = await ask_all(collections, questions, embedder, quick=quick)
            finally:
                for collection in collections.values():
                    collection.close()
    return report(judged, right, len(questions), check=check)


def read(data: Path) -> list[Question]:
    """Read the questions with their supporting spans."""
    with (data / "questions_df.csv").open(encoding="utf-8", newline="") as file:
        return [
            Question(
                row["question"],
                row["corpus_id"],
                [
                    (span["start_index"], span["end_index"])
                    for span in json.loads(row["references"])
                ],
            )
            for row in csv.DictReader(file)
        ]


@asynccontextmanager
async def models() -> AsyncIterator[Inference]:
    """Run the embedding model."""
    inference = Inference(
        cache=ModelCache(default_model_cache()),
        catalogue=Catalogue.load(),
        embedding_model=MODEL,
        log=logging.getLogger(__name__),
    )
    await inference.start()
    try:
        yield inference
    finally:
        await inference.stop()


async def build(folder: Path, data: Path, names: Sequence[str], inference: Inference) -> None:
    """Ingest each document into a collection of its own."""
    base = KnowledgeBase(
        folder,
        embedder=inference.embedder,
        chat=inference,
        root_dir=data,
        allowed_roots=[data],
    )
    await base.start()
    for name in names:
        async for _ in base.ingest(name, f"corpora/{name}.md"):
            pass
    await base.stop()


def open_collection(folder: Path, embedder: Embedder) -> Collection:
    """Open what was built."""
    log = logging.getLogger(__name__)
    return Collection(folder, model=embedder.id, dimension=embedder.dimension, log=log)


async def ask_all(
    collections: dict[str, Collection],
    questions: Sequence[Question],
    embedder: Embedder,
    *,
    quick: bool,
) -> tuple[Judged, list[bool]]:
    """Put every question to every collection; tell for each whether its sentence was right."""
    judged = Judged()
    right = []
    for question in questions:
        vector = (await embedder.embed([question.text], purpose="query"))[0]
        for name, collection in collections.items():
            ranking = rank(collection, question.text, vector, limit=30)
            found = hits(collection, ranking)
            if name != question.collection:
                judged.other.append(strongest(collection, question, found[:WEIGHED]))
                continue
            judged.own.append(strongest(collection, question, found[:WEIGHED]))
            rest = [hit for hit in found if not _overlaps(hit, question)]
            judged.without.append(strongest(collection, question, rest[:WEIGHED]))
            if not quick:
                right.append(await shows_support(collection, question, found, vector, embedder))
    return judged, right


def strongest(
    collection: Collection, question: Question, found: Sequence[Hit]
) -> tuple[float, float]:
    """Return the greatest (strength, similarity) that passages have for a question."""
    subject = subject_of(question.text, collection.text)
    return max(
        (evidence.strength(subject, hit, collection.text), hit.dense_score or 0.0) for hit in found
    )


async def shows_support(
    collection: Collection,
    question: Question,
    found: Sequence[Hit],
    vector: Vectors,
    embedder: Embedder,
) -> bool:
    """Tell whether the sentence that `ask` shows lies half or more in a supporting span."""
    weighed = evidence.weigh(question.text, found[:WEIGHED], collection.text)
    candidates = evidence.sentences(weighed, collection.text)
    if not candidates:
        return False
    vectors = await embedder.embed([c.in_context for c in candidates], purpose="query")
    place = evidence.cite(1, evidence.support(candidates, vectors, vector)[0]).place
    return any(
        2 * (min(place.end, end) - max(place.start, start))
        >= min(place.end - place.start, end - start)
        for start, end in question.spans
    )


def report(judged: Judged, right: Sequence[bool], questions: int, *, check: bool) -> int:
    """Print the tables; return the exit code."""
    print(f"{questions} questions; a strength below the threshold declines")
    print(f"{'threshold':>10}{'declines own':>14}{'answers others':>16}{'answers without':>17}")
    for threshold in sorted({*SWEEP, evidence.MIN_STRENGTH}):
        mark = "  <- in use" if threshold == evidence.MIN_STRENGTH else ""
        own, other, without = (
            _answered(kind, threshold) for kind in (judged.own, judged.other, judged.without)
        )
        print(f"{threshold:10.2f}{1 - own:14.3f}{other:16.3f}{without:17.3f}{mark}")
    if right:
        print(f"the sentence shown supports the answer: {sum(right) / len(right):.3f}")
    declines = 1 - _answered(judged.own, evidence.MIN_STRENGTH)
    answers = _answered(judged.other, evidence.MIN_STRENGTH)
    print(f"wrong declines {declines:.3f}, wrong answers {answers:.3f}")
    return 1 if check and (declines > MAX_WRONG_DECLINES or answers > MAX_WRONG_ANSWERS) else 0


def _answered(kind: Sequence[tuple[float, float]], threshold: float) -> float:
    answered = [
        strength >= threshold and similarity >= evidence.MIN_SIMILARITY
        for strength, similarity in kind
    ]
    return sum(answered) / len(answered)


def _overlaps(hit: Hit, question: Question) -> bool:
    return any(hit.place.start < end and hit.place.end > start for start, end in question.spans)


if __name__ == "__main__":
    sys.exit(main())
