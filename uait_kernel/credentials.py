"""The logins that `uait login` has made: one file of this person, mode 0600, keyed by server.

::

    <Jupyter's data folder>/uait/credentials.json    {address: {refresh_token, access_token, …}}

The server takes each refresh token once and ends the login when it sees one twice. So whoever
renews holds a lock on the file, reads it again, and writes the new token before it uses anything.
A process that is killed between the server's answer and the write loses the login: log in again.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .endpoint import Endpoint, Server, Token, parse_address
from .errors import NoAnswer, Unauthenticated, UnexpectedAnswer, UsageMistake
from .event_stream import Json
from .transport import Transport

RENEW_BEFORE_SECONDS = 30.0
RENEW_SECONDS = 10.0
LOCK_SECONDS = 30.0

Clock = Callable[[], float]


@dataclass(frozen=True)
class Login:
    """A stored login; `expires_at` is the access token's end, seconds since the epoch (UTC)."""

    refresh_token: str = field(repr=False)
    access_token: str = field(repr=False)
    expires_at: float
    scope: str

    @classmethod
    def of(cls, answer: Json, now: float) -> Login:
        """Read the server's answer to a token request.

        Raises:
            UnexpectedAnswer: it is none.
        """
        try:
            for name in ("refresh_token", "access_token"):
                if not Token(answer[name]):
                    raise KeyError(name)
            return cls(
                refresh_token=answer["refresh_token"],
                access_token=answer["access_token"],
                expires_at=now + float(answer["expires_in"]),
                scope=str(answer["scope"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, UsageMistake):
            raise UnexpectedAnswer("The server answered a login without tokens.") from None


def credentials_path() -> Path:
    """Return where this person's logins are."""
    from jupyter_core.paths import jupyter_data_dir

    return Path(jupyter_data_dir()) / "uait" / "credentials.json"


class CredentialFile:
    """Reads and writes the stored logins."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or credentials_path()

    def logins(self) -> dict[str, Login]:
        """Return the logins by server address; none where there is no file.

        Raises:
            UsageMistake: others can read or have written the file, or it is damaged.
        """
        try:
            with self.path.open("rb") as file:
                refuse_foreign(os.fstat(file.fileno()), self.path)
                content = json.loads(file.read())
            return {url: Login(**login) for url, login in content.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError):
            raise UsageMistake(
                f"The stored logins in {self.path} cannot be read. Delete the file and log in "
                "again with `uait login`."
            ) from None

    def find(self, endpoint: Endpoint) -> Login | None:
        """Return the login at a server."""
        logins = self.logins()
        return next((logins[url] for url in logins if leads_to(url, endpoint)), None)

    def put(self, endpoint: Endpoint, login: Login) -> None:
        """Keep the login at a server, in place of an earlier one; hold the lock."""
        others = {u: one for u, one in self.logins().items() if not leads_to(u, endpoint)}
        self._write({**others, endpoint.url: login})

    def drop(self, endpoint: Endpoint) -> None:
        """Forget the login at a server; hold the lock."""
        logins = self.logins()
        kept = {url: login for url, login in logins.items() if not leads_to(url, endpoint)}
        if len(kept) != len(logins):
            self._write(kept)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes and threads from changing the file.

        Raises:
            NoAnswer: another holds it for longer than a renewal takes.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while not try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise NoAnswer("Another process renews the login and does not end. Try again.")
                time.sleep(0.05)
            yield
        finally:
            os.close(descriptor)  # gives the lock back

    def _write(self, logins: dict[str, Login]) -> None:
        """Replace the file: the old or the new one, never a half."""
        beside = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump({url: asdict(login) for url, login in logins.items()}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


class StoredToken(Token):
    """The access token of a stored login, renewed before it ends."""

    __slots__ = ("_clock", "_endpoint", "_expires_at", "_file", "_lock", "_refused")

    def __init__(self, endpoint: Endpoint, file: CredentialFile, clock: Clock = time.time) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._file = file
        self._clock = clock
        self._lock = threading.Lock()
        self._expires_at = 0.0
        self._refused = ""

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return "Token(of a stored login)"

    def headers(self) -> dict[str, str]:
        """Return the header that proves who is asking; renews the token where that is due.

        Raises:
            Unauthenticated: the login has ended.
            NoAnswer: the server that would renew it is not reached.
        """
        with self._lock:
            if not self._good(self._value, self._expires_at):
                self._take(self._file.find(self._endpoint))
            if not self._good(self._value, self._expires_at):
                with self._file.locked():
                    self._renew()
            return {"Authorization": f"Bearer {self._value}"}

    def refused(self) -> bool:
        """Hear that the server refused the access token: once, a new one may be taken."""
        with self._lock:
            first = self._refused != self._value
            self._refused = self._value
        return first

    def _good(self, value: str, expires_at: float) -> bool:
        """Tell whether an access token will be taken."""
        fresh = self._clock() < expires_at - RENEW_BEFORE_SECONDS
        return bool(value) and fresh and value != self._refused

    def _take(self, login: Login | None) -> Login:
        """Use what the file holds."""
        if login is None:
            raise ended(self._endpoint)
        self._value, self._expires_at = login.access_token, login.expires_at
        return login

    def _renew(self) -> None:
        """Use the refresh token up, unless another process just has."""
        login = self._take(self._file.find(self._endpoint))
        if self._good(login.access_token, login.expires_at):
            return
        try:
            new = renewed(self._endpoint, login.refresh_token, self._clock())
        except Unauthenticated:
            self._file.drop(self._endpoint)
            raise ended(self._endpoint) from None
        self._file.put(self._endpoint, new)
        self._take(new)


def stored_token(endpoint: Endpoint, file: CredentialFile | None = None) -> StoredToken | None:
    """Return what opens a server by an earlier `uait login`; None where there was none."""
    found = file or CredentialFile()
    return StoredToken(endpoint, found) if found.find(endpoint) else None


def renewed(endpoint: Endpoint, refresh_token: str, now: float) -> Login:
    """Exchange a refresh token.

    Raises:
        Unauthenticated: the login has ended.
    """
    transport = Transport(Server(endpoint, Token(), "stored login"), timeout=RENEW_SECONDS)
    body = {"grant_type": "refresh_token", "refresh_token": refresh_token}
    return Login.of(transport.call("POST", "token", body=body), now)


def ended(endpoint: Endpoint) -> Unauthenticated:
    """Describe a login that is over."""
    detail = f"Your login at {endpoint.url} has ended. Run `uait login --url {endpoint.url}`."
    return Unauthenticated(detail, {"status": 401, "code": "unauthenticated", "detail": detail})


def leads_to(url: str, endpoint: Endpoint) -> bool:
    """Tell whether an address of the file is that of a server."""
    try:
        return parse_address(url)[0].same_server(endpoint)
    except UsageMistake:
        return False


def refuse_foreign(state: os.stat_result, path: Path) -> None:
    """Refuse a file that somebody else may have read or written.

    Raises:
        UsageMistake: it is not this person's alone.
    """
    if sys.platform == "win32":
        return  # there the person's profile folder is closed to others
    if state.st_uid != os.geteuid() or stat.S_IMODE(state.st_mode) & 0o077:
        raise UsageMistake(
            f"The stored logins in {path} are open to others. End them on the account page of each "
            "server, delete the file, and log in again with `uait login`."
        )


def try_lock(descriptor: int) -> bool:
    """Lock a file, if nobody has; closing it, or the end of the process, unlocks it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
