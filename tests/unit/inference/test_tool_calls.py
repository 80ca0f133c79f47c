"""Calls are read from what models write, in every form, and nothing of an answer is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uait_server_ext.inference.models import ToolCall, ToolDefinition
from uait_server_ext.inference.tool_calls import (
    GEMMA,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    PYTHONIC,
    CallFilter,
    ToolStyle,
    read,
    style_of,
)

TOOLS = [ToolDefinition(name=name) for name in ("get_weather", "search", "add")]
STYLES = [HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, PYTHONIC, GEMMA]


def ids() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"call_{next(numbers)}"


def calls_in(text: str, style: ToolStyle) -> tuple[str, list[tuple[str, Any]]]:
    said, calls = read(text, TOOLS, style, new_id=ids())
    return said, [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize(
    ("style", "text", "said", "calls"),
    [
        (
            HERMES,
            'Let me look.\n<tool_call>\n{"name": "get_weather", "arguments": '
            '{"city": "Paris"}}\n</tool_call>',
            "Let me look.",
            [("get_weather", {"city": "Paris"})],
        ),
        (
            HERMES,
            '<tool_call>\n{"name": "search", "arguments": {"q": "a"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "search", "arguments": {"q": "b"}}\n</tool_call>',
            "",
            [("search", {"q": "a"}), ("search", {"q": "b"})],
        ),
        (
            HERMES,  # the end marker is often taken for a stop token, and missing
            '<tool_call>{"name": "search", "arguments": "{\\"q\\": \\"</b>\\"}"}',
            "",
            [("search", {"q": "</b>"})],
        ),
        (
            LLAMA,
            '{"name": "get_weather", "parameters": {"city": "San Francisco", "unit": "F"}}',
            "",
            [("get_weather", {"city": "San Francisco", "unit": "F"})],
        ),
        (
            LLAMA,
            '<|python_tag|>{"type": "function", "name": "add", "parameters": {"a": 1}}; '
            '{"name": "add", "parameters": {"a": 2}}',
            "",
            [("add", {"a": 1}), ("add", {"a": 2})],
        ),
        (
            MISTRAL,
            '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1, "b": [2]}}, '
            '{"name": "search", "arguments": {}, "id": "abcdefghi"}]',
            "",
            [("add", {"a": 1, "b": [2]}), ("search", {})],
        ),
        (
            MISTRAL_NAMED,
            'Sure.[TOOL_CALLS]get_weather[ARGS]{"city": "Lyon"}',
            "Sure.",
            [("get_weather", {"city": "Lyon"})],
        ),
        (
            MISTRAL_NAMED,
            '[TOOL_CALLS]add[CALL_ID]x1[ARGS]{"a": 1}[TOOL_CALLS]add[ARGS]{"a": 2}',
            "",
            [("add", {"a": 1}), ("add", {"a": 2})],
        ),
        (
            PYTHONIC,
            '<|tool_call_start|>[get_weather(city="Oslo"), add(a=1, b=-2.5, ok=true)]'
            "<|tool_call_end|>I look.",
            "I look.",
            [("get_weather", {"city": "Oslo"}), ("add", {"a": 1, "b": -2.5, "ok": True})],
        ),
        (
            GEMMA,
            "<start_function_call>call:get_weather{city:<escape>Rome, {IT}<escape>,days:3,"
            "when:{from:1,exact:false},tags:[<escape>a<escape>,2]}<end_function_call>",
            "",
            [
                (
                    "get_weather",
                    {
                        "city": "Rome, {IT}",
                        "days": 3,
                        "when": {"from": 1, "exact": False},
                        "tags": ["a", 2],
                    },
                )
            ],
        ),
    ],
)
def test_calls_as_models_write_them(
    style: ToolStyle, text: str, said: str, calls: list[tuple[str, Any]]
) -> None:
    assert calls_in(text, style) == (said, calls)


@pytest.mark.parametrize(
    ("style", "text"),
    [
        (HERMES, '<tool_call>{"name": "search", "arguments": {"q": </tool_call>'),
        (HERMES, '<tool_call>{"name": "format_disk", "arguments": {}}</tool_call>'),
        (HERMES, "I could use <tool_call> here."),
        (HERMES, '<tool_call>{"name": "search", "arguments": [1]}</tool_call>'),
        (LLAMA, '{"answer": 42}'),
        (LLAMA, "[1, 2, 3]"),
        (LLAMA, "{" * 5000),
        (MISTRAL, "[TOOL_CALLS] nothing"),
        (MISTRAL_NAMED, "[TOOL_CALLS]add[ARGS]{"),
        (PYTHONIC, "<|tool_call_start|>[add(1, 2)]<|tool_call_end|>"),
        (PYTHONIC, "<|tool_call_start|>[add(a=__import__('os'))]<|tool_call_end|>"),
        (PYTHONIC, "<|tool_call_start|>[add(**x)]<|tool_call_end|>"),
        (PYTHONIC, "<|tool_call_start|>" + "(" * 3000 + "<|tool_call_end|>"),
        (GEMMA, "<start_function_call>call:add{a:<escape>1}<end_function_call>"),
        (GEMMA, "<start_function_call>call:add{a:[1<end_function_call>"),
    ],
)
def test_what_is_no_call_stays_text(style: ToolStyle, text: str) -> None:
    assert calls_in(text, style) == (text, [])
    shown = CallFilter(TOOLS, style)
    pieces = [shown.push(character) for character in text]
    rest, calls = shown.finish(ids())
    assert "".join(pieces) + rest == text
    assert not calls


PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), VALUES, max_size=4)


def written(style: ToolStyle, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """Return calls as the templates of a style write them."""
    if style is HERMES:
        return "\n".join(
            f"<tool_call>\n{json.dumps({'name': name, 'arguments': given})}\n</tool_call>"
            for name, given in calls
        )
    if style is LLAMA:
        return "; ".join(json.dumps({"name": name, "parameters": given}) for name, given in calls)
    if style is MISTRAL:
        return "[TOOL_CALLS]" + json.dumps([{"name": n, "arguments": g} for n, g in calls])
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(given)}" for name, given in calls)


@PATIENT
@given(
    st.sampled_from([HERMES, LLAMA, MISTRAL, MISTRAL_NAMED]),
    st.lists(
        st.tuples(st.sampled_from([t.name for t in TOOLS]), ARGUMENTS), min_size=1, max_size=3
    ),
)
def test_what_was_written_is_read(style: ToolStyle, calls: list[tuple[str, Any]]) -> None:
    text = written(style, calls)
    if any(marker in json.dumps(calls) for marker in ("</tool_call>", "[TOOL_CALLS]", "[ARGS]")):
        return
    assert calls_in(text, style) == ("", calls)


@PATIENT
@given(st.sampled_from(STYLES), st.text(max_size=80), st.integers(1, 7))
def test_a_stream_loses_nothing(style: ToolStyle, text: str, size: int) -> None:
    shown = CallFilter(TOOLS, style)
    pieces = [shown.push(text[at : at + size]) for at in range(0, len(text), size)]
    rest, calls = shown.finish(ids())
    assert calls or "".join(pieces) + rest == text


@PATIENT
@given(st.sampled_from(STYLES), st.text(alphabet="[]{}()<>|\"':,abcTOL_=\\/ \n", max_size=60))
def test_no_text_breaks_a_parser(style: ToolStyle, text: str) -> None:
    read(f"{style.begin}{text}{style.end}", TOOLS, style, new_id=ids())


def test_a_call_is_never_shown_and_the_text_before_it_is_at_once() -> None:
    shown = CallFilter(TOOLS, HERMES)
    assert shown.push("I look <") == "I look "
    assert shown.push("b>") == "<b>"
    assert shown.push('<tool_call>{"name": "search",') == ""
    assert shown.push(' "arguments": {}}</tool_call> done') == ""
    rest, calls = shown.finish(ids())
    assert calls == [ToolCall(id="call_1", name="search", arguments="{}")]
    assert rest.strip() == "done"


@pytest.mark.parametrize(
    ("template", "style"),
    [
        ("{{ messages }}", HERMES),
        ("{% if tools %}<tools></tools><tool_call>{{ tool_call.name }}", HERMES),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", MISTRAL),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]x[ARGS]", MISTRAL_NAMED),
        ('{% if tools %}{"name": x, "parameters": y}', LLAMA),
        ("{% if tools %}<|tool_list_start|>", PYTHONIC),
        ("{% if tools %}<start_function_call>call:", GEMMA),
    ],
)
def test_a_style_is_known_by_the_template(template: str, style: ToolStyle) -> None:
    assert style_of(template) is style
    assert style_of(None) is HERMES


def test_other_styles_are_read_by_the_parsers_of_mlx_lm() -> None:
    pytest.importorskip("mlx_lm.tool_parsers.qwen3_coder")
    style = style_of("{% if tools %}<tool_call>\n<function=")
    assert style.name == "qwen3_coder"
    text = (
        "<tool_call>\n<function=search>\n<parameter=q>\ncats\n</parameter>\n</function>\n"
        "</tool_call>"
    )
    assert calls_in(text, style) == ("", [("search", {"q": "cats"})])
    assert calls_in("<tool_call>broken</tool_call>", style)[1] == []
