"""Order of batches, scores, checkpoints: the parts of tuning that need no model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uait_server_ext.inference.tuning import checkpoint
from uait_server_ext.inference.tuning.batches import Order, Tokens, digest_of
from uait_server_ext.inference.tuning.checkpoint import Progress
from uait_server_ext.inference.tuning.evaluation import score_of

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=40)


def examples_of(lengths: list[int]) -> list[Tokens]:
    return [Tokens(list(range(length)), 1) for length in lengths]


@given(lengths=LENGTHS, size=st.integers(1, 9), seed=st.integers(0, 9))
def test_an_epoch_reads_every_example_once(lengths: list[int], size: int, seed: int) -> None:
    order = Order(examples_of(lengths), size, seed)
    steps = -(-len(lengths) // size)
    for epoch in (0, 1):
        read = [n for step in range(steps) for n in order.batch(epoch * steps + step)]
        assert sorted(read) == list(range(len(lengths)))
    assert order.place(steps) == (1, 0)


@given(lengths=LENGTHS, size=st.integers(1, 9), step=st.integers(0, 200))
def test_a_step_reads_the_same_whatever_was_read_before(
    lengths: list[int], size: int, step: int
) -> None:
    walked = Order(examples_of(lengths), size, 3)
    for earlier in range(step):
        walked.batch(earlier)
    assert walked.batch(step) == Order(examples_of(lengths), size, 3).batch(step)


def test_other_examples_or_settings_have_another_digest() -> None:
    examples = examples_of([3, 4])
    assert digest_of(examples, 1) == digest_of(list(examples), 1)
    assert digest_of(examples, 1) != digest_of(examples, 2)
    assert digest_of(examples, 1) != digest_of(examples[::-1], 1)


def test_fields_count_where_objects_are_expected() -> None:
    want = '{"person": "Ada", "hours": 2}'
    score = score_of(["p"] * 4, [want] * 4, [want, '{"hours": 2.0}', "Ada, 2", '{"person": true}'])
    assert score.exact == 0.25
    assert score.fields == 3 / 8
    assert score.main == score.fields
    assert len(score.answers) == 3


def test_words_count_where_text_is_expected() -> None:
    score = score_of(["p", "p"], ["the red  cat", "yes"], ["the red cat", "no"])
    assert score.fields is None
    assert score.exact == score.main == score.similarity == 0.5


def test_an_answer_that_is_deeply_nested_is_only_wrong() -> None:
    assert score_of(["p"], ['{"a": 1}'], ["[" * 100_000]).fields == 0.0


def save(folder: Path, step: int, text: str = "weights") -> None:
    def write(place: Path) -> None:
        (place / "adapter").write_text(text)

    checkpoint.save(folder, Progress("digest", step=step, validations=[(0, 1.5)]), write)


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    for step in (10, 20, 30):
        save(tmp_path, step)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found[1] == Progress("digest", step=30, validations=[(0, 1.5)])
    assert sorted(place.name for place in tmp_path.iterdir()) == ["step-000020", "step-000030"]
    (tmp_path / "step-000030" / "adapter").write_text("damaged")
    older = checkpoint.newest(tmp_path)
    assert older is not None
    assert older[1].step == 20


def test_a_checkpoint_that_was_not_finished_is_none(tmp_path: Path) -> None:
    save(tmp_path, 10)

    class Killed(BaseException):
        pass

    def write(place: Path) -> None:
        (place / "adapter").write_text("half")
        raise Killed

    with pytest.raises(Killed):
        checkpoint.save(tmp_path, replace(Progress("digest"), step=20), write)
    (tmp_path / "step-000030.partial").mkdir()  # as a SIGKILL leaves it
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found[1].step == 10
    save(tmp_path, 30)
    assert checkpoint.newest(tmp_path) is not None
