"""Examples to learn from: what is read, what is refused with its line, what is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.inference.tiny_models import write_lines
from uait_server_ext.errors import InvalidInput, NotFound
from uait_server_ext.inference.tuning.data import Examples, read_examples, report_of


def chat(question: str, answer: str = "yes") -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def turns(*roles: str, **more: Any) -> str:
    return json.dumps({"messages": [{"role": role, "content": "a", **more} for role in roles]})


def test_both_forms_are_read_and_blank_lines_are_not_counted_out(tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    lines = [chat("one"), {"prompt": "two", "completion": "2"}, chat("three")]
    write_lines(file, lines)
    file.write_text("\n" + file.read_text("utf-8"), "utf-8")
    examples = read_examples(file, valid_share=0.3)
    assert examples.split
    found = {e.messages[0][1]: e for e in (*examples.train, *examples.valid)}
    assert found["two"].turns == [
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "2"},
    ]
    assert found["two"].answer == "2"
    assert found["two"].place == "all.jsonl:3"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "no JSON"),
        ("[]", "object"),
        ("{}", "nothing"),
        ('{"text": "all"}', "`text`"),
        ('{"prompt": "a"}', "`prompt`"),
        ('{"prompt": "a", "completion": 1}', "`completion` must be text"),
        ('{"prompt": "a", "completion": " "}', "not empty"),
        ('{"prompt": "a", "completion": "b", "weight": 2}', "`weight`"),
        ('{"messages": []}', "question and an answer"),
        ('{"messages": [{"role": "user", "content": "a"}, 1]}', "message 2"),
        (turns("user", "tool"), "tool"),
        (turns("user", "user"), "both of the user"),
        (turns("assistant", "user"), "last message"),
        (turns("user", "system"), "system"),
        (turns("user", "assistant", images=[]), "`images`"),
        ('{"prompt": "a", "completion": "\\ud800"}', "surrogate"),
        ("[" * 100_000, "no JSON|recursion"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_example_is_refused_with_its_number(
    tmp_path: Path, line: str, said: str
) -> None:
    file = write_lines(tmp_path / "train.jsonl", [chat("one"), chat("two")])
    file.write_text(f"{file.read_text('utf-8')}{line}\n", "utf-8")
    with pytest.raises(InvalidInput, match=said) as caught:
        read_examples(file)
    assert "train.jsonl:3" in caught.value.detail
    assert caught.value.extensions["errors"][0]["location"] == "train.jsonl:3"


def test_every_wrong_line_is_named_up_to_a_number(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "train.jsonl", [chat("one"), *({} for _ in range(50))])
    with pytest.raises(InvalidInput, match="49 more") as caught:
        read_examples(file)
    assert len(caught.value.extensions["errors"]) == 20


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_bytes(b'{"prompt": "a", "completion": "b"}\n{"prompt": "\xff"}\n')
    with pytest.raises(InvalidInput, match=r"train\.jsonl:2: this is not UTF-8"):
        read_examples(file)


def test_a_folder_needs_a_part_to_learn_from(tmp_path: Path) -> None:
    write_lines(tmp_path / "valid.jsonl", [chat("one")])
    with pytest.raises(NotFound, match=r"train\.jsonl"):
        read_examples(tmp_path)
    with pytest.raises(NotFound, match="does not exist"):
        read_examples(tmp_path / "missing")


def test_a_folder_of_parts_is_taken_as_it_is_and_leaks_are_reported(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [chat("one"), chat("two"), chat("one")])
    write_lines(tmp_path / "valid.jsonl", [chat("three"), chat("two", "another answer")])
    write_lines(tmp_path / "test.jsonl", [chat("one"), chat("four")])
    examples = read_examples(tmp_path)
    assert not examples.split
    report = report_of(examples)
    assert (report.train, report.valid, report.heldout) == (3, 2, 2)
    assert report.duplicates == 1
    assert report.leaked == 2
    assert {(d.first, d.again) for d in report.samples} == {
        ("train.jsonl:1", "train.jsonl:3"),
        ("train.jsonl:2", "valid.jsonl:2"),
        ("train.jsonl:1", "test.jsonl:1"),
    }


def test_too_few_or_all_alike_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="1 examples"):
        read_examples(write_lines(tmp_path / "a.jsonl", [chat("one")]))
    with pytest.raises(InvalidInput, match="same prompt"):
        read_examples(write_lines(tmp_path / "b.jsonl", [chat("one"), chat("one", "no")]))


@given(
    questions=st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30).filter(
        lambda found: len(set(found)) > 1
    ),
    share=st.floats(0.01, 0.5),
    seed=st.integers(0, 99),
)
def test_a_split_loses_nothing_and_shares_no_prompt(
    questions: list[str], share: float, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "split.jsonl"
    write_lines(file, [chat(q, str(n)) for n, q in enumerate(questions)])
    examples = read_examples(file, valid_share=share, seed=seed)
    assert examples.train
    assert examples.valid
    assert len(examples.train) + len(examples.valid) == len(questions)
    assert report_of(examples).leaked == 0
    assert read_examples(file, valid_share=share, seed=seed) == examples


def test_what_is_saved_is_restored(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "train.jsonl", [chat("one"), chat("\u00fc\U0001f642")])
    examples = read_examples(file, valid_share=0.5)
    examples.save(tmp_path / "kept.json")
    assert Examples.restore(tmp_path / "kept.json") == examples
