"""Names of people and groups: how they are written, and the key under which they are unique.

A name is kept in Unicode's NFKC form; its key is case-folded too, so that `Ada`, `ada` and the
full-width `Ａｄａ` are one person. No control, format or private characters: a name is shown in
logs and pages and must not pass for another by what cannot be seen.
"""

from __future__ import annotations

import re
import unicodedata

from uait_server_ext.errors import InvalidInput

USERNAME_CHARACTERS = 64
DISPLAY_NAME_CHARACTERS = 128
GROUP_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
PUNCTUATION = frozenset("._-@+")


def username(raw: str) -> tuple[str, str]:
    """Return a login name in its normal form and its key.

    Raises:
        InvalidInput: empty, too long, or with a character that is not a letter, a digit or one of
            `. _ - @ +`.
    """
    name = unicodedata.normalize("NFKC", raw) if len(raw) <= USERNAME_CHARACTERS else ""
    key = fold(name)
    if not (0 < len(name) <= USERNAME_CHARACTERS and len(key) <= USERNAME_CHARACTERS):
        raise InvalidInput(f"A user name has 1 to {USERNAME_CHARACTERS} characters.")
    if not all(c in PUNCTUATION or unicodedata.category(c)[0] in "LMN" for c in name):
        raise InvalidInput("A user name is made of letters, digits and `. _ - @ +`.")
    if not name[0].isalnum():
        raise InvalidInput("A user name begins with a letter or a digit.")
    return name, key


def username_key(raw: str) -> str | None:
    """Return the key of a name that somebody claims; none where nobody can have that name."""
    try:
        return username(raw)[1]
    except InvalidInput:
        return None


def display_name(raw: str) -> str:
    """Return the name that people read, in its normal form.

    Raises:
        InvalidInput: empty, too long, or with characters that cannot be seen.
    """
    name = (
        unicodedata.normalize("NFC", raw.strip()) if len(raw) <= 4 * DISPLAY_NAME_CHARACTERS else ""
    )
    if not 0 < len(name) <= DISPLAY_NAME_CHARACTERS:
        raise InvalidInput(f"A displayed name has 1 to {DISPLAY_NAME_CHARACTERS} characters.")
    if not all(c == " " or unicodedata.category(c)[0] not in "CZ" for c in name):
        raise InvalidInput("A displayed name has no control characters and no spaces but ` `.")
    return name


def group_name(raw: str) -> str:
    """Return the name of a group.

    Raises:
        InvalidInput: not 1 to 64 lower-case letters, digits, `.`, `_` or `-`.
    """
    if not GROUP_NAME.fullmatch(raw):
        raise InvalidInput(
            "A group's name has 1 to 64 lower-case letters, digits, `.`, `_` or `-`, and begins "
            "with a letter or digit."
        )
    return raw


def fold(text: str) -> str:
    """Return text without regard to case and to compatible forms (NFKC after folding)."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def claimed(raw: str) -> str:
    """Return a name that somebody sent, fit for a log: bounded, nothing that cannot be seen."""
    shown = raw[:USERNAME_CHARACTERS]
    return "".join(c if unicodedata.category(c)[0] != "C" else "?" for c in shown)
