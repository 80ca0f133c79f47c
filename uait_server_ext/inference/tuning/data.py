"""Examples to learn from: read, check, split.

A line of a JSON Lines file is a chat or a prompt with its completion::

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"prompt": "…", "completion": "…"}
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from uait_server_ext.errors import InvalidInput, NotFound, TooLarge
from uait_server_ext.storage.files import write_atomic

from .models import DataReport, Duplicate

Part = Literal["train", "valid", "heldout"]
PARTS: dict[Part, tuple[str, ...]] = {
    "train": ("train.jsonl",),
    "valid": ("valid.jsonl",),
    "heldout": ("heldout.jsonl", "test.jsonl"),
}
ROLES = frozenset({"system", "user", "assistant"})
MAX_BYTES = 256 << 20
MAX_PROBLEMS = 20
SHOWN_DUPLICATES = 10
LEAST_TRAIN = 2


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation whose last turn is the answer to learn; ``place`` is `file:line`."""

    messages: tuple[tuple[str, str], ...]  # role, content
    place: str

    @property
    def answer(self) -> str:
        """What the model should say."""
        return self.messages[-1][1]

    @property
    def prompt(self) -> list[dict[str, str]]:
        """The messages before the answer."""
        return self.turns[:-1]

    @property
    def turns(self) -> list[dict[str, str]]:
        """All messages as chat templates take them."""
        return [{"role": role, "content": content} for role, content in self.messages]


@dataclass(frozen=True, slots=True)
class Examples:
    """The parts of a data set; ``split`` says that `valid` was taken out of `train`."""

    train: tuple[Example, ...]
    valid: tuple[Example, ...] = ()
    heldout: tuple[Example, ...] = ()
    split: bool = False

    def save(self, path: Path) -> None:
        """Write all parts into one file, whole or not at all."""
        write_atomic(path, json.dumps(asdict(self), ensure_ascii=False).encode())

    @classmethod
    def restore(cls, path: Path) -> Examples:
        """Read what `save` wrote."""
        kept: dict[str, Any] = json.loads(path.read_text("utf-8"))
        parts = {
            part: tuple(
                Example(tuple((role, text) for role, text in e["messages"]), e["place"])
                for e in kept[part]
            )
            for part in PARTS
        }
        return cls(**parts, split=kept["split"])


def read_examples(path: Path, *, valid_share: float = 0.1, seed: int = 0) -> Examples:
    """Read a file of examples, or a folder with one for each part.

    Without a part for validation, a share of the training part becomes it: whole groups of equal
    prompts, so that none is in both.

    Raises:
        NotFound: there is no such file, or no ``train.jsonl`` in the folder.
        TooLarge: a file has more than 256 MB.
        InvalidInput: lines that are no examples, with `errors`, a list of {location, message}.
    """
    problems: list[tuple[str, str]] = []
    parts = {part: _read(file, problems) for part, file in _files(path).items()}
    if problems:
        raise _refusal(problems)
    train = parts["train"]
    if len(train) < LEAST_TRAIN:
        raise InvalidInput(
            f"{path} has {len(train)} examples to learn from. Give {LEAST_TRAIN} at the least; a "
            "hundred or more to learn something of use."
        )
    valid, split = parts.get("valid", ()), False
    if not valid:
        train, valid = _split(train, valid_share, seed)
        split = True
    return Examples(train, valid, parts.get("heldout", ()), split)


def report_of(examples: Examples) -> DataReport:
    """Count the parts and find what occurs twice: within a part, or of `train` in the others."""
    twice: list[Duplicate] = []
    for part in (examples.train, examples.valid, examples.heldout):
        twice += _again(part, (), key=lambda example: example.messages)
    others = (*examples.valid, *examples.heldout)
    leaked = _again(others, examples.train, key=lambda example: example.messages[:-1])
    return DataReport(
        train=len(examples.train),
        valid=len(examples.valid),
        heldout=len(examples.heldout),
        split=examples.split,
        duplicates=len(twice),
        leaked=len(leaked),
        samples=[*leaked, *twice][:SHOWN_DUPLICATES],
    )


def _files(path: Path) -> dict[Part, Path]:
    if path.is_file():
        return {"train": path}
    if not path.is_dir():
        raise NotFound(f"{path} does not exist. Name a JSON Lines file, or a folder of them.")
    found = {
        part: next((path / name for name in names if (path / name).is_file()), None)
        for part, names in PARTS.items()
    }
    if found["train"] is None:
        raise NotFound(f"{path} holds no train.jsonl. Put the examples to learn from into one.")
    return {part: file for part, file in found.items() if file is not None}


