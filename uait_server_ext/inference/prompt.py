"""Turn messages into the tokens a chat model reads, from a tokenizer and a template on disk."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer


class ChatPrompt:
    """The tokenizer and chat template of one model."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        self._names = {name: token for name, token in config.items() if name.endswith("_token")}
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        template = (folder / "chat_template.jinja").read_text("utf-8")
        self._template = environment.from_string(template)

    def tokens(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the token ids of the messages, up to where the assistant begins to speak."""
        return self.encode(self.text(messages))

    def text(self, messages: list[dict[str, str]]) -> str:
        """Return the messages as the model was taught to see them."""
        return self._template.render(messages=messages, add_generation_prompt=True, **self._names)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text as it stands."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids
