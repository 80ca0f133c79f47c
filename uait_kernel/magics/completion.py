"""Tab completion in `%ask`, `%kb` and `%models` lines: verbs, options, models, collections.

Names are asked of the server only when it is known already, and for half a second at most.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from IPython.core.completer import SimpleCompletion, context_matcher

from uait_kernel.errors import UaitClientError

from .arguments import MagicParser
from .ask import ask_parser
from .kb import MODES, VERBS, kb_parser
from .models import models_parser

if TYPE_CHECKING:
    from IPython.core.completer import CompletionContext, SimpleMatcherResult

MAGIC = re.compile(r"\s*(?:[\w.]+\s*=\s*)?%%?(ask|kb|models)\s+(.*)$", re.DOTALL)
WAIT_SECONDS = 0.5


@context_matcher(identifier="uait_kernel")  # type: ignore[untyped-decorator]
def complete_magics(context: CompletionContext) -> SimpleMatcherResult:
    """Return what can stand at the cursor in a line of one of the magics."""
    match = MAGIC.match(context.text_until_cursor)
    if match is None:
        return {"completions": [], "suppress": False}
    before, _, beginning = f" {match[2]}".rpartition(" ")
    found = sorted(
        choice
        for choice in choices(match[1], before.split(), beginning)
        if choice.startswith(beginning)
    )
    return {
        "completions": [SimpleCompletion(choice, type="magic") for choice in found],
        "matched_fragment": beginning,
        "suppress": bool(found),
    }


def choices(magic: str, before: list[str], beginning: str) -> Iterable[str]:
    """Return the words that can come next, whatever they begin with."""
    previous = before[-1] if before else ""
    if previous in ("-m", "--model") and magic == "ask":
        return _model_names()
    if previous in ("-c", "--collection") and magic != "models":
        return _collection_names()
    if magic == "kb":
        if not before:
            return VERBS
        if before[0] not in VERBS:
            return ()
        if previous == "--mode":
            return MODES
        if before in (["status"], ["delete"]) and not beginning.startswith("-"):
            return _collection_names()
        return _options(kb_parser(before[0]), beginning)
    return _options(ask_parser() if magic == "ask" else models_parser(), beginning)


def _options(parser: MagicParser, beginning: str) -> Iterable[str]:
    """Return a parser's options once a dash is there."""
    if not beginning.startswith("-"):
        return ()
    return parser.names


def _model_names() -> Iterable[str]:
    from uait_kernel.session import SESSION

    client = SESSION.known_client(timeout=WAIT_SECONDS)
    try:
        return [model.id for model in client.models() if model.kind == "chat"] if client else ()
    except UaitClientError:
        return ()  # no completion is better than an error while typing


def _collection_names() -> Iterable[str]:
    from uait_kernel.session import SESSION

    client = SESSION.known_client(timeout=WAIT_SECONDS)
    try:
        return [status.name for status in client.collections()] if client else ()
    except UaitClientError:
        return ()
