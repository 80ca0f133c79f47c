"""Structured output: what an answer must look like, and the mask that makes every token keep to it.

`grammar_of` turns a request into a `Grammar`, or refuses what cannot be enforced. A `Constraint`
follows one answer: which tokens may come next (llguidance); and when the tokens that are left run
short, it leads to a valid end (`closing`):

=================== ==============================================================
room left           what may come next
=================== ==============================================================
ample               whatever the grammar accepts
for no new branch   what goes on with a word or number, or is the next step to the end
for no new word     the next step to the end
=================== ==============================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer, regex_to_lark

from uait_server_ext.errors import InvalidInput, UaitError
from uait_server_ext.inference.closing import Closing, Ranks, mask_of
from uait_server_ext.inference.models import (
    ChatRequest,
    JsonObject,
    JsonSchema,
    NamedTool,
    PlainText,
    Regex,
    ResponseFormat,
    ToolDefinition,
)
from uait_server_ext.inference.schema_rules import closed, growth, reason
from uait_server_ext.inference.tool_calls import HERMES, JSON_STYLE, ToolStyle

WORD_ROOM = 8  # tokens that one more token of a word or number may cost at the end
ENVELOPE_TOKENS = 24  # of a call around its arguments

LITERAL = re.compile(r"[A-Za-z0-9 ]{2,}")

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like.

    Attributes:
        lark: llguidance's grammar, without the rules of `markers`.
        markers: texts that may be one special token of a model, by their rule in `lark`.
        free: the answer may be any text, or begin with some before the first marker.
        schema: the JSON schema where the whole answer is one JSON value, for engines that bring
            an enforcement of their own.
        pattern: the regular expression where that is all, likewise.
        branch: tokens that one step may add to the shortest way to the end; an estimate.
    """

    lark: str
    markers: Mapping[str, str] = field(default_factory=dict)
    free: bool = False
    schema: Mapping[str, Any] | None = None
    pattern: str | None = None
    branch: int = 16

    def text(self, special: Mapping[str, int]) -> str:
        """Return the whole grammar for a vocabulary with these special tokens."""
        rules = [self.lark]
        for rule, marker in self.markers.items():
            token = special.get(marker)
            literal = json.dumps(marker) if token is None else f"<[{token}]>"
            rules.append(f"{rule}: {literal}")
            if self.free and rule == "begin":
                # Lazy: the marker ends what is said before it, wherever it comes first.
                rules.append(
                    f"opening[lazy]: /(.|\\n)*/ {literal}"
                    if token is None
                    else f"opening: SAID {literal}"
                )
        return "\n".join(rules)


def grammar_of(request: ChatRequest, style: ToolStyle = HERMES) -> Grammar | None:
    """Return what the answer to a request must look like; None where it is free.

    Raises:
        InvalidInput: something in it cannot be enforced; the message names it.
    """
    answer = _answer(request.response_format)
    tools = _callable(request)
    if not tools:
        return answer
    forced = request.tool_choice != "auto"
    arguments = {tool.name: _arguments(tool) for tool in tools}
    instead = answer.lark.replace("start:", "answer:", 1) if answer is not None else None
    once = isinstance(request.tool_choice, NamedTool)
    lark = style.grammar(arguments, forced=forced, answer=instead, once=once)
    if lark is None:
        if forced:
            raise _refused(
                "tool_choice", f"this model's calls ({style.name}) cannot be forced. Use `auto`."
            )
        return answer
    branch = max(map(growth, arguments.values())) + ENVELOPE_TOKENS
    grammar = Grammar(lark, style.markers, not forced and answer is None, branch=branch)
    _check(grammar.text({}), "tools")
    return grammar


def _callable(request: ChatRequest) -> list[ToolDefinition]:
    """Return the tools that the answer may call."""
    choice = request.tool_choice
    if choice == "none":
        return []
    if choice != "auto" and not request.tools:
        raise _refused("tool_choice", "it asks for a call, and there are no tools.")
    if not isinstance(choice, NamedTool):
        return request.tools
    tools = [tool for tool in request.tools if tool.name == choice.name]
    if not tools:
        raise _refused("tool_choice", f"no tool is named {choice.name!r}.")
    return tools


def _arguments(tool: ToolDefinition) -> dict[str, Any]:
    where = f"tools.{tool.name}.parameters"
    if tool.parameters.get("type", "object") != "object":
        raise _refused(where, "the arguments of a tool are an object: `type` must be `object`.")
    schema = closed({"type": "object", **tool.parameters})
    _check(_json_lark(schema), where)
    return schema


def _answer(wanted: ResponseFormat) -> Grammar | None:
    match wanted:
        case PlainText():
            return None
        case JsonObject():
            schema: dict[str, Any] = {"type": "object"}
        case JsonSchema():
            schema = closed(wanted.json_schema)
        case Regex():
            lark = f"start: /{regex_to_lark(wanted.pattern, '')}/"
            _check(lark, "response_format.pattern")
            return Grammar(lark, pattern=wanted.pattern, branch=len(wanted.pattern))
    lark = _json_lark(schema)
    _check(lark, "response_format.json_schema")
    return Grammar(lark, schema=schema, branch=growth(schema))


def _json_lark(schema: Mapping[str, Any]) -> str:
    return f"start: %json {json.dumps({**schema, 'x-guidance': JSON_STYLE})}"


