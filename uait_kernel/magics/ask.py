"""`%ask` and `%%ask`: a question to one's own documents, or straight to a model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from uait_kernel.errors import UsageMistake

from .arguments import MagicParser, Word, between, fill, sentence, split_words, variable
from .interpolation import interpolate

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from uait_kernel.client import Client
    from uait_kernel.event_stream import EventStream
    from uait_kernel.results.answer import Answer

USAGE = "%ask QUESTION [options]    or    %%ask [options]  with the question below"
DESCRIPTION = "Ask your documents: the best supporting sentence, the model's words, the sources."
NOTES = """\
{{expression}} in the question or in an option is replaced by its value in the kernel.
A %ask line that ends with ; shows nothing and only returns the answer.

The answer is a str with .text .citations .extract .declined .model .usage .seconds .json. It is
shown once, as it streams; `_`, `answer = %ask …` and --to hold the object. Stop it with the
kernel's interrupt: what there is stays, marked as a part, and --to holds that part. After an
error --to leaves its name as it was."""


@cache
def ask_parser() -> MagicParser:
    """Return the options of `%ask`."""
    parser = MagicParser(USAGE, DESCRIPTION, NOTES)
    parser.option(
        "-c",
        "--collection",
        metavar="NAME",
        help="The collection to ask; `default` where none is given.",
    )
    parser.option("-m", "--model", metavar="ID", help="The model; %models lists them.")
    parser.option(
        "-k", kind=between(1, 20), metavar="N", help="Passages given to the model (1-20)."
    )
    parser.option(
        "--max-tokens",
        kind=between(1, 32_768),
        metavar="N",
        help="Longest answer, in tokens of the model.",
    )
    parser.flag("--no-phrase", help="Only the documents' words; no model is run.")
    parser.flag("--chat", help="Ask the model alone, without any document.")
    parser.option(
        "--to", kind=variable, metavar="NAME", help="Put the answer into this variable as well."
    )
    parser.flag("--raw", help="Replace nothing: {{ and }} are plain text.")
    return parser


def run_ask(
    shell: InteractiveShell,
    line: str,
    cell: str | None,
    namespace: Mapping[str, Any],
    *,
    silent: bool,
) -> Answer:
    """Ask, show the answer as it streams, and return it.

    Raises:
        UsageMistake: the line or the question cannot be used; nothing was sent.
        UaitClientError: the server cannot be reached, refuses or fails.
    """
    # Imported at the first question, so that loading the extension costs nothing.
    from uait_kernel.display.live import live_output
    from uait_kernel.results.answer import AnswerInProgress
    from uait_kernel.session import SESSION

    from .streaming import show_answer

    options, question, notices = read_question(line, cell, namespace)
    collection = None if options.chat else options.collection or "default"
    progress = AnswerInProgress(
        question, collection=collection, model=options.model, notices=notices
    )

    def keep(answer: Answer) -> None:
        if options.to:
            shell.push({options.to: answer})

    with SESSION.client() as client:
        events = start(client, question, collection, options)
        return show_answer(events, progress, live_output(shell, silent=silent), keep)


def start(
    client: Client, question: str, collection: str | None, options: argparse.Namespace
) -> EventStream:
    """Send the question."""
    if collection is None:
        messages = [{"role": "user", "content": question}]
        return client.chat(messages, model=options.model, max_tokens=options.max_tokens)
    return client.ask(
        question,
        collection,
        model=options.model,
        k=options.k,
        max_tokens=options.max_tokens,
        phrase=False if options.no_phrase else None,
    )


def read_question(
    line: str, cell: str | None, namespace: Mapping[str, Any]
) -> tuple[argparse.Namespace, str, tuple[str, ...]]:
    """Return the options, the question with its values put in, and what was cut from those.

    Raises:
        HelpWanted: `-h` was given.
        UsageMistake: the line or the question cannot be used.
    """
    words, notices = _words(line, namespace)
    options, rest = ask_parser().read(words)
    _check(options)
    if cell is None:
        question = sentence(rest)
    elif rest:
        raise UsageMistake(
            f"Under %%ask the question stands below the line, which has only options; "
            f"'{sentence(rest)}' is none. `%ask -h` lists them."
        )
    elif options.raw:
        question = cell
    else:
        filled = interpolate(cell, namespace)
        question, notices = filled.text, (*notices, *filled.notices)
    if not question.strip():
        raise UsageMistake("There is no question. Write it after %ask, or below %%ask.")
    return options, question.strip(), notices


def _words(line: str, namespace: Mapping[str, Any]) -> tuple[list[Word], tuple[str, ...]]:
    """Return the words of the line; with --raw among them nothing is replaced."""
    raw = split_words(line, placeholders=False)
    if any(word.text == "--raw" and not word.literal for word in raw):
        return raw, ()
    return fill(split_words(line), namespace)


def _check(options: argparse.Namespace) -> None:
    """Refuse options that contradict one another."""
    if not options.chat:
        return
    for name, given in {
        "--collection": options.collection is not None,
        "-k": options.k is not None,
        "--no-phrase": options.no_phrase,
    }.items():
        if given:
            raise UsageMistake(f"--chat asks the model without documents: leave {name} out.")
