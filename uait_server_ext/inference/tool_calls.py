"""Tool calls as chat models write them: how calls are forced, and read back from the text.

============== =================================================================== ======
style          what a call looks like                                              forced
============== =================================================================== ======
hermes         <tool_call>{"name": ..., "arguments": {...}}</tool_call> (Qwen)     yes
llama          {"name": ..., "parameters": {...}} (Llama 3)                        yes
mistral        [TOOL_CALLS][{"name": ..., "arguments": {...}}]                     yes
mistral-named  [TOOL_CALLS]name[ARGS]{...}                                         yes
pythonic       <|tool_call_start|>[name(key="value")]<|tool_call_end|> (LFM2)      yes
gemma          <start_function_call>call:name{key:<escape>value<escape>}           no
other          whatever a parser of mlx_lm reads, where mlx_lm is installed        no
============== =================================================================== ======

A model whose template knows no tools is told of them in words (`prompt.explain_tools`) and writes
`hermes`.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uait_server_ext.inference.models import ToolCall, ToolDefinition

MORE_CALLS = 7  # that may follow the first in one answer
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

Found = tuple[str, dict[str, Any]]
Parse = Callable[[str, Sequence[ToolDefinition]], list[Found]]
Schemas = Mapping[str, Mapping[str, Any]]
Rules = Callable[[Schemas, int], str]


class NotACall(ValueError):
    """A text that begins like a call cannot be read as one."""


@dataclass(frozen=True)
class ToolStyle:
    """How one family of models writes calls.

    Attributes:
        begin: what opens the calls; empty where a call is the whole answer.
        end: what closes one call, or all of them; may be empty.
        body: the grammar of what follows `begin`, as rule `body`; none where calls cannot be
            forced.
        args: what stands between a name and its arguments.
    """

    name: str
    begin: str
    end: str
    parse: Parse
    body: Rules | None = None
    args: str = ""

    @property
    def markers(self) -> dict[str, str]:
        """Return the texts that may be one special token of a model, by their rule in `body`."""
        texts = {"begin": self.begin, "end": self.end, "args": self.args}
        return {rule: text for rule, text in texts.items() if text}

    def grammar(
        self, arguments: Schemas, *, forced: bool, answer: str | None, once: bool = False
    ) -> str | None:
        """Return the grammar of an answer that may call these tools; None where it cannot be had.

        Args:
            arguments: the JSON schema of each tool's arguments.
            forced: it must call one.
            once: it may call no more than one.
            answer: the grammar of what it may say instead, as rule `answer`; free text where None.
        """
        if self.body is None:
            return None
        body = self.body(arguments, 0 if once else MORE_CALLS)
        if forced:
            return f"start: {'begin ' if self.begin else ''}body\n{body}"
        if answer is not None:
            return f"start: {'begin ' if self.begin else ''}body | answer\n{body}\n{answer}"
        if not self.begin:
            return f"start: SAID | body\nSAID: /([^{{](.|\\n)*)?/\n{body}"
        return f"start: SAID | opening body\nSAID: /(.|\\n)*/\n{body}"


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": JSON_STYLE})


def _object(name: str, key: str, schema: Mapping[str, Any]) -> str:
    head = json.dumps(f'{{"name": {json.dumps(name)}, "{key}": ')
    return f'{head} {_json(schema)} "}}"'


def _calls(objects: Iterator[str]) -> str:
    return "call: " + " | ".join(objects)


def _repeated(rule: str, most: int) -> str:
    return f"({rule}){{0,{most}}}" if most else ""


def _hermes(arguments: Schemas, more: int) -> str:
    calls = _calls(_object(name, "arguments", schema) for name, schema in arguments.items())
    others = _repeated('"\\n" begin "\\n" call "\\n" end', more)
    return f'body: "\\n" call "\\n" end {others}\n{calls}'


def _llama(arguments: Schemas, more: int) -> str:
    calls = _calls(_object(name, "parameters", schema) for name, schema in arguments.items())
    return f"body: call\n{calls}"


def _mistral(arguments: Schemas, more: int) -> str:
    calls = _calls(_object(name, "arguments", schema) for name, schema in arguments.items())
    others = _repeated('", " call', more)
    return f'body: "[" call {others} "]"\n{calls}'


def _mistral_named(arguments: Schemas, more: int) -> str:
    calls = _calls(f"{json.dumps(name)} args {_json(schema)}" for name, schema in arguments.items())
    return f"body: call {_repeated('begin call', more)}\n{calls}"


def _pythonic(arguments: Schemas, more: int) -> str:
    calls = _calls(f'"{name}(" {_keywords(schema)} ")"' for name, schema in arguments.items())
    others = _repeated('", " call', more)
    return f'body: "[" call {others} "]" end\n{calls}'


def _keywords(schema: Mapping[str, Any]) -> str:
    """Return the grammar of `a=1, b="x"`: what is required first, then what else is given."""
    fields = schema.get("properties", {})
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    required = [name for name in schema.get("required", []) if name in fields]
    values = {
        name: _json({**shared, **sub}) if isinstance(sub, Mapping) else _json({})
        for name, sub in fields.items()
    }
    given = {name: f"{json.dumps(name + '=')} {value}" for name, value in values.items()}
    optional = [given[name] for name in fields if name not in required]
    if required:
        first = ' ", " '.join(given[name] for name in required)
        return " ".join((first, *(f'(", " {one})?' for one in optional)))
    starts = [
        " ".join((one, *(f'(", " {other})?' for other in optional[at + 1 :])))
        for at, one in enumerate(optional)
    ]
    return f"({' | '.join(starts)})?" if starts else ""


def _read_objects(text: str, tools: Sequence[ToolDefinition]) -> list[Found]:
    """Read one or several JSON objects with a name and arguments, whatever stands between."""
    decoder = json.JSONDecoder()
    found: list[Found] = []
    at = 0
    while (at := _next_value(text, at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise NotACall("the JSON of a call is broken") from error
        found += [_call(one) for one in (value if isinstance(value, list) else [value])]
    return found


def _next_value(text: str, at: int) -> int:
    starts = [place for sign in "[{" if (place := text.find(sign, at)) >= 0]
    return min(starts, default=-1)


def _call(value: Any) -> Found:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise NotACall("a call has no name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise NotACall("the arguments of a call are broken JSON") from error
    if not isinstance(arguments, dict):
        raise NotACall("the arguments of a call are no object")
    return value["name"], arguments


NAMED = re.compile(r"\s*(?:\[TOOL_CALLS\])?\s*([\w.-]+)\s*(?:\[CALL_ID\][\w-]*)?\s*\[ARGS\]\s*")


def _read_mistral(text: str, tools: Sequence[ToolDefinition]) -> list[Found]:
    if "[ARGS]" not in text:
        return _read_objects(text, tools)
    decoder = json.JSONDecoder()
    found: list[Found] = []
    at = 0
    while (head := NAMED.match(text, at)) is not None:
        try:
            arguments, at = decoder.raw_decode(text, head.end())
        except (ValueError, RecursionError) as error:
            raise NotACall("the arguments of a call are broken JSON") from error
        found.append(_call({"name": head.group(1), "arguments": arguments}))
    if not found or text[at:].strip():
        raise NotACall("no name[ARGS] begins here")
    return found


CONSTANTS = {"true": True, "false": False, "null": None}


class _Literals(ast.NodeTransformer):
    """Reads JSON's constants, which templates put into calls, as Python's."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in CONSTANTS:
            raise NotACall("an argument is no literal")
        return ast.copy_location(ast.Constant(CONSTANTS[node.id]), node)


