"""Turn messages into the tokens a chat model reads, from a tokenizer and a template on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

JOINER = "\u2060"  # word joiner: takes no space and has no meaning, but the marker is one no more


def defuse(messages: list[dict[str, str]], markers: Iterable[str]) -> list[dict[str, str]]:
    """Return messages in which no text passes for a marker of the chat template.

    A document that holds `<|im_end|>` could else end its own message and begin one of the system.
    """
    found = re.compile("|".join(re.escape(marker) for marker in markers if len(marker) > 1))
    if not found.pattern:
        return messages
    return [{**message, "content": found.sub(broken, message["content"])} for message in messages]


def broken(marker: re.Match[str]) -> str:
    """Return a marker that is none: with a character within it that nobody sees."""
    text = marker.group()
    return text[0] + JOINER + text[1:]


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
        template = (folder / "chat_template.jinja").read_text("utf-8")
        self._template = environment.from_string(template)

    def tokens(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the token ids of the messages, up to where the assistant begins to speak."""
        return self.encode(self.text(messages))

    def text(self, messages: list[dict[str, str]]) -> str:
        """Return the messages as the model was taught to see them."""
        return self._template.render(
            messages=defuse(messages, self._markers), add_generation_prompt=True, **self._names
        )

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text as it stands."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids
