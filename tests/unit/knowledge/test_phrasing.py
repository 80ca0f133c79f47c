"""What is kept of the model's words, and what it is given."""

from __future__ import annotations

import pytest

from uait_server_ext.knowledge.evidence import Sentence
from uait_server_ext.knowledge.models import Hit, Place
from uait_server_ext.knowledge.phrasing import judge, prompt_for
from uait_server_ext.knowledge.reading.tokens import count_tokens

PROMPT = "The lighthouse was built in 1887 and is 1,200 feet from the shore. Version 3.5."


def sentence(text: str, start: int = 0, end: int | None = None) -> Sentence:
    place = Place(start=0, end=len(text), label="line 1")
    hit = Hit(document_id=1, chunk_id=1, path="a.md", title="A", place=place, text=text, score=1)
    return Sentence(hit, start, len(text) if end is None else end, "", 1.0)


@pytest.mark.parametrize(
    ("text", "reason", "kept", "note"),
    [
        (" It was built in 1887. ", "stop", "It was built in 1887.", None),
        ("It is 1200 feet away.", "stop", "It is 1200 feet away.", None),
        ("It is version 3.5.", "stop", "It is version 3.5.", None),
        ("It was built in 1888.", "stop", None, "it says 1888"),
        ("From 1890 to 1,900.", "stop", None, "it says 1890, 1900"),
        ("It stands there. It stands there and", "length", "It stands there.", None),
        ("It stands and stands and stands and", "length", None, "did not come to an end"),
        ("When was it built?", "stop", None, None),
        ("", "stop", None, None),
    ],
)
def test_judging(text, reason, kept, note):
    found, says = judge(text, reason, PROMPT)
    assert found == kept
    assert (says is None) if note is None else (note in (says or ""))


def test_the_prompt_ends_with_support_and_question():
    text = "The boat comes\non Tuesday. It brings oil."
    prompt = prompt_for("When?", [sentence(text, 0, 26)])
    assert prompt.startswith(text)
    assert prompt.endswith(
        "The boat comes on Tuesday.\n\nUsing only the text above, answer in one sentence: When?"
    )


def test_the_prompt_has_the_best_passage_whole_and_others_before_it_where_there_is_room():
    long, short = sentence("The best. " * 60), sentence("Another one.")
    assert prompt_for("Q?", [long, short]).startswith("Another one.\n\nThe best. ")
    too_long = sentence("Much more. " * 100)
    prompt = prompt_for("Q?", [too_long, long])
    assert prompt.startswith("Much more.")
    assert "The best" not in prompt
    assert count_tokens(prompt) < 900