def _read_pythonic(text: str, tools: Sequence[ToolDefinition]) -> list[Found]:
    try:
        parsed = ast.parse(text.strip(), mode="eval").body
        nodes = parsed.elts if isinstance(parsed, ast.List) else [parsed]
        return [_python_call(node) for node in nodes]
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError) as error:
        raise NotACall("this is no list of calls") from error


def _python_call(node: ast.expr) -> Found:
    if not isinstance(node, ast.Call) or node.args:
        raise NotACall("a call has arguments without names")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise NotACall("a call has arguments without names")
        value = ast.literal_eval(_Literals().visit(keyword.value))
        arguments[keyword.arg] = json.loads(json.dumps(value, allow_nan=False))
    return ast.unparse(node.func), arguments


GEMMA_CALL = re.compile(r"call:([\w.-]+)\{")
GEMMA_KEY = re.compile(r"\s*,?\s*([\w.-]+):")
ESCAPE = "<escape>"


def _read_gemma(text: str, tools: Sequence[ToolDefinition]) -> list[Found]:
    head = GEMMA_CALL.search(text)
    if head is None:
        raise NotACall("no call:name{ is here")
    arguments, at = _gemma_fields(text, head.end())
    if text[at:].strip():
        raise NotACall("something follows the call")
    return [(head.group(1), arguments)]


