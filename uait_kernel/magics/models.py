"""`%models`: which models the server has."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from uait_kernel.errors import UsageMistake

from .arguments import MagicParser, sentence, split_words

if TYPE_CHECKING:
    from uait_kernel.results.models import Models


@cache
def models_parser() -> MagicParser:
    """Return the options of `%models`."""
    return MagicParser("%models", "List the models of the catalogue and their state.")


def run_models(line: str) -> Models:
    """Return the models.

    Raises:
        HelpWanted: `-h` was given.
        UsageMistake: the line says something.
        UaitClientError: the server cannot be reached, refuses or fails.
    """
    from uait_kernel.session import SESSION

    _, rest = models_parser().read(split_words(line, placeholders=False))
    if rest:
        raise UsageMistake(f"%models takes no words; '{sentence(rest)}' has no meaning here.")
    with SESSION.client() as client:
        return client.models()
