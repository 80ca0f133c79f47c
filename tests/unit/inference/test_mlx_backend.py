"""The MLX backend on a tiny model: who is served together, and that nobody notices the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.unit.inference.driving import Driver, asking, going_on
from tests.unit.inference.tiny_models import tiny_entry
from uait_server_ext.errors import ContextTooLong, InvalidInput
from uait_server_ext.inference import machine
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import CatalogueEntry
from uait_server_ext.inference.constraint import grammar_of
from uait_server_ext.inference.models import ChatRequest, Message, Regex

pytestmark = pytest.mark.timeout(120)

TEXTS = ["one", "two words", "three words now", "4", "the fifth of them", "six", "se7en", "eight!"]
LONG = "all the numbers there are: " + " ".join(map(str, range(40)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> ModelCache:
    return ModelCache(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def entry(place: ModelCache) -> CatalogueEntry:
    return tiny_entry(place)


@pytest.fixture(scope="module")
def backend(place: ModelCache, entry: CatalogueEntry) -> Iterator[Any]:
    if not machine.has_module("mlx_lm"):
        pytest.skip("MLX is not installed here")
    from uait_server_ext.inference.backends.mlx import MlxChat

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")  # as in a worker
        patch.setenv("MLX_DISABLE_COMPILE", "1")
        yield MlxChat(entry, place, 1, streams=4)


@pytest.fixture
def driver(backend: Any) -> Driver:
    assert not backend.busy
    return Driver(backend)


@pytest.fixture
def adapters(tmp_path: Path) -> list[Path]:
    """Return two adapters with random weights."""
    folders = []
    for seed in (1, 2):
        draw = np.random.default_rng(seed)
        folder = tmp_path / f"adapter-{seed}"
        folder.mkdir()
        parameters = {"rank": 4, "scale": 20.0, "dropout": 0.5, "keys": ["self_attn.q_proj"]}
        config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}
        (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
        weights = {
            f"model.layers.{layer}.self_attn.q_proj.{part}": draw.standard_normal(shape).astype(
                np.float32
            )
            for layer in range(2)
            for part, shape in (("lora_a", (32, 4)), ("lora_b", (4, 32)))
        }
        save_file(weights, folder / "adapters.safetensors")
        folders.append(folder)
    return folders


def test_eight_at_once_say_what_each_says_alone(driver: Driver) -> None:
    alone = [driver.run(asking(text, logprobs=0))[0] for text in TEXTS]
    driver.backend._engine._prefixes.clear()  # type: ignore[attr-defined]
    together = driver.run(*[asking(text, logprobs=0) for text in TEXTS])
    assert [said.text for said in together] == [said.text for said in alone]
    assert [said.tokens for said in together] == [said.tokens for said in alone]
    assert [said.reason for said in together] == [said.reason for said in alone]
    assert len({said.text for said in alone}) > 4


def test_who_joins_and_who_leaves_changes_nothing_for_the_others(driver: Driver) -> None:
    (expected,) = driver.run(asking("the long one", max_tokens=30))
    first = driver.start(asking("the long one", max_tokens=30))
    driver.until(lambda: len(driver.said[first].text) > 5)
    second = driver.start(asking("a short one", max_tokens=3))
    third = driver.start(asking("one that is let go of", max_tokens=100))
    driver.until(lambda: driver.said[second].outcome is not None)
    for _ in range(5):
        driver.step()
    driver.backend.cancel(third)
    driver.until(lambda: not driver.backend.busy)
    assert driver.said[first].text == expected.text
    assert driver.said[second].reason == "length"
    assert driver.said[third].reason == "cancelled"


def test_a_cancel_is_heard_with_the_next_step_wherever_the_request_is(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uait_server_ext.inference.backends import mlx_engine

    running = [driver.start(asking(text, max_tokens=60)) for text in TEXTS[:4]]
    waiting = driver.start(asking("waiting"))
    driver.until(lambda: all(driver.said[number].text for number in running))
    for number in (waiting, running[1]):
        driver.backend.cancel(number)
        driver.step()
        assert driver.said[number].reason == "cancelled"
    monkeypatch.setattr(mlx_engine, "STEP_SECONDS", 0.0)  # one layer a step
    in_its_prompt = driver.start(asking(LONG))
    driver.step()
    assert driver.backend._engine._reading is not None  # type: ignore[attr-defined]
    driver.backend.cancel(in_its_prompt)
    driver.step()
    assert driver.said[in_its_prompt].reason == "cancelled"
    for number in running:
        driver.backend.cancel(number)  # one of them has ended: no error
    driver.step()
    assert not driver.backend.busy
    assert driver.run(asking("and then"))[0].reason in ("stop", "length")


def test_a_seed_repeats_exactly_whoever_else_asks(driver: Driver) -> None:
    drawn = asking("draw", temperature=1.5, seed=7, max_tokens=12)
    (alone,) = driver.run(drawn)
    others = [asking(text, temperature=1.0) for text in TEXTS[:3]]
    among = driver.run(others[0], drawn, *others[1:], drawn)
    assert among[1].text == among[4].text == alone.text
    (other,) = driver.run(asking("draw", temperature=1.5, seed=8, max_tokens=12))
    assert other.text != alone.text
    unseeded = driver.run(*[asking("draw", temperature=1.5, max_tokens=12)] * 2)
    assert unseeded[0].text != unseeded[1].text


def test_filters_leave_the_likeliest_token_only(driver: Driver) -> None:
    (greedy,) = driver.run(asking("choose"))
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        (said,) = driver.run(asking("choose", temperature=2.0, **narrow))
        assert said.text == greedy.text, narrow


def test_logprobs_are_those_of_the_tokens_that_came(driver: Driver) -> None:
    for request in (asking("tell", logprobs=3), asking("tell", logprobs=3, presence_penalty=0.5)):
        (said,) = driver.run(request)
        assert said.outcome is not None
        assert len(said.logprobs) == said.outcome.completion_tokens - (said.reason == "stop")
        for token in said.logprobs:
            assert len(token.top) == 3
            assert token.top[0].logprob >= token.top[1].logprob
            assert token.logprob <= token.top[0].logprob <= 0
    (said,) = driver.run(asking("tell", logprobs=0))
    assert said.logprobs
    assert not any(token.top for token in said.logprobs)


def test_penalties_keep_tokens_from_coming_again(driver: Driver) -> None:
    (plain,) = driver.run(asking("say it again", logprobs=0, max_tokens=30))
    (punished,) = driver.run(
        asking("say it again", logprobs=0, max_tokens=30, presence_penalty=2, frequency_penalty=2)
    )
    assert len(set(plain.tokens)) < len(plain.tokens)
    assert len(set(punished.tokens)) / len(punished.tokens) > (
        len(set(plain.tokens)) / len(plain.tokens)
    )


def test_grammars_hold_each_stream_by_itself(driver: Driver) -> None:
    def held(pattern: str) -> Any:
        request = ChatRequest(
            messages=[Message(role="user", content="x")], response_format=Regex(pattern=pattern)
        )
        return asking("an answer", grammar=grammar_of(request), max_tokens=30)

    said = driver.run(held("[ab]{5}"), asking("free"), held("(yes|no)!"), held("[0-9]{3}-[0-9]"))
    assert set(said[0].text) <= set("ab")
    assert len(said[0].text) == 5
    assert said[2].text in ("yes!", "no!")
    assert said[3].text.replace("-", "").isdigit()
    assert len(said[3].text) == 5
    assert [one.reason for one in (said[0], *said[2:])] == ["stop"] * 3


def test_adapters_are_exchanged_between_requests_and_leave_no_trace(
    driver: Driver, adapters: list[Path]
) -> None:
    (plain,) = driver.run(asking("adapt"))
    carried = [driver.run(asking("adapt", adapter=folder))[0].text for folder in adapters]
    assert len({plain.text, *carried}) == 3
    mixed = driver.run(
        asking("adapt"), asking("adapt", adapter=adapters[0]),
        asking("adapt", adapter=adapters[1]), asking("adapt", adapter=adapters[0]),
        asking("adapt"),
    )  # fmt: skip
    expected = [plain.text, carried[0], carried[1], carried[0], plain.text]
    assert [said.text for said in mixed] == expected


def test_what_is_no_adapter_or_does_not_fit_is_refused(
    driver: Driver, adapters: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        driver.start(asking("x", adapter=tmp_path))
    config = adapters[0] / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "fine_tune_type": "full"}))
    with pytest.raises(InvalidInput, match="'full'"):
        driver.start(asking("x", adapter=adapters[0]))
    save_file({"model.other": np.zeros(3, np.float32)}, adapters[1] / "adapters.safetensors")
    (plain,) = driver.run(asking("adapt"))
    odd, after = driver.run(asking("x", adapter=adapters[1]), asking("adapt"))
    assert isinstance(odd.error, InvalidInput)
    assert "does not fit" in str(odd.error)
    assert after.text == plain.text


def test_what_prompts_share_is_read_once_also_when_they_come_together(driver: Driver) -> None:
    driver.backend._engine._prefixes.clear()  # type: ignore[attr-defined]
    said = driver.run(*[asking(f"{LONG} {text}") for text in TEXTS[:4]])
    assert said[0].cached == 0
    assert all(one.cached > len(LONG) for one in said[1:])
    (alone,) = driver.run(asking(f"{LONG} {TEXTS[2]}"))
    assert alone.text == said[2].text
    assert alone.cached > said[2].cached


def test_a_text_goes_on_without_a_template(driver: Driver) -> None:
    (said,) = driver.run(going_on("abc", max_tokens=5))
    assert said.outcome is not None
    assert said.outcome.prompt_tokens == 3


def test_what_cannot_be_is_refused_before_anything_is_made(driver: Driver) -> None:
    with pytest.raises(ContextTooLong):
        driver.start(asking("x" * 300))
    seeing = {"role": "user", "content": "What is it?", "images": ["data:image/png;base64,AA=="]}
    with pytest.raises(InvalidInput, match="images"):
        driver.backend.start(1, asking("x").__class__(messages=[seeing], max_tokens=5))
    assert not driver.backend.busy


def test_a_draft_model_changes_the_speed_and_not_the_answer(
    place: ModelCache, entry: CatalogueEntry, driver: Driver
) -> None:
    from uait_server_ext.inference.backends.mlx import MlxChat

    other = tiny_entry(place, "tiny-draft")
    drafted = Driver(MlxChat(entry, place, 1, draft=other, streams=4))
    for text in TEXTS[:3]:
        request = asking(text, max_tokens=12)
        assert drafted.run(request)[0].text == driver.run(request)[0].text
    # not alone, or with something that looks at the logits: without the draft, and right
    requests = [asking(text, logprobs=0) for text in TEXTS[:3]]
    expected = driver.run(*requests)
    assert [said.text for said in drafted.run(*requests)] == [said.text for said in expected]


def test_long_prompts_are_found_on_disk_again(
    place: ModelCache, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uait_server_ext.inference.backends import mlx_engine
    from uait_server_ext.inference.backends.mlx import PROMPTS, MlxChat

    monkeypatch.setattr(mlx_engine, "FILE_TOKENS", 100)
    first = Driver(MlxChat(entry, place, 1))
    (said,) = first.run(asking(f"{LONG} a"))
    assert said.cached == 0
    folder = place.root / entry.id / PROMPTS
    (file,) = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    second = Driver(MlxChat(entry, place, 1))
    (again,) = second.run(asking(f"{LONG} b"))
    assert again.cached >= 128
    (alone,) = Driver(MlxChat(entry, place, 1, prompt_bytes=0)).run(asking(f"{LONG} b"))
    assert (alone.cached, alone.text) == (0, again.text)
