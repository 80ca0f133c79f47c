"""The words of a question that say what it is about, and how much of them a text holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from uait_server_ext.knowledge.fulltext import FullText

WORD = re.compile(r"\w+")

# Words of English that hold a sentence together, and those in which questions about texts are put.
FUNCTION_WORDS = frozenset(
    """
    a about above after again against all also am an and any are aren as at be because been before
    being below between both but by can could couldn d did didn do does doesn doing don down during
    each either else ever every few for from further had hadn has hasn have haven having he her here
    hers herself him himself his how however i if in into is isn it its itself just ll m may me
    might more most much must my myself no nor not now of off on once one only or other our ours out
    over own re s same she should shouldn since so some such t than that the their theirs them
    themselves then there these they this those though through to too under until up upon us ve very
    was wasn we were weren what whatever when where whether which while who whom whose why will with
    within without won would wouldn you your yours
    according describe described explain get give given got know let like list many mean means
    mention mentioned name please regarding said say says show state stated tell thing things use
    used using
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class Subject:
    """The content terms of a question, each weighed by how rare it is in the collection."""

    weights: Mapping[str, float]

    def coverage(self, terms: set[str]) -> float:
        """Return the share of the subject that the terms hold, in [0, 1]."""
        whole = sum(self.weights.values())
        if not whole:
            return 1.0  # nothing to look for but function words
        return sum(weight for term, weight in self.weights.items() if term in terms) / whole


def subject_of(question: str, index: FullText) -> Subject:
    """Return what a question is about; a term that no chunk has weighs most, as numbers do."""
    words = (word for word in WORD.findall(question) if word.lower() not in FUNCTION_WORDS)
    weights = index.rarity(index.terms(" ".join(words)))
    return Subject({term: 1.0 if term.isdigit() else weight for term, weight in weights.items()})
