"""`{{expression}}` in a question: one pass over kernel variables, never looked at again.

`{{name}}`, `{{frame.head()}}`, `{{Out[3]}}` are evaluated in the kernel; single braces are plain
text. What a value puts in is not searched for more placeholders. Strings go in whole; tables and
other objects are cut at a limit, with a notice in the text and beside the answer.
"""

from __future__ import annotations

import builtins
import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

from uait_kernel.errors import UsageMistake, one_line

OPENING, CLOSING = "{{", "}}"
RAW_HINT = "With --raw nothing in the text is replaced."
VALUE_CHARACTERS = 20_000
LONGEST_EXPRESSION = 2_000


@dataclass(frozen=True)
class Placeholder:
    """One `{{expression}}` of a text, compiled: from `start` to one past its closing braces."""

    start: int
    end: int
    source: str
    code: CodeType


@dataclass(frozen=True)
class Filled:
    """A text with its values put in, and what was cut from them."""

    text: str
    notices: tuple[str, ...] = ()


def interpolate(text: str, namespace: Mapping[str, Any]) -> Filled:
    """Replace each `{{expression}}` by its value.

    Raises:
        UsageMistake: a name is unknown (the message has the nearest ones), an expression fails, is
            none, or is not closed.
    """
    pieces: list[str] = []
    notices: list[str] = []
    position = 0
    while (start := text.find(OPENING, position)) >= 0:
        placeholder = placeholder_at(text, start)
        value, notice = _as_text(_value(placeholder, namespace), placeholder.source)
        pieces += (text[position:start], value)
        if notice:
            notices.append(notice)
        position = placeholder.end
    return Filled("".join((*pieces, text[position:])), tuple(notices))


def placeholder_at(text: str, start: int) -> Placeholder:
    """Return the placeholder that begins here; it ends where its expression is whole.

    Raises:
        UsageMistake: it is not closed, or holds no expression.
    """
    begin = start + len(OPENING)
    end = text.find(CLOSING, begin)
    if end < 0:
        shown = one_line(text[start : start + 30])
        raise UsageMistake(f"'{shown}' is not closed by '}}}}'. {RAW_HINT}")
    first = text[begin:end].strip()
    while 0 <= end <= begin + LONGEST_EXPRESSION:
        source = text[begin:end].strip()
        code = _compiled(source)
        if code is not None:
            return Placeholder(start, end + len(CLOSING), source, code)
        end = text.find(CLOSING, end + 1)
    raise UsageMistake(f"'{{{{{one_line(first)}}}}}' holds no Python expression. {RAW_HINT}")


def _compiled(source: str) -> CodeType | None:
    """Return an expression's code, None where it is no whole expression."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of doubtful code: this is only an attempt
        try:
            return compile(source, "<placeholder>", "eval")
        except (SyntaxError, ValueError):
            return None


def _value(placeholder: Placeholder, namespace: Mapping[str, Any]) -> Any:
    """Evaluate a placeholder in the kernel's own namespace: it is the user's code in their kernel.

    Raises:
        UsageMistake: it fails.
    """
    try:
        return eval(placeholder.code, dict(namespace))  # noqa: S307
    except NameError as error:
        near = _near(error.name or "", namespace)
        raise UsageMistake(
            f"'{{{{{placeholder.source}}}}}' names {error.name!r}, which this kernel does not know."
            f"{near} {RAW_HINT}"
        ) from error
    except Exception as error:
        raise UsageMistake(
            f"'{{{{{placeholder.source}}}}}' failed: {type(error).__name__}: {error}"
        ) from error


def _near(name: str, namespace: Mapping[str, Any]) -> str:
    """Return the known names that look like this one, as a sentence."""
    known = [other for other in (*namespace, *vars(builtins)) if not other.startswith("_")]
    near = difflib.get_close_matches(name, known, n=3)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def _as_text(value: Any, source: str) -> tuple[str, str]:
    """Return a value as text for a model, and a notice where not all of it is in there."""
    if isinstance(value, str):
        return str(value), ""
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and len(shape) == 2 and hasattr(value, "to_csv"):
        return _table_as_text(value, source)
    text = str(value)
    if len(text) > VALUE_CHARACTERS:
        notice = (
            f"{{{{{source}}}}}: {kind} of {len(text):,} characters, cut at {VALUE_CHARACTERS:,}."
        )
        return f"{text[:VALUE_CHARACTERS]}\n[cut here]", notice
    if shape is not None and "..." in text:
        return text, f"{{{{{source}}}}}: {kind} of shape {shape}, abbreviated."
    return text, ""


def _table_as_text(value: Any, source: str) -> tuple[str, str]:
    """Return a data frame as CSV: as many of its first rows as the limit holds."""
    rows = len(value)
    # A row has at least one character and its line end: more rows than this never fit.
    text = str(value.head(VALUE_CHARACTERS // 2).to_csv(index=False))
    if len(text) <= VALUE_CHARACTERS and rows <= VALUE_CHARACTERS // 2:
        return text, ""
    kept = text[:VALUE_CHARACTERS].rpartition("\n")[0]
    shown = max(0, kept.count("\n"))
    notice = f"{{{{{source}}}}}: the first {shown:,} of {rows:,} rows."
    return f"{kept}\n[cut here: {shown:,} of {rows:,} rows]", notice
