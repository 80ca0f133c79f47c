"""`%kb`: add documents to the knowledge base, search it, see how it stands."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uait_kernel.errors import UsageMistake

from .arguments import HelpWanted, MagicParser, Word, between, fill, one_of, sentence, split_words

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from uait_kernel.results.knowledge import (
        Collections,
        CollectionStatus,
        Hits,
        IngestSummary,
    )

MODES = ("hybrid", "text", "dense")
NOTES = "{{expression}} is replaced by its value in the kernel; quotes hold words together."


@dataclass(frozen=True)
class KbCall:
    """One `%kb` line, read."""

    shell: InteractiveShell
    options: argparse.Namespace
    words: list[Word]
    silent: bool

    @property
    def collection(self) -> str:
        """The collection that was named, or the default one."""
        return str(self.options.collection or "default")


@dataclass(frozen=True)
class Verb:
    """One verb of `%kb`: what it does and how it is written."""

    usage: str
    description: str
    run: Callable[[KbCall], Any]


def add(call: KbCall) -> IngestSummary:
    """Add a file or folder; show one line that counts, then what became of the files."""
    path = _only_text(call, "a file or folder")
    # The server does not know this kernel's working directory.
    return _ingest(call, os.path.abspath(Path(path).expanduser()))  # noqa: PTH100


def resume(call: KbCall) -> IngestSummary:
    """Go on with what an interrupted ingest left."""
    _no_words(call)
    return _ingest(call, None)


def _ingest(call: KbCall, path: str | None) -> IngestSummary:
    from uait_kernel.display.live import live_output
    from uait_kernel.session import SESSION

    from .streaming import show_ingest

    live = live_output(call.shell, silent=call.silent)
    with SESSION.client() as client:
        return show_ingest(client.ingest(path, call.collection), call.collection, live)


def search(call: KbCall) -> Hits:
    """Return the passages that match best."""
    from uait_kernel.session import SESSION

    query = _only_text(call, "what to look for")
    with SESSION.client() as client:
        return client.search(query, call.collection, k=call.options.k, mode=call.options.mode)


def status(call: KbCall) -> CollectionStatus:
    """Return a collection's numbers and what is left to do."""
    from uait_kernel.session import SESSION

    with SESSION.client() as client:
        return client.status(_name(call) or call.collection)


def list_collections(call: KbCall) -> Collections:
    """Return all collections."""
    from uait_kernel.session import SESSION

    _no_words(call)
    with SESSION.client() as client:
        return client.collections()


def delete(call: KbCall) -> None:
    """Delete a collection; its files stay where they are."""
    from uait_kernel.session import SESSION

    name = _name(call) or call.options.collection
    if not name:
        raise UsageMistake("%kb delete needs the name of the collection to delete.")
    if not call.options.yes:
        raise UsageMistake(
            f"This deletes the collection '{name}' with its indexes, for good; your files stay. "
            f"Write `%kb delete {name} --yes` to do it."
        )
    with SESSION.client() as client:
        client.delete(name)
    if not call.silent:
        print(f"Deleted the collection '{name}'.")


VERBS = {
    "add": Verb("%kb add PATH [-c NAME]", "Add a file or a folder; only changes cost time.", add),
    "resume": Verb("%kb resume [-c NAME]", "Go on with what an interrupted add left.", resume),
    "search": Verb(
        "%kb search QUERY [-k N] [--mode MODE] [-c NAME]",
        "Find passages by meaning and by words.",
        search,
    ),
    "status": Verb(
        "%kb status [NAME]", "Show a collection's numbers and what is left to do.", status
    ),
    "list": Verb("%kb list", "List all collections.", list_collections),
    "delete": Verb("%kb delete NAME --yes", "Delete a collection; your files stay.", delete),
}


@cache
def kb_parser(name: str) -> MagicParser:
    """Return the options of one verb."""
    verb = VERBS[name]
    parser = MagicParser(verb.usage, verb.description, NOTES)
    if name != "list":
        parser.option(
            "-c",
            "--collection",
            metavar="NAME",
            help="The collection; `default` where none is given.",
        )
    if name == "search":
        parser.option("-k", kind=between(1, 100), metavar="N", help="Passages to find (1-100).")
        parser.option(
            "--mode",
            kind=one_of(*MODES),
            metavar="MODE",
            help="hybrid (the default), text (words only) or dense (meaning only).",
        )
    if name == "delete":
        parser.flag("--yes", help="Really delete it.")
    return parser


def kb_help(name: str | None = None) -> str:
    """Return the help of one verb, or of them all."""
    if name is not None:
        return kb_parser(name).format_help()
    lines = [f"  {verb.usage}\n      {verb.description}" for verb in VERBS.values()]
    return "\n".join(
        [
            "The knowledge base: your documents, ready to be searched and asked.",
            "",
            *lines,
            "",
            NOTES,
            "`%kb VERB -h` shows the options of a verb.",
        ]
    )


def run_kb(
    shell: InteractiveShell, line: str, namespace: Mapping[str, Any], *, silent: bool
) -> Any:
    """Run one `%kb` line and return its result.

    Raises:
        HelpWanted: help was asked for; its argument is the help.
        UsageMistake: the line cannot be used; nothing was sent.
        UaitClientError: the server cannot be reached, refuses or fails.
    """
    words, _ = fill(split_words(line), namespace)
    if not words or words[0].text in ("-h", "--help"):
        raise HelpWanted(kb_help())
    name = words[0].text
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1)
        meant = f" Did you mean `%kb {near[0]}`?" if near else ""
        raise UsageMistake(f"%kb has no verb '{name}'.{meant} It has {', '.join(VERBS)}.")
    try:
        options, rest = kb_parser(name).read(words[1:])
    except HelpWanted:
        raise HelpWanted(kb_help(name)) from None
    return VERBS[name].run(KbCall(shell, options, rest, silent))


def _only_text(call: KbCall, what: str) -> str:
    """Return the words as one text, which must not be empty."""
    text = sentence(call.words)
    if not text.strip():
        raise UsageMistake(f"This needs {what}. `%kb -h` shows how it is written.")
    return text


def _name(call: KbCall) -> str | None:
    """Return the one name given as a word."""
    if len(call.words) > 1:
        raise UsageMistake(f"'{sentence(call.words)}' is not one name. `%kb -h` shows how.")
    return call.words[0].text if call.words else None


def _no_words(call: KbCall) -> None:
    if call.words:
        raise UsageMistake(f"'{sentence(call.words)}' has no meaning here. `%kb -h` shows how.")
