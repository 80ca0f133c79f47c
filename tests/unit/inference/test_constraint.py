"""Whatever tokens are chosen, an answer keeps to its form, and ends well within its budget."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest

from tests.conftest import REPOSITORY
from uait_server_ext.errors import InvalidInput, UaitError
from uait_server_ext.inference.constraint import Constraint, Grammar, Vocabulary, grammar_of
from uait_server_ext.inference.models import ChatRequest
from uait_server_ext.inference.schema_rules import growth
from uait_server_ext.inference.tool_calls import (
    GEMMA,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    PYTHONIC,
    ToolStyle,
    read,
)

CASES: list[dict[str, Any]] = json.loads(
    (REPOSITORY / "benchmarks" / "structured_cases.json").read_text("utf-8")
)
ENDS = (2, 0)
WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "unit": {"enum": ["C", "F"]},
        },
        "required": ["city", "days"],
    },
}
CLOCK = {"name": "clock", "description": "Tells the time.", "parameters": {}}


@pytest.fixture(scope="module")
def vocabulary(model_cache: Path) -> Vocabulary:
    """Return the tokens of the embedded model."""
    folder = next((model_cache / "smollm2-135m-instruct").glob("*/tokenizer.json"), None)
    if folder is None:
        from uait_server_ext.inference.cache import ModelCache
        from uait_server_ext.inference.catalogue import Catalogue
        from uait_server_ext.inference.gguf_convert import to_half

        entry = Catalogue.load().get("smollm2-135m-instruct")
        folder = ModelCache(model_cache).derived(entry, "llamacpp-1", to_half) / "tokenizer.json"
    return Vocabulary.load(folder.parent, ends=ENDS)


def request(**more: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}], **more})


def grammar(**more: Any) -> Grammar:
    made = grammar_of(request(**more))
    assert made is not None
    return made


def schema_grammar(schema: Any) -> Grammar:
    return grammar(response_format={"type": "json_schema", "json_schema": schema})


def babble(
    grammar: Grammar, vocabulary: Vocabulary, budget: int, seed: int, *, prefer: str = ""
) -> tuple[str, bool]:
    """Choose allowed tokens by chance until the end; return the text and whether it is whole."""
    chance = random.Random(seed)
    constraint = Constraint(grammar, vocabulary, budget=budget)
    tokens: list[int] = []
    while not constraint.finished and len(tokens) < budget:
        allowed = np.flatnonzero(constraint.mask())
        assert len(allowed)
        token = int(chance.choice(allowed))
        if len(allowed) > 500 and chance.random() < 0.9:  # a model hardly ever ends a text
            token = vocabulary.tokenizer.tokenize_str(" word")[0]
            token = token if token in allowed else int(chance.choice(allowed))
        if token in ENDS:
            break
        constraint.advance(token)
        tokens.append(token)
    return vocabulary.tokenizer.decode_str(tokens), constraint.complete


def judge() -> Any:
    """Return the benchmark's judgement, which knows nothing of grammars."""
    path = REPOSITORY / "benchmarks" / "structured.py"
    spec = importlib.util.spec_from_file_location("structured", path)
    assert spec
    assert spec.loader
    module = sys.modules["structured"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.is_valid


is_valid = judge()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_chance_itself_writes_valid_answers(case: dict[str, Any], vocabulary: Vocabulary) -> None:
    held = grammar(response_format=case["format"])
    for seed in range(4):
        for budget in (72, 160):
            text, whole = babble(held, vocabulary, budget, seed)
            assert whole, (budget, text)
            assert is_valid(case["format"], text), (budget, text)


def test_a_budget_that_is_too_small_is_said_and_not_hidden(vocabulary: Vocabulary) -> None:
    constraint = Constraint(
        schema_grammar({"type": "string", "minLength": 400}), vocabulary, budget=5
    )
    for _ in range(5):
        constraint.advance(int(np.flatnonzero(constraint.mask())[0]))
    assert not constraint.complete


def test_a_way_to_the_end_is_found_and_leads_there(vocabulary: Vocabulary) -> None:
    held = schema_grammar(
        {
            "type": "object",
            "properties": {"a": {"type": "string"}, "b": {"enum": ["yes", "no"]}},
            "required": ["a", "b"],
        }
    )
    constraint = Constraint(held, vocabulary)
    begun = vocabulary.tokenizer.tokenize_str('{"a": "half a sen')
    for token in begun:
        assert constraint.mask()[token]
        constraint.advance(token)
    way = constraint.ending()
    assert way is not None
    text = vocabulary.tokenizer.decode_str(begun + way)
    assert json.loads(text)["a"] == "half a sen"
    assert not constraint.finished


def test_patterns_that_wander_still_end(vocabulary: Vocabulary) -> None:
    for pattern in ("[ab]+c{3}", "(foo|bar)*end", "a{40}", "é+!"):
        held = grammar(response_format={"type": "regex", "pattern": pattern})
        for seed in range(3):
            text, whole = babble(held, vocabulary, 70, seed)
            assert whole, (pattern, text)
            assert re.fullmatch(pattern, text), (pattern, text)


def test_an_answer_ends_where_nothing_can_follow(vocabulary: Vocabulary) -> None:
    constraint = Constraint(schema_grammar({"const": "yes"}), vocabulary, budget=20)
    for token in vocabulary.tokenizer.tokenize_str('"yes"'):
        assert not constraint.finished
        constraint.advance(token)
    assert constraint.finished
    assert constraint.complete


def test_a_token_that_the_mask_holds_back_is_an_error(vocabulary: Vocabulary) -> None:
    constraint = Constraint(schema_grammar({"type": "integer"}), vocabulary)
    with pytest.raises(UaitError, match="does not fit"):
        constraint.advance(vocabulary.tokenizer.tokenize_str("x")[0])


def test_a_mask_has_a_column_for_every_logit(model_cache: Path, vocabulary: Vocabulary) -> None:
    folder = next((model_cache / "smollm2-135m-instruct").glob("*/tokenizer.json")).parent
    wide = Vocabulary.load(folder, size=vocabulary.size + 128, ends=ENDS)
    mask = Constraint(schema_grammar({"type": "string"}), wide).mask()
    assert mask.shape == (vocabulary.size + 128,)
    assert not mask[vocabulary.size :].any()


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "contains": {"type": "string"}}, "contains"),
        ({"if": {"type": "string"}, "then": {"maxLength": 2}}, "if"),
        (
            {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}},
            "uniqueItems",
        ),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"$dynamicRef": "#node"}, r"\$dynamicRef"),
        ({"$ref": "https://example.com/schema"}, r"\$ref"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 2}]}, "oneOf"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "format": "klingon"}, "klingon"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "minimum"),
        ({"type": "whatever"}, "whatever"),
        ({"type": "string", "x-guidance": {"lenient": True}, "not": {}}, "not"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(schema: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=named) as refused:
        schema_grammar(schema)
    assert refused.value.extensions["errors"][0]["location"] == "response_format.json_schema"


@pytest.mark.parametrize("pattern", ["[", "(?=a)b", r"(a)\1", "a{3,1}"])
def test_a_pattern_that_cannot_be_enforced_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput, match=r"response_format\.pattern"):
        grammar(response_format={"type": "regex", "pattern": pattern})