def _read(file: Path, problems: list[tuple[str, str]]) -> tuple[Example, ...]:
    if (size := file.stat().st_size) > MAX_BYTES:
        raise TooLarge(
            f"{file.name} has {size / 1e6:,.0f} MB; the limit is {MAX_BYTES / 1e6:,.0f} MB. Choose "
            "examples: a few thousand good ones teach more than very many."
        )
    examples = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{file.name}:{number}"
        try:
            examples.append(Example(tuple(_turns(json.loads(line))), place))
        except UnicodeDecodeError:
            problems.append((place, "this is not UTF-8 text"))
        except (ValueError, RecursionError) as error:
            what = f"no JSON: {error}" if isinstance(error, json.JSONDecodeError) else str(error)
            problems.append((place, what))
    return tuple(examples)


def _turns(entry: Any) -> Iterator[tuple[str, str]]:
    """Yield (role, content). Raises ``ValueError`` saying what is wrong with the line."""
    if not isinstance(entry, dict):
        raise ValueError("a line must be a JSON object")
    if "messages" in entry:
        yield from _chat(entry)
    elif {"prompt", "completion"} <= entry.keys():
        _only(entry, {"prompt", "completion"})
        yield "user", _text(entry["prompt"], "`prompt`")
        yield "assistant", _text(entry["completion"], "`completion`")
    else:
        raise ValueError(
            "a line needs `messages`, or `prompt` and `completion`; this one has "
            + (", ".join(f"`{key}`" for key in sorted(entry)) or "nothing")
        )


def _chat(entry: dict[str, Any]) -> Iterator[tuple[str, str]]:
    _only(entry, {"messages"})
    messages = entry["messages"]
    if not isinstance(messages, list) or len(messages) < 2:
        raise ValueError("`messages` must be a list of a question and an answer at the least")
    before = ""
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise ValueError(f"message {number} is no JSON object")
        _only(message, {"role", "content"}, f" in message {number}")
        role = message.get("role")
        if role not in ROLES:
            raise ValueError(f"message {number} has the role {role!r}; use system, user, assistant")
        if role == "system" and number > 1:
            raise ValueError(f"message {number} is a system message; only the first may be one")
        if role == before:
            raise ValueError(f"messages {number - 1} and {number} are both of the {role}")
        before = role
        yield role, _text(message.get("content"), f"`content` of message {number}")
    if before != "assistant":
        raise ValueError("the last message must be the assistant's answer")


def _only(entry: dict[str, Any], known: set[str], where: str = "") -> None:
    """Refuse what would be ignored: tools, weights, images."""
    if unknown := sorted(entry.keys() - known):
        names = ", ".join(f"`{key}`" for key in unknown)
        raise ValueError(f"{names}{where} cannot be learned from; leave it out")


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} must be text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} holds half of a surrogate pair") from None
    return value


def _refusal(problems: Sequence[tuple[str, str]]) -> InvalidInput:
    place, what = problems[0]
    more = f" {len(problems) - 1} more lines are wrong." if len(problems) > 1 else ""
    errors = [{"location": at, "message": message} for at, message in problems[:MAX_PROBLEMS]]
    return InvalidInput(f"{place}: {what}.{more} Mend the file and try again.", errors=errors)


def _split(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    groups: dict[object, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.messages[:-1], []).append(example)
    if len(groups) < LEAST_TRAIN:
        raise InvalidInput(
            "All examples have the same prompt, so none can be set aside for validation. Give a "
            "folder with a `valid.jsonl` of its own."
        )
    order = list(groups.values())
    random.Random(seed).shuffle(order)  # noqa: S311 no secret hangs on it
    wanted = max(1, round(len(examples) * share))
    train: list[Example] = []
    valid: list[Example] = []
    for number, group in enumerate(order):
        last = number == len(order) - 1
        (valid if len(valid) < wanted and not (last and not train) else train).extend(group)
    return tuple(train), tuple(valid)


def _again(examples: Iterable[Example], known: Iterable[Example], key: Any) -> list[Duplicate]:
    """Return those of ``examples`` that are in ``known``, or where that is empty, came before."""
    first: dict[Any, str] = {}
    for example in known:
        first.setdefault(key(example), example.place)
    learn = not first
    found = []
    for example in examples:
        place = first.get(key(example))
        if place is not None:
            found.append(Duplicate(first=place, again=example.place))
        elif learn:
            first[key(example)] = example.place
    return found
