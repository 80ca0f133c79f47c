"""Answers: the supporting sentence first, citations that point to it, a refusal where none is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.knowledge.conftest import Ingesting, OpenBase
from tests.unit.knowledge.fakes import SayingChat
from uait_server_ext.errors import (
    CollectionNotFound,
    ContextTooLong,
    ModelNotFound,
    ModelUnavailable,
    WorkerDied,
)
from uait_server_ext.knowledge.models import AnswerDelta, AnswerDone, AskRequest, EvidenceEvent
from uait_server_ext.knowledge.reading.tokens import count_tokens

LIGHTHOUSE = """# The lighthouse

Built in 1887, the lighthouse stands on the northern rock. Its lamp is lit at dusk.

## Supplies

The supply boat comes on Tuesday, or on Wednesday when the sea is rough.
It brings oil for the lamp, bread and letters.
"""
GARDEN = "# The garden\n\nTomatoes grow best in full sun. Water the beans every second day."
QUESTION = "When does the supply boat come to the lighthouse?"


@pytest.fixture
def texts(documents: Path) -> Path:
    (documents / "lighthouse.md").write_text(LIGHTHOUSE)
    (documents / "garden.md").write_text(GARDEN)
    return documents


async def ask(base, question, name="default", **options):
    request = AskRequest(question=question, **options)
    return [event async for event in base.ask(name, request)]


async def test_evidence_then_phrasing_then_all(
    open_base: OpenBase, ingest: Ingesting, texts: Path, chat: SayingChat
) -> None:
    async with open_base() as base:
        await ingest(base, texts)
        events = await ask(base, QUESTION)
    assert isinstance(events[0], EvidenceEvent)
    assert [event.text for event in events[1:-1] if isinstance(event, AnswerDelta)] == [
        "It ", "is ", "so. ",
    ]  # fmt: skip
    assert isinstance(events[-1], AnswerDone)
    answer = events[-1].answer
    sentence = "The supply boat comes on Tuesday, or on Wednesday when the sea is rough."
    assert not answer.declined
    assert answer.extract == sentence
    assert answer.text == f"{sentence} [1]\n\nIt is so."
    assert (answer.phrasing, answer.backend, answer.usage.prompt_tokens) == (
        "It is so.",
        "saying",
        7,
    )
    assert answer.first_token_seconds
    assert answer.first_token_seconds <= answer.seconds
    first = answer.citations[0]
    assert (first.number, first.path, first.title) == (
        1, "documents/lighthouse.md", "The lighthouse",
    )  # fmt: skip
    assert first.quote == LIGHTHOUSE[first.place.start : first.place.end] == sentence
    assert (first.place.label, first.place.line) == ("§ Supplies", 7)
    assert [citation.number for citation in answer.citations] == list(
        range(1, len(answer.citations) + 1)
    )
    assert events[0].citations == answer.citations
    assert all("garden" not in citation.path for citation in answer.citations)
    (prompt,) = chat.prompts
    assert sentence in prompt
    assert QUESTION in prompt


@pytest.mark.parametrize(
    "question",
    [
        "What is the melting point of tungsten?",
        "Who won the world cup in 2018?",
        "Which port does a database server use?",
        "¿Qué hora es?",
        "???",
    ],
)
async def test_what_the_documents_do_not_say_is_declined_without_the_model(
    open_base: OpenBase, ingest: Ingesting, texts: Path, chat: SayingChat, question: str
) -> None:
    async with open_base() as base:
        await ingest(base, texts)
        events = await ask(base, question)
    assert len(events) == 2
    answer = events[-1].answer
    assert (answer.declined, answer.extract, answer.citations) == (True, None, [])
    assert "hold nothing that answers this" in answer.text
    assert chat.prompts == []


async def test_a_collection_that_lost_its_documents_declines(
    open_base: OpenBase, ingest: Ingesting, documents: Path
) -> None:
    (documents / "a.md").write_text("The boat.")
    async with open_base() as base:
        await ingest(base, documents)
        (documents / "a.md").unlink()
        await ingest(base, documents)
        assert (await ask(base, "Where is the boat?"))[-1].answer.declined


async def test_without_phrasing_the_extract_is_the_answer(
    open_base: OpenBase, ingest: Ingesting, texts: Path, chat: SayingChat
) -> None:
    async with open_base() as base:
        await ingest(base, texts)
        events = await ask(base, QUESTION, phrase=False)
    answer = events[-1].answer
    assert answer.text == f"{answer.extract} [1]"
    assert (answer.phrasing, answer.model, answer.first_token_seconds) == (None, None, None)
    assert chat.prompts == []


async def test_a_model_that_is_not_here_still_gives_the_extract(
    open_base: OpenBase, ingest: Ingesting, texts: Path
) -> None:
    chat = SayingChat("", error=ModelUnavailable("Pull it first."))
    async with open_base(chat=chat) as base:
        await ingest(base, texts)
        answer = (await ask(base, QUESTION))[-1].answer
    assert answer.text == f"{answer.extract} [1]\n\n(No model phrased this: Pull it first.)"
    assert answer.phrasing is None


async def test_an_unknown_model_is_refused_before_anything_is_sent(
    open_base: OpenBase, ingest: Ingesting, texts: Path
) -> None:
    async with open_base(chat=SayingChat()) as base:
        await ingest(base, texts)
        for question in (QUESTION, "What is the melting point of tungsten?"):
            events = base.ask("default", AskRequest(question=question, model="unknown"))
            with pytest.raises(ModelNotFound):
                await anext(events)


async def test_a_worker_that_dies_in_the_middle_is_an_error(
    open_base: OpenBase, ingest: Ingesting, texts: Path
) -> None:
    async with open_base(chat=SayingChat(error=WorkerDied("It died: ask again."))) as base:
        await ingest(base, texts)
        events = base.ask("default", AskRequest(question=QUESTION))
        sent = [await anext(events) for _ in range(4)]
        assert isinstance(sent[0], EvidenceEvent)
        with pytest.raises(WorkerDied):
            await anext(events)


async def test_closing_stops_the_model(
    open_base: OpenBase, ingest: Ingesting, texts: Path, chat: SayingChat
) -> None:
    chat.says = "word " * 1000
    async with open_base() as base:
        await ingest(base, texts)
        events = base.ask("default", AskRequest(question=QUESTION))
        async for event in events:
            if isinstance(event, AnswerDelta):
                break
        await events.aclose()
    assert chat.closed


@pytest.mark.parametrize(
    ("says", "kept"),
    [
        ("It was built in 1887.", True),
        ("It was built in 1,887.", True),
        ("It was built in 1912.", False),
        ("There are 3 boats.", False),
    ],
)
async def test_a_phrasing_with_a_number_of_its_own_is_left_out(
    open_base: OpenBase, ingest: Ingesting, texts: Path, chat: SayingChat, says: str, kept: bool
) -> None:
    chat.says = says
    async with open_base() as base:
        await ingest(base, texts)
        answer = (await ask(base, "When was the lighthouse built?"))[-1].answer
    assert (answer.phrasing == says) == kept
    assert ("left out" in answer.text) != kept
    assert says not in answer.text or kept


async def test_the_prompt_stays_short(
    open_base: OpenBase, ingest: Ingesting, documents: Path, chat: SayingChat
) -> None:
    for number in range(8):
        sentence = f"The supply boat number {number} comes to the lighthouse on time. "
        (documents / f"{number}.md").write_text(f"# Boat {number}\n\n{sentence * 12}")
    async with open_base() as base:
        await ingest(base, documents)
        answer = (await ask(base, QUESTION, k=8))[-1].answer
    assert len(answer.citations) == 8
    assert count_tokens(chat.prompts[0]) < 900


async def test_questions_that_cannot_be_put(
    open_base: OpenBase, ingest: Ingesting, texts: Path
) -> None:
    async with open_base() as base:
        await ingest(base, texts)
        with pytest.raises(CollectionNotFound, match="there are `default`"):
            await ask(base, QUESTION, name="other")
        with pytest.raises(ContextTooLong, match="500"):
            await ask(base, "When does the boat come? " * 2_000)


async def test_code_and_tables_are_quoted_in_readable_parts(
    open_base: OpenBase, ingest: Ingesting, documents: Path
) -> None:
    rows = "\n".join(f"lamp_{n} = turn(lamp, speed={n})  # lamp turning" for n in range(40))
    (documents / "lamp.py").write_text(f"def turning_lamp(lamp):\n{rows}\n")
    async with open_base() as base:
        await ingest(base, documents)
        answer = (await ask(base, "How is the lamp turning?", phrase=False))[-1].answer
    assert not answer.declined
    assert answer.extract
    assert len(answer.extract) <= 500


async def test_a_row_of_a_table_is_found_by_its_head_and_number(
    open_base: OpenBase, ingest: Ingesting, documents: Path
) -> None:
    table = "| code | meaning |\n|---|---|\n| 1 | A lamp broke. |\n| 3 | The keeper left. |\n"
    (documents / "codes.md").write_text(f"# Codes\n\nWhat is reported.\n\n## Exit\n\n{table}")
    async with open_base() as base:
        await ingest(base, documents)
        answer = (await ask(base, "What is reported as exit code 3: the meaning?", phrase=False))[
            -1
        ].answer
    assert answer.extract == "| 3 | The keeper left. |"


async def test_a_word_that_a_small_collection_lacks_does_not_decline(
    open_base: OpenBase, ingest: Ingesting, documents: Path
) -> None:
    (documents / "boat.md").write_text("The supply boat comes to the rock on Tuesday.")
    async with open_base() as base:
        await ingest(base, documents)
        answer = (await ask(base, "When does the supply boat arrive?", phrase=False))[-1].answer
    assert not answer.declined