def test_free_answers_have_no_grammar() -> None:
    assert grammar_of(request()) is None
    assert grammar_of(request(tools=[WEATHER], tool_choice="none")) is None


def test_fields_that_a_schema_does_not_name_are_not_invented(vocabulary: Vocabulary) -> None:
    held = schema_grammar(
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    )
    for seed in range(5):
        text, _ = babble(held, vocabulary, 60, seed)
        assert set(json.loads(text)) == {"a"}


def test_a_schema_made_of_parts_stays_satisfiable(vocabulary: Vocabulary) -> None:
    parts = [
        {"type": "object", "properties": {name: {"type": "integer"}}, "required": [name]}
        for name in ("a", "b")
    ]
    schema = {"allOf": parts}
    text, whole = babble(schema_grammar(schema), vocabulary, 120, 1)
    assert whole
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(
    "style", [HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, PYTHONIC], ids=lambda style: style.name
)
@pytest.mark.parametrize("choice", ["required", {"name": "weather"}])
def test_forced_calls_can_be_read_back(
    style: ToolStyle, choice: Any, vocabulary: Vocabulary
) -> None:
    asked = request(tools=[WEATHER, CLOCK], tool_choice=choice)
    held = grammar_of(asked, style)
    assert held is not None
    for seed in range(3):
        text, whole = babble(held, vocabulary, 150, seed)
        assert whole, text
        said, calls = read(text, asked.tools, style, new_id=lambda: "call_1")
        assert not said
        assert calls
        for call in calls:
            if call.name == "weather":
                jsonschema.validate(json.loads(call.arguments), WEATHER["parameters"])
            else:
                assert isinstance(choice, str)


