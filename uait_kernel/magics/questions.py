"""Lets a magic line end with a question mark.

IPython reads `%ask what is it?` as a request for help on the name `it`. A blank after the mark
prevents that, so this input transformer puts one there; `%ask?` still shows the magic's help.
"""

from __future__ import annotations

import re
import tokenize

QUESTION = re.compile(r"\s*(?:[\w.\[\]'\", ]+=\s*)?%(?:ask|kb)\s+\S.*\?$")


def keep_questions(lines: list[str]) -> list[str]:
    """Put a blank after the question mark of `%ask` and `%kb` lines."""
    if not any(QUESTION.match(line.rstrip("\r\n")) for line in lines) or _is_cell_magic(lines):
        return lines
    starts = _statement_starts(lines)
    return [
        _with_blank(line) if number in starts and QUESTION.match(line.rstrip("\r\n")) else line
        for number, line in enumerate(lines, 1)
    ]


def _is_cell_magic(lines: list[str]) -> bool:
    """Tell whether the cell is the body of a cell magic: its lines are not ours to change."""
    first = next((line for line in lines if line.strip()), "")
    return first.lstrip().startswith("%%")


def _statement_starts(lines: list[str]) -> set[int]:
    """Return the numbers of lines that begin a statement: no line of a multi-line string does."""
    from IPython.core.inputtransformer2 import make_tokens_by_line

    layout = {tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.COMMENT}
    starts: set[int] = set()
    for tokens in make_tokens_by_line(lines):
        first = next((token for token in tokens if token.type not in layout), None)
        if first is not None:
            starts.add(first.start[0])
    return starts


def _with_blank(line: str) -> str:
    text = line.rstrip("\r\n")
    return f"{text} {line[len(text) :]}"
