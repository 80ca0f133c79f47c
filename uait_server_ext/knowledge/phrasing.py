"""What the model gets to phrase an answer from, and which of its phrasings are kept.

The embedded 135M model answers best from one passage with the supporting sentence repeated after
it, in one sentence; from four passages it rambles, and each 100 tokens of them cost a second on two
cores.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from uait_server_ext.knowledge.evidence import Sentence
from uait_server_ext.knowledge.reading.tokens import count_tokens

# Of passages: the first is always whole, others come before it where there is room.
PASSAGE_TOKENS = 300
STOP = ("\n",)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
SENTENCE_END = re.compile(r"[.!?][\"'”’)]*(?=\s|$)")

PROMPT = """{passages}

{support}

Using only the text above, answer in one sentence: {question}"""


def prompt_for(question: str, cited: Sequence[Sentence]) -> str:
    """Return the prompt for a question: passages, the supporting sentence, the question."""
    room = PASSAGE_TOKENS
    passages: list[str] = []
    for sentence in cited:
        room -= count_tokens(sentence.hit.text)
        if passages and room < 0:
            break
        passages.insert(0, sentence.hit.text)
    support = " ".join(cited[0].in_context.split())
    return PROMPT.format(passages="\n\n".join(passages), support=support, question=question)


def judge(
    text: str, finish_reason: Literal["stop", "length", "tool_calls"], prompt: str
) -> tuple[str | None, str | None]:
    """Return what of a phrasing is kept, and a note for people where it is left out.

    What did not come to an end is cut after its last whole sentence. A phrasing with a number that
    the prompt has not is left out: small models make them up.
    """
    kept = text.strip()
    if finish_reason == "length":
        ends = [match.end() for match in SENTENCE_END.finditer(kept)]
        if not ends:
            return None, "The model's wording is left out: it did not come to an end."
        kept = kept[: ends[-1]]
    if not kept or kept.endswith("?"):
        return None, None  # nothing, or the question again
    given = _numbers(prompt)
    made_up = [number for number in _numbers(kept) if number not in given]
    if made_up:
        says = ", ".join(made_up)
        return None, f"The model's wording is left out: it says {says}, which no cited text does."
    return kept, None


def _numbers(text: str) -> dict[str, None]:
    return dict.fromkeys(number.replace(",", "") for number in NUMBER.findall(text))