@pytest.mark.parametrize("style", [HERMES, LLAMA, MISTRAL, PYTHONIC], ids=lambda style: style.name)
def test_with_a_free_choice_text_stays_free_and_calls_are_held(
    style: ToolStyle, vocabulary: Vocabulary
) -> None:
    held = grammar_of(request(tools=[WEATHER]), style)
    assert held is not None
    tokenize = vocabulary.tokenizer.tokenize_str
    constraint = Constraint(held, vocabulary, budget=30)
    for token in tokenize("It is sunny, I think."):
        assert constraint.mask()[token]
        constraint.advance(token)
    assert constraint.complete
    call = Constraint(held, vocabulary)
    for token in tokenize(style.begin or "{"):
        call.advance(token)
    assert not call.complete
    assert call.mask().sum() < 50


def test_a_call_or_an_answer_in_a_form(vocabulary: Vocabulary) -> None:
    held = grammar(
        tools=[CLOCK],
        response_format={"type": "json_schema", "json_schema": {"enum": ["yes", "no"]}},
    )
    seen = {babble(held, vocabulary, 80, seed)[0].strip()[:5] for seed in range(20)}
    assert seen <= {'"yes"', '"no"', "<tool"}


def test_special_tokens_are_what_opens_a_call(vocabulary: Vocabulary) -> None:
    marker, token = next(iter(vocabulary.special.items()))
    style = ToolStyle("special", marker, "", MISTRAL.parse, MISTRAL.body)
    held = grammar_of(request(tools=[WEATHER], tool_choice="required"), style)
    assert held is not None
    assert np.flatnonzero(Constraint(held, vocabulary).mask()).tolist() == [token]


def test_calls_that_cannot_be_forced_are_refused() -> None:
    with pytest.raises(InvalidInput, match="tool_choice"):
        grammar_of(request(tools=[WEATHER], tool_choice="required"), GEMMA)
    assert grammar_of(request(tools=[WEATHER]), GEMMA) is None
    with pytest.raises(InvalidInput, match="no tool is named"):
        grammar_of(request(tools=[WEATHER], tool_choice={"name": "map"}))
    with pytest.raises(InvalidInput, match="no tools"):
        grammar_of(request(tool_choice="required"))
    with pytest.raises(InvalidInput, match=r"tools\.weather\.parameters"):
        grammar_of(request(tools=[{**WEATHER, "parameters": {"type": "object", "not": {}}}]))
    with pytest.raises(InvalidInput, match="must be `object`"):
        grammar_of(request(tools=[{**WEATHER, "parameters": {"type": "string"}}]))


@pytest.mark.parametrize(
    "style", [HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, PYTHONIC], ids=lambda style: style.name
)
def test_a_named_tool_is_called_once(style: ToolStyle, vocabulary: Vocabulary) -> None:
    asked = request(tools=[WEATHER, CLOCK], tool_choice={"name": "clock"})
    held = grammar_of(asked, style)
    assert held is not None
    text, whole = babble(held, vocabulary, 200, 3)
    assert whole
    _, calls = read(text, asked.tools, style, new_id=lambda: "call_1")
    assert [call.name for call in calls] == ["clock"]


def test_a_schema_that_multiplies_itself_is_measured_at_once() -> None:
    links = {f"a{at}": {"allOf": [{"$ref": f"#/$defs/a{at + 1}"}] * 2} for at in range(60)}
    schema = {"$ref": "#/$defs/a0", "$defs": {**links, "a60": {"type": "integer"}}}
    assert growth(schema) > 0


@pytest.mark.parametrize(
    "form",
    [
        {"type": "regex", "pattern": "(a{1000}){1000}"},
        {
            "type": "json_schema",
            "json_schema": {
                "type": "object",
                "properties": {f"p{at}": {"type": "string"} for at in range(3000)},
            },
        },
    ],
    ids=["pattern", "schema"],
)
def test_what_is_too_large_to_be_followed_is_refused_before_anything_is_made(
    form: dict[str, Any], vocabulary: Vocabulary
) -> None:
    with pytest.raises(InvalidInput, match="too large"):
        Constraint(grammar(response_format=form), vocabulary, budget=60)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 100_000},
        {"type": "string", "pattern": "^(.*a.{20}b)$"},
        {"type": "array", "minItems": 100_000, "items": {"type": "integer"}},
    ],
    ids=["text", "pattern", "list"],
)
def test_an_end_that_is_too_far_is_given_up_soon(
    schema: dict[str, Any], vocabulary: Vocabulary
) -> None:
    constraint = Constraint(schema_grammar(schema), vocabulary, budget=60)
    began = time.thread_time()
    for _ in range(20):
        constraint.advance(int(np.flatnonzero(constraint.mask())[0]))
    assert time.thread_time() - began < 5
    assert not constraint.complete
