"""Magic lines: words, `{{values}}`, options.

IPython's own `magic_arguments` is not used: it reports mistakes as `UsageError`, which leaves a
batch run with an empty message and no error in the notebook, it knows no `-h`, and it keeps the
quotes around a path with spaces. What is kept of it is argparse.

A quote groups words only where it begins a word and its fellow ends one: `what's` needs no care.
What was quoted or put in by `{{…}}` is never taken for an option.
"""

from __future__ import annotations

import argparse
import difflib
import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from uait_kernel.errors import UsageMistake

from .interpolation import OPENING, interpolate, placeholder_at

LITERAL = "\0"  # begins the stand-in of a word that is no option, whatever it looks like


@dataclass(frozen=True)
class Word:
    """One word of a magic line: what it means, how it was written, whether it can be an option."""

    text: str
    written: str
    literal: bool = False


class HelpWanted(Exception):
    """`-h` was given: the magic shows its help and does nothing."""


def split_words(line: str, *, placeholders: bool = True) -> list[Word]:
    """Split a magic line into words; a `{{…}}` holds together unless it has no meaning here.

    Raises:
        UsageMistake: a `{{` is not closed or holds no expression.
    """
    words: list[Word] = []
    position = 0
    while True:
        while position < len(line) and line[position].isspace():
            position += 1
        if position == len(line):
            return words
        end = _quoted_end(line, position)
        if end:
            written = line[position:end]
            words.append(Word(written[1:-1], written, literal=True))
        else:
            end = _word_end(line, position, placeholders)
            written = line[position:end]
            literal = placeholders and written.startswith(OPENING)
            words.append(Word(written, written, literal))
        position = end


def _quoted_end(line: str, start: int) -> int:
    """Return where a quoted word that begins here ends, 0 where none does."""
    if line[start] not in "'\"":
        return 0
    end = start
    while (end := line.find(line[start], end + 1)) >= 0:
        if end + 1 == len(line) or line[end + 1].isspace():
            return end + 1
    return 0


def _word_end(line: str, start: int, placeholders: bool) -> int:
    """Return where a plain word ends; a `{{…}}` in it may hold spaces."""
    position = start
    while position < len(line) and not line[position].isspace():
        if placeholders and line.startswith(OPENING, position):
            position = placeholder_at(line, position).end
        else:
            position += 1
    return position


class MagicParser(argparse.ArgumentParser):
    """Options of one magic; what is no option is left as words.

    Args:
        usage: how the magic is written.
        description: what it does.
        notes: shown after the options.
    """

    def __init__(self, usage: str, description: str, notes: str = "") -> None:
        super().__init__(prog=usage.split()[0], add_help=False, allow_abbrev=False)
        self._parts = usage, description, notes
        self._literals: dict[str, Word] = {}
        self._help: list[tuple[str, str]] = []
        self.names: list[str] = []
        self.flag("-h", "--help", help="Show this help and do nothing else.")

    def flag(self, *names: str, help: str) -> None:
        """Add an option that is there or not."""
        self.add_argument(*names, action="store_true")
        self._describe(names, "", help)

    def option(
        self, *names: str, metavar: str, help: str, kind: Callable[[str], Any] = str
    ) -> None:
        """Add an option with a value, which may be written as `{{expression}}`."""
        self.add_argument(*names, type=lambda given: kind(self._resolve(given)), metavar=metavar)
        self._describe(names, f" {metavar}", help)

    def _describe(self, names: Sequence[str], metavar: str, help: str) -> None:
        self.names.extend(names)
        self._help.append((", ".join(names) + metavar, help))

    def format_help(self) -> str:
        """Return the help; unlike argparse's it is the same in every Python and every window."""
        usage, description, notes = self._parts
        width = max(len(option) for option, _ in self._help)
        options = [f"  {option:{width}}  {help}" for option, help in self._help]
        lines = [f"usage: {usage}", "", description, "", "options:", *options]
        return "\n".join([*lines, "", notes] if notes else lines)

    def read(self, words: Sequence[Word]) -> tuple[argparse.Namespace, list[Word]]:
        """Return the options and the words that are none.

        Raises:
            HelpWanted: `-h` is among them.
            UsageMistake: an option is unknown, lacks its value or has a wrong one.
        """
        self._literals = {}
        given: list[str] = []
        for word in words:
            mark = f"{LITERAL}{len(self._literals)}" if word.literal else word.text
            if word.literal:
                self._literals[mark] = word
            given.append(mark)
        after = given.index("--") if "--" in given else len(given)
        options, rest = self.parse_known_args(given[:after])
        if options.help:
            raise HelpWanted
        for text in rest:
            if _looks_like_option(text):
                self._unknown(text)
        rest += given[after + 1 :]
        return options, [self._literals.get(text) or Word(text, text) for text in rest]

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print before it ends the process."""
        raise UsageMistake(f"{self.prog}: {message}. `{self.prog} -h` lists the options.")

    def _resolve(self, given: str) -> str:
        """Return the text behind a mark."""
        return self._literals[given].text if given in self._literals else given

    def _unknown(self, word: str) -> NoReturn:
        near = difflib.get_close_matches(word.partition("=")[0], self.names, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise UsageMistake(
            f"{self.prog} has no option {word}.{meant} `{self.prog} -h` lists them; text that "
            "begins with a dash goes into quotes or after --."
        )


def _looks_like_option(word: str) -> bool:
    return word.startswith("-") and word.strip("-") != "" and not word[1:2].isdecimal()


def fill(words: Sequence[Word], namespace: Mapping[str, Any]) -> tuple[list[Word], tuple[str, ...]]:
    """Put the values of `{{expressions}}` into words; return also what was cut from them.

    Raises:
        UsageMistake: see `interpolate`.
    """
    filled: list[Word] = []
    notices: tuple[str, ...] = ()
    for word in words:
        if OPENING not in word.text:
            filled.append(word)
            continue
        text = interpolate(word.text, namespace)
        quote = word.written[0] if word.written != word.text else ""
        filled.append(replace(word, text=text.text, written=f"{quote}{text.text}{quote}"))
        notices += text.notices
    return filled, notices


def sentence(words: Sequence[Word]) -> str:
    """Return words as the sentence they were written as; quotes around all of it are dropped."""
    if len(words) == 1:
        return words[0].text
    return " ".join(word.written for word in words)


def between(lowest: int, highest: int) -> Callable[[str], int]:
    """Return a kind of option: a whole number in a range."""

    def convert(given: str) -> int:
        try:
            value = int(given)
        except ValueError:
            value = lowest - 1
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(
                f"{given!r} is no whole number from {lowest} to {highest}"
            )
        return value

    return convert


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a kind of option: one of a few words."""

    def convert(given: str) -> str:
        if given not in choices:
            raise argparse.ArgumentTypeError(f"{given!r} is none of {', '.join(choices)}")
        return given

    return convert


def variable(given: str) -> str:
    """Return the name of a Python variable, a kind of option."""
    if not given.isidentifier() or keyword.iskeyword(given):
        raise argparse.ArgumentTypeError(f"{given!r} cannot be the name of a variable")
    return given