def _gemma_fields(text: str, at: int) -> tuple[dict[str, Any], int]:
    fields: dict[str, Any] = {}
    while not text.startswith("}", at):
        key = GEMMA_KEY.match(text, at)
        if key is None:
            raise NotACall("an argument has no name")
        fields[key.group(1)], at = _gemma_value(text, key.end())
    return fields, at + 1


def _gemma_value(text: str, at: int) -> tuple[Any, int]:
    if text.startswith(ESCAPE, at):
        end = text.find(ESCAPE, at + len(ESCAPE))
        if end < 0:
            raise NotACall("a text does not end")
        return text[at + len(ESCAPE) : end], end + len(ESCAPE)
    if text.startswith("{", at):
        return _gemma_fields(text, at + 1)
    if text.startswith("[", at):
        items: list[Any] = []
        at += 1
        while not text.startswith("]", at):
            if at >= len(text):
                raise NotACall("a list does not end")
            item, at = _gemma_value(text, at + text.startswith(",", at))
            items.append(item)
        return items, at + 1
    plain = re.compile(r"[^,{}\[\]]+").match(text, at)
    if plain is None:
        raise NotACall("an argument has no value")
    try:
        return json.loads(plain.group()), plain.end()
    except ValueError:
        return plain.group().strip(), plain.end()


HERMES = ToolStyle("hermes", "<tool_call>", "</tool_call>", _read_objects, _hermes)
LLAMA = ToolStyle("llama", "", "", _read_objects, _llama)
MISTRAL = ToolStyle("mistral", "[TOOL_CALLS]", "", _read_mistral, _mistral)
MISTRAL_NAMED = ToolStyle(
    "mistral-named", "[TOOL_CALLS]", "", _read_mistral, _mistral_named, "[ARGS]"
)
PYTHONIC = ToolStyle(
    "pythonic", "<|tool_call_start|>", "<|tool_call_end|>", _read_pythonic, _pythonic
)
GEMMA = ToolStyle("gemma", "<start_function_call>", "<end_function_call>", _read_gemma)

