"""Judge what was found: do the passages answer the question, and which sentence supports it best?

No model decides this: the embedded one never refuses. A passage's strength is its share of the
question's content words, weighed by rarity, times its cosine to the question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from uait_server_ext.knowledge.models import Citation, Hit, Place
from uait_server_ext.knowledge.reading.sentences import Span, sentence_spans, trimmed
from uait_server_ext.knowledge.words import Subject, subject_of

if TYPE_CHECKING:
    from uait_server_ext.inference.models import Vectors
    from uait_server_ext.knowledge.fulltext import FullText

# Fitted with benchmarks/refusal.py on the questions of chunking_eval (472 questions to five long
# documents, each also put to the four other documents, which do not answer it).
MIN_STRENGTH = 0.11
MIN_SIMILARITY = 0.28

# The supporting sentence, fitted on the same questions' exact supporting spans.
SENTENCE_WEIGHTS = {"similarity": 0.4, "coverage": 0.6, "passage": 0.2}
MAX_EMBEDDED = 32
MIN_CHARACTERS = 20
MAX_CHARACTERS = 500
BEFORE_TABLE = re.compile(r"^[^|\n].*\n|^\n", re.MULTILINE)
NO_SENTENCE = ("#", "```", "~~~", "|--", "|:-", "---", "===")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Passages that bear on the question, strongest first; none where it is to be declined."""

    subject: Subject
    hits: list[Hit]

    @property
    def declined(self) -> bool:
        """Whether the documents hold nothing relevant."""
        return not self.hits


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a hit: where in the hit's text it stands, and how it covers the question.

    ``context`` is what must be read with it to understand it: the head of a table's row.
    """

    hit: Hit
    start: int
    end: int
    context: str
    coverage: float

    @property
    def text(self) -> str:
        """The sentence, word for word."""
        return self.hit.text[self.start : self.end]

    @property
    def in_context(self) -> str:
        """The sentence as it is compared with the question."""
        return self.context + self.text


def weigh(question: str, found: Sequence[Hit], index: FullText) -> Evidence:
    """Return those hits that are strong enough to answer from."""
    subject = subject_of(question, index)
    strong = [
        hit
        for hit in found
        if (hit.dense_score or 0.0) >= MIN_SIMILARITY
        and strength(subject, hit, index) >= MIN_STRENGTH
    ]
    return Evidence(subject, strong)


def strength(subject: Subject, hit: Hit, index: FullText) -> float:
    """Return how strongly a hit bears on the subject of a question, in [0, 1]."""
    terms = set(index.terms(f"{hit.title} {hit.place.label} {hit.text}"))
    return subject.coverage(terms) * max(hit.dense_score or 0.0, 0.0)


def sentences(evidence: Evidence, index: FullText) -> list[Sentence]:
    """Return sentences to compare with the question: of each hit those that cover most of it."""
    found = []
    for hit in evidence.hits:
        of_hit = []
        for start, end in _quotable(hit.text):
            context = _context(hit, start)
            terms = set(index.terms(context + hit.text[start:end]))
            coverage = evidence.subject.coverage(terms)
            of_hit.append(Sentence(hit, start, end, context, coverage))
        of_hit.sort(key=lambda sentence: -sentence.coverage)
        found += of_hit[: max(1, MAX_EMBEDDED // len(evidence.hits))]
    return found


def support(candidates: Sequence[Sentence], vectors: Vectors, question: Vectors) -> list[Sentence]:
    """Return the best sentence of each hit, the best of all first."""
    weights = SENTENCE_WEIGHTS
    scores = (
        weights["similarity"] * (vectors @ question)
        + weights["coverage"] * np.array([sentence.coverage for sentence in candidates])
        + weights["passage"] * np.array([sentence.hit.score for sentence in candidates])
    )
    best: dict[int, Sentence] = {}
    for place in np.argsort(-scores, kind="stable"):
        best.setdefault(candidates[place].hit.chunk_id, candidates[place])
    return list(best.values())


def cite(number: int, sentence: Sentence) -> Citation:
    """Return the citation of a sentence; its place is exact."""
    hit, place = sentence.hit, sentence.hit.place
    line = place.line
    if line is not None:
        line += hit.text.count("\n", 0, sentence.start)
    exact = Place(
        start=place.start + sentence.start,
        end=place.start + sentence.end,
        label=place.label,
        page=place.page,
        cell=place.cell,
        line=line,
    )
    return Citation(number=number, path=hit.path, title=hit.title, place=exact, quote=sentence.text)


def _quotable(text: str) -> Iterator[Span]:
    """Yield the sentences that can be shown by themselves; the whole text where none can."""
    some = False
    for start, end in sentence_spans(text):
        for first, last in _short_enough(text, start, end):
            if last - first >= MIN_CHARACTERS and not text.startswith(NO_SENTENCE, first):
                some = True
                yield first, last
    if not some:
        yield 0, min(len(text), MAX_CHARACTERS)


def _context(hit: Hit, start: int) -> str:
    """Return section and head of the Markdown table whose row starts there; nothing for prose."""
    if not hit.text.startswith("|", start):
        return ""
    table = BEFORE_TABLE.split(hit.text[:start])[-1] or hit.text[start:]
    return f"{hit.place.label}: {table.partition(chr(10))[0]}\n"


def _short_enough(text: str, start: int, end: int) -> Iterator[Span]:
    """Cut what is no prose (code, tables) at line ends, into parts that can be read."""
    while end - start > MAX_CHARACTERS:
        border = text.rfind("\n", start, start + MAX_CHARACTERS)
        border = border if border > start else start + MAX_CHARACTERS
        yield from trimmed(text, start, border)
        start = border
    yield from trimmed(text, start, end)