def _check(lark: str, where: str) -> None:
    message = LLMatcher.validate_grammar(lark)
    if message and not message.startswith("WARNING"):
        raise _refused(where, reason(message))


def _refused(where: str, message: str) -> InvalidInput:
    errors = [{"location": where, "message": message}]
    return InvalidInput(f"{where}: {message}", errors=errors)


class Vocabulary:
    """The tokens of one model, in the form that grammars are matched against; made once a model."""

    def __init__(self, tokenizer_json: str, *, size: int | None, ends: Sequence[int]) -> None:
        """Read `tokenizer.json`; takes half a second.

        Args:
            size: columns of the model's logits, where that is not the number of its tokens.
            ends: the tokens that end an answer.
        """
        self.tokenizer = LLTokenizer(tokenizer_json, n_vocab=size, eos_token=list(ends) or None)
        self.size = self.tokenizer.vocab_size
        added = json.loads(tokenizer_json).get("added_tokens", [])
        self.special = {one["content"]: int(one["id"]) for one in added if one.get("special")}

    @classmethod
    def load(cls, folder: Path, *, size: int | None = None, ends: Sequence[int]) -> Vocabulary:
        """Read the tokenizer of a model's folder.

        Raises:
            InvalidInput: the model brings no `tokenizer.json`, so its answers cannot be held to
                a form.
        """
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise InvalidInput(
                "This model has no tokenizer.json, so its answers cannot be held to a form. "
                "Choose another model, or leave out response_format and tool_choice."
            )
        return cls(file.read_text("utf-8"), size=size, ends=ends)

    @cached_property
    def ranks(self) -> Ranks:
        """Return how soon each token leads to an end."""
        return Ranks.of(self.tokenizer)


class Constraint:
    """Follows one answer token by token and says which may come next."""

    def __init__(
        self, grammar: Grammar, vocabulary: Vocabulary, *, budget: int | None = None
    ) -> None:
        """Begin an answer of at most `budget` tokens.

        Raises:
            InvalidInput: the grammar is too large to be followed.
        """
        self._vocabulary = vocabulary
        self._matcher = LLMatcher(
            vocabulary.tokenizer, grammar.text(vocabulary.special), log_level=0
        )
        self._try()
        self._left = budget
        self._free = grammar.free
        self._branch = grammar.branch
        words = LITERAL.findall(grammar.pattern or "")
        self._closing = Closing(
            vocabulary.ranks,
            vocabulary.size,
            structured=grammar.pattern is None,
            words=[vocabulary.tokenizer.tokenize_str(word) for word in words[:16]],
        )
        self._away: int | None = 0 if self.complete else None  # tokens to the end, at most
        self._steered = False
        self._lost = False

    @property
    def finished(self) -> bool:
        """Whether nothing may follow but an end."""
        return self._matcher.is_stopped()

    @property
    def complete(self) -> bool:
        """Whether the answer is valid as it stands."""
        return self._matcher.is_accepting()

    @property
    def steered(self) -> bool:
        """Whether the answer was led to its end because the tokens ran short."""
        return self._steered

    def mask(self) -> Mask:
        """Return which tokens may come next, shape (n_vocab,); at least one may.

        Raises:
            InvalidInput: the grammar has grown too large to be followed.
        """
        allowed = mask_of(self._matcher, self._vocabulary.size)
        self._check()
        if self._left is None or self._lost or not self._is_short(self._branch + WORD_ROOM):
            return allowed
        way = self._closing.find(self._matcher)
        if way is None:
            self._lost = True
            return allowed
        self._away = len(way)
        if (not way and self._free) or not self._is_short(self._branch + WORD_ROOM):
            return allowed
        narrow = np.zeros_like(allowed)
        if not self._is_short(WORD_ROOM):
            narrow = allowed & self._vocabulary.ranks.plain
        narrow[way[0] if way else self._vocabulary.tokenizer.eos_tokens] = True
        self._steered = self._steered or not narrow[allowed].all()
        return narrow

    def advance(self, token: int) -> None:
        """Hear which token came; it must be one that the mask lets pass.

        Raises:
            UaitError: it is not.
        """
        if not self._matcher.validate_tokens([token]) or not self._matcher.consume_token(token):
            self._check()
            raise UaitError(
                f"Token {token} does not fit the form that the answer must have. Report this with "
                "the schema that was sent."
            )
        self._closing.passed(token)
        if self._left is not None:
            self._left -= 1
        if self._away is not None:
            self._away += self._branch

    def ending(self) -> list[int] | None:
        """Return tokens that lead from here to a valid end; None where none were found."""
        return self._closing.find(self._matcher)

    def _is_short(self, room: int) -> bool:
        """Say whether less than `room` is left besides the way to the end, or it may be so."""
        assert self._left is not None
        return self._away is None or self._left - self._away < room

    def _try(self) -> None:
        """Take one step aside: what is too large to be followed shows at the first."""
        probe = self._matcher.deep_copy()
        allowed = np.flatnonzero(mask_of(probe, self._vocabulary.size))
        if len(allowed) and not probe.is_stopped():
            probe.consume_token(int(allowed[-1]))
        self._check(probe)

    def _check(self, matcher: LLMatcher | None = None) -> None:
        if (matcher or self._matcher).is_error():
            raise InvalidInput(
                "The form that the answer must have is too large to be followed. Simplify it: "
                "fewer alternatives, shorter repetitions."
            )