# What in a chat template gives a family away, the telling ones first.
TELLTALES: tuple[tuple[str, ToolStyle | str], ...] = (
    ("<minimax:tool_call>", "minimax_m2"),
    ("<|tool_call>", "gemma4"),
    ("<start_function_call>", GEMMA),
    ("<longcat_tool_call>", "longcat"),
    ("<arg_key>", "glm47"),
    ("<|tool_list_start|>", PYTHONIC),
    ("<|tool_call_start|>", PYTHONIC),
    ("<tool_call>\\n<function=", "qwen3_coder"),
    ("<tool_call>\n<function=", "qwen3_coder"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ('<function name="', "minicpm5"),
    ("[ARGS]", MISTRAL_NAMED),
    ("[TOOL_CALLS]", MISTRAL),
    ("<tool_call>", HERMES),
    ("<|python_tag|>", LLAMA),
    ('"parameters":', LLAMA),
)


def style_of(template: str | None) -> ToolStyle:
    """Return how a model with this chat template writes calls; `hermes` where it knows no tools.

    That is also said of a form that only a parser of mlx_lm reads, where that is not installed.
    """
    if template is None or "tools" not in template:
        return HERMES
    found = next((style for sign, style in TELLTALES if sign in template), HERMES)
    return _borrowed(found) if isinstance(found, str) else found


def _borrowed(name: str) -> ToolStyle:
    """Return the style of a parser that mlx_lm brings; it is read, and cannot be forced."""
    try:
        module: Any = importlib.import_module(f"mlx_lm.tool_parsers.{name}")
    except ImportError:
        return HERMES

    def parse(text: str, tools: Sequence[ToolDefinition]) -> list[Found]:
        try:
            read = module.parse_tool_call(text, [definition(tool) for tool in tools])
        except Exception as error:  # whatever a parser makes of a model's text
            raise NotACall("the call cannot be read") from error
        return [_call(one) for one in (read if isinstance(read, list) else [read])]

    return ToolStyle(name, module.tool_call_start, module.tool_call_end, parse)


def definition(tool: ToolDefinition) -> dict[str, Any]:
    """Return a tool as chat templates want it."""
    return {"type": "function", "function": tool.model_dump()}


def read(
    text: str, tools: Sequence[ToolDefinition], style: ToolStyle, *, new_id: Callable[[], str]
) -> tuple[str, list[ToolCall]]:
    """Split an answer into what it says and the calls that it makes.

    What begins like a call and is none, or calls a tool that there is not, is text.
    """
    calls: list[ToolCall] = []
    said: list[str] = []
    for part, inside in _parts(text, style):
        found = _found(part, tools, style) if inside else None
        if found is None:
            said.append(f"{style.begin}{part}{style.end}" if inside else part)
            continue
        calls += [
            ToolCall(id=new_id(), name=name, arguments=json.dumps(arguments, ensure_ascii=False))
            for name, arguments in found
        ]
    if not calls:
        return text, []
    return "".join(said).strip(), calls


def _found(part: str, tools: Sequence[ToolDefinition], style: ToolStyle) -> list[Found] | None:
    try:
        found = style.parse(part, tools)
    except (NotACall, RecursionError):
        return None
    names = {tool.name for tool in tools}
    return found if found and all(name in names for name, _ in found) else None


def _parts(text: str, style: ToolStyle) -> Iterator[tuple[str, bool]]:
    """Yield the parts of an answer, each with whether it stands where calls do."""
    if not style.begin:
        bare = text.strip().removeprefix("<|python_tag|>")
        yield (bare, True) if bare.startswith(("{", "[")) else (text, False)
        return
    at = 0
    while (start := text.find(style.begin, at)) >= 0:
        yield text[at:start], False
        start += len(style.begin)
        end = text.find(style.end, start) if style.end else -1
        yield (text[start:] if end < 0 else text[start:end]), True
        at = len(text) if end < 0 else end + len(style.end)
    yield text[at:], False


class CallFilter:
    """Passes an answer on while it is written, without what is, or may become, a call."""

    def __init__(self, tools: Sequence[ToolDefinition], style: ToolStyle) -> None:
        self._tools = tools
        self._style = style
        self._all = ""
        self._shown = 0

    def push(self, text: str) -> str:
        """Take the next piece; return what may be shown by now."""
        self._all += text
        return self._show(self._end_of_text())

    def finish(self, new_id: Callable[[], str]) -> tuple[str, list[ToolCall]]:
        """Return what may be shown yet, and the calls."""
        said, calls = read(self._all, self._tools, self._style, new_id=new_id)
        if not calls:
            return self._show(len(self._all)), []
        shown = self._all[: self._shown].strip()
        return said[len(shown) :] if said.startswith(shown) else "", calls

    def _show(self, end: int) -> str:
        shown, self._shown = self._all[self._shown : max(end, self._shown)], max(end, self._shown)
        return shown

    def _end_of_text(self) -> int:
        begin = self._style.begin
        if not begin:
            start = self._all.lstrip()
            held = not start or start.startswith(("{", "[", "<|python_tag|>"))
            return 0 if held or "<|python_tag|>".startswith(start) else len(self._all)
        if (at := self._all.find(begin)) >= 0:
            return at
        longest = min(len(begin) - 1, len(self._all))
        kept = next((n for n in range(longest, 0, -1) if self._all.endswith(begin[:n])), 0)
        return len(self._all) - kept
