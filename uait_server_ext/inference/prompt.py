"""Turn messages into the tokens a chat model reads, and its tokens back into text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from uait_server_ext.errors import InvalidInput

JOINER = "\u2060"  # word joiner: takes no space and has no meaning, but the marker is one no more
BROKEN = "\ufffd"  # what stands for a part of a character
CONTEXT_TOKENS = 4  # of a prompt: enough for a decoder to know whether a space comes first

TOOLS_TEXT = """You may call these tools, described in JSON:
<tools>
{tools}
</tools>
To call one, answer with nothing but:
<tool_call>
{{"name": "the tool's name", "arguments": {{...}}}}
</tool_call>"""
CALL_TEXT = '<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'

Message = dict[str, Any]


def defuse(messages: list[Message], markers: Iterable[str]) -> list[Message]:
    """Return messages, or tools, in which no text passes for a marker of the chat template.

    A document that holds `<|im_end|>` could else end its own message and begin one of the system.
    """
    found = re.compile("|".join(re.escape(marker) for marker in markers if len(marker) > 1))
    return [_defused(message, found) for message in messages] if found.pattern else messages


def _defused(value: Any, found: re.Pattern[str]) -> Any:
    match value:
        case str():
            return found.sub(broken, value)
        case dict():
            return {key: _defused(part, found) for key, part in value.items()}
        case list():
            return [_defused(part, found) for part in value]
    return value


def broken(marker: re.Match[str]) -> str:
    """Return a marker that is none: with a character within it that nobody sees."""
    text = marker.group()
    return text[0] + JOINER + text[1:]


def explain_tools(messages: list[Message], tools: list[Message]) -> list[Message]:
    """Return messages that tell of tools and calls in words, for a template that knows neither."""
    told = [_with_calls_told(message) for message in messages]
    if not tools:
        return told
    described = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = TOOLS_TEXT.format(tools=described)
    if told and told[0]["role"] == "system":
        return [{**told[0], "content": f"{told[0]['content']}\n\n{text}"}, *told[1:]]
    return [{"role": "system", "content": text}, *told]


def _with_calls_told(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = [
        CALL_TEXT.format(
            name=json.dumps(call["function"]["name"]),
            arguments=json.dumps(call["function"]["arguments"], ensure_ascii=False),
        )
        for call in message["tool_calls"]
    ]
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join(filter(None, [message["content"], *calls]))}


class ChatPrompt:
    """The tokenizer and chat template of one model."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        self._names = {name: token for name, token in config.items() if name.endswith("_token")}
        self._markers = [
            token.content
            for token in self._tokenizer.get_added_tokens_decoder().values()
            if token.special
        ]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        file = folder / "chat_template.jinja"
        self.template = file.read_text("utf-8") if file.is_file() else None
        self._compiled = environment.from_string(self.template or "")

    @property
    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        end = self._names.get("eos_token")
        name = end["content"] if isinstance(end, dict) else end  # both are written
        token = self._tokenizer.token_to_id(name) if name else None
        return [] if token is None else [token]

    def tokens(self, messages: list[Message], tools: list[Message] | None = None) -> list[int]:
        """Return the token ids of the messages, up to where the assistant begins to speak."""
        return self.encode(self.text(messages, tools))

    def text(self, messages: list[Message], tools: list[Message] | None = None) -> str:
        """Return the messages as the model was taught to see them.

        Raises ``InvalidInput`` where it was taught none.
        """
        if not self.template:
            raise InvalidInput(
                "This model has no chat template: it only goes on with a text. Ask for a "
                "completion, or choose another model."
            )
        safe, safe_tools = defuse(messages, self._markers), defuse(tools or [], self._markers)
        if not knows_tools(self.template):
            safe, safe_tools = explain_tools(safe, safe_tools), []
        return self._compiled.render(
            messages=safe, tools=safe_tools or None, add_generation_prompt=True, **self._names
        )

    def encode(self, text: str, *, raw: bool = False) -> list[int]:
        """Return the token ids of a text as it stands; a ``raw`` one begins as texts do."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=raw).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without markers and without parts of characters."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text.replace(BROKEN, "")


class TextStream:
    """Turns the tokens of one answer into text as they come; no character comes in parts."""

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        context = list(before[-CONTEXT_TOKENS:])
        self._stream = DecodeStream(ids=context or None, skip_special_tokens=False)

    def push(self, token: int) -> str:
        """Take the next token; return the text that is whole by now, often empty."""
        return self._stream.step(self._tokenizer, token) or ""


def knows_tools(template: str) -> bool:
    """Say whether a chat template shows tools to the model by itself."""
    return re.search(r"\btools\b", template) is not None
