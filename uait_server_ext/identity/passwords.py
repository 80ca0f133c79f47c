"""Passwords: the rules for new ones, and Argon2id (RFC 9106) off the event loop.

Text is brought to Unicode's NFKC form before it is hashed (NIST SP 800-63B, 3.1.1.2), so that one
passphrase typed on two keyboards is one password. Nothing is cut off. The rules ask for length and
against guessable passwords; there are none about kinds of characters.

`breached.txt.gz` has the passwords of 8 and more characters, case-folded, of two lists of common
passwords: zxcvbn's (Copyright 2016 Daniel Wolf and Dropbox, MIT licence) and Django's (Copyright
Django Software Foundation and contributors, BSD 3-clause licence).
"""

from __future__ import annotations

import asyncio
import base64
import functools
import gzip
import os
import secrets
import sys
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import TYPE_CHECKING, TypeVar

from uait_server_ext.errors import Busy, InvalidInput, TooLarge, WeakPassword

from .names import fold

if TYPE_CHECKING:
    from argon2 import PasswordHasher

Result = TypeVar("Result")

MIN_CHARACTERS = 8
MAX_BYTES = 1024
MIN_WORD_CHARACTERS = 3
PRODUCT_WORDS = ("universalaitools", "jupyterlab", "jupyter", "uait")

MEMORY_KIB = 24 * 1024
PASSES = 3
LANES = 1
"""More than OWASP's minimum (19 MiB, 2 passes, 1 lane); some 50 ms on a small server."""

# One core stays free for everybody who is logged in already.
THREADS = max(1, min(4, (os.cpu_count() or 1) - 1))
NICE = 5
QUEUE = 32


def step_back() -> None:
    """Let the event loop go before this thread: Linux has a priority for each thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def normalise(password: str) -> str:
    """Return a password as it is hashed and compared.

    Raises:
        TooLarge: more than `MAX_BYTES` bytes; refused before any work is done on it.
        InvalidInput: not text.
    """
    try:
        size = len(password.encode())
    except UnicodeEncodeError:
        raise InvalidInput("The password is not valid Unicode text. Type it again.") from None
    if size > MAX_BYTES:
        raise TooLarge(f"A password has at most {MAX_BYTES} bytes. Choose a shorter one.")
    return unicodedata.normalize("NFKC", password)


def check_new_password(password: str, *own_words: str) -> None:
    """Refuse a password that is short, common, or little more than a name.

    Args:
        own_words: the person's user name and displayed name.

    Raises:
        WeakPassword, TooLarge, InvalidInput: with what to do.
    """
    plain = normalise(password)
    if len(plain) < MIN_CHARACTERS:
        raise WeakPassword(
            f"A password has at least {MIN_CHARACTERS} characters. A few unrelated words make a "
            "good one."
        )
    folded = fold(plain)
    if folded in breached():
        raise WeakPassword(
            "This password is one of the most common ones, which are tried first. Choose another."
        )
    rest = "".join(folded.split())
    words = [fold(word) for name in own_words for word in (name, *name.split())]
    for word in sorted({*words, *PRODUCT_WORDS}, key=len, reverse=True):
        if len(word) >= MIN_WORD_CHARACTERS:
            rest = rest.replace("".join(word.split()), "")
    if len(rest) < MIN_CHARACTERS and len(rest) < len("".join(folded.split())):
        raise WeakPassword(
            f"Without your name and the product's, a password still has {MIN_CHARACTERS} "
            "characters. Choose another."
        )


@functools.cache
def breached() -> frozenset[str]:
    """Return the common passwords, folded; read when the first password is chosen."""
    packed = resources.files(__package__).joinpath("breached.txt.gz").read_bytes()
    return frozenset(gzip.decompress(packed).decode().split("\n"))


class Passwords:
    """Hash and verify in threads of their own; more than `QUEUE` waiting ones are turned away."""

    def __init__(
        self,
        *,
        memory_kib: int = MEMORY_KIB,
        passes: int = PASSES,
        threads: int = THREADS,
        queue: int = QUEUE,
    ) -> None:
        self.memory_kib = memory_kib
        self.passes = passes
        self.limit = threads + queue
        self._waiting = 0
        self._threads = ThreadPoolExecutor(
            threads, thread_name_prefix="uait-password", initializer=step_back
        )

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    async def hash(self, password: str) -> str:
        """Return what to store for a password.

        Raises:
            Busy: too many passwords wait to be hashed.
            TooLarge, InvalidInput: see `normalise`.
        """
        return await self._run(functools.partial(self.hash_now, normalise(password)))

    def hash_now(self, normalised: str) -> str:
        """Return what to store for a normalised password; blocks."""
        return self._hasher.hash(normalised)

    async def verify(self, stored: str | None, password: str) -> bool:
        """Tell whether a password is the stored one.

        Without a stored one (no such user, disabled, no password) the same work is done on a made
        up hash: the time that an answer takes tells nobody who has an account.

        Raises:
            Busy: too many passwords wait to be hashed.
            TooLarge, InvalidInput: see `normalise`.
        """
        checked = functools.partial(self._verify, stored or self._decoy, normalise(password))
        return await self._run(checked) and stored is not None

    def outdated(self, stored: str) -> bool:
        """Tell whether a hash was made with other costs and should be made anew."""
        return self._hasher.check_needs_rehash(stored)

    def _verify(self, stored: str, normalised: str) -> bool:
        from argon2.exceptions import InvalidHashError, VerificationError

        try:
            return self._hasher.verify(stored, normalised)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[[], Result]) -> Result:
        if self._waiting >= self.limit:
            raise Busy("Too many logins at this moment. Try again in a few seconds.", retry_after=5)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1

    @functools.cached_property
    def _hasher(self) -> PasswordHasher:
        from argon2 import PasswordHasher

        return PasswordHasher(time_cost=self.passes, memory_cost=self.memory_kib, parallelism=LANES)

    @functools.cached_property
    def _decoy(self) -> str:
        """A well-formed hash of our costs that belongs to no password: random salt and digest."""
        salt, digest = (
            base64.b64encode(secrets.token_bytes(size)).decode().rstrip("=") for size in (16, 32)
        )
        return f"$argon2id$v=19$m={self.memory_kib},t={self.passes},p={LANES}${salt}${digest}"
