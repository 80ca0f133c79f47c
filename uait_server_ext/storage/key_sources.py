"""Where the master key may be kept: a file, a file under a passphrase, the OS keyring, OpenBao.

=======================================  ==========================================================
`file:` or `file:/path`                  a file of mode 0600; default `<data>/keys/master.key`
`passphrase:`                            the same file, sealed under a passphrase (Argon2id), from
                                         `UAIT_PASSPHRASE` (then deleted) or asked for
`keyring:`                               the operating system's keyring (extra `uait[keyring]`)
`openbao://host:8200/transit/<key>`      the file, sealed by the transit engine of OpenBao or
`vault://...`                            HashiCorp Vault (extra `uait[vault]`); token: `BAO_TOKEN`,
                                         `VAULT_TOKEN` (then deleted) or `~/.vault-token`
=======================================  ==========================================================

Keep a copy of the key where no copy of the database is.
"""

from __future__ import annotations

import base64
import getpass
import json
import os
import secrets
import stat
import sys
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from cryptography.exceptions import InvalidTag

from uait_server_ext.errors import DependencyMissing, InvalidInput, Unavailable
from uait_server_ext.paths import private_folder

from .files import write_atomic
from .master_key import KeySource
from .sealing import decrypt, encrypt

if TYPE_CHECKING:
    import hvac

PASSPHRASE_VARIABLE = "UAIT_PASSPHRASE"  # noqa: S105 - a name
TOKEN_VARIABLES = ("BAO_TOKEN", "VAULT_TOKEN")
KEY_FILE = "master.key"
MIN_PASSPHRASE = 12
TRANSIT_SECONDS = 10
LOOPBACK = ("localhost", "127.0.0.1", "::1")

ARGON2_MEMORY_KIB = 64 * 1024
ARGON2_PASSES = 3
ARGON2_LANES = 4
MAX_ARGON2_MEMORY_KIB = 1024 * 1024
MAX_ARGON2_PASSES = 20

Ask = Callable[[str], str]


@dataclass(frozen=True)
class FileSource:
    """A file that only its owner can read."""

    path: Path

    @property
    def description(self) -> str:
        """Where the key is, for messages."""
        return f"the file {self.path}"

    def load(self) -> bytes | None:
        """Return the file's content; refuse one that others can read."""
        try:
            mode = self.path.stat().st_mode
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(
                f"The master key {self.path} cannot be read: {error.strerror}. Give the server's "
                "user the right to read it."
            ) from None
        if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
            raise Unavailable(
                f"The master key {self.path} can be read by others (mode {stat.S_IMODE(mode):o}). "
                f"Run `chmod 600 {self.path}`, and rotate the key if somebody may have read it."
            )
        return content

    def save(self, content: bytes) -> None:
        """Replace the file."""
        private_folder(self.path.parent)
        write_atomic(self.path, content, mode=0o600)


@dataclass(frozen=True)
class PassphraseSource:
    """The file, sealed under a passphrase."""

    file: FileSource
    passphrase: str = field(repr=False)

    @property
    def description(self) -> str:
        """Where the key is, for messages."""
        return f"{self.file.description}, under a passphrase"

    def load(self) -> bytes | None:
        """Open the file with the passphrase."""
        content = self.file.load()
        if content is None:
            return None
        try:
            box: dict[str, Any] = json.loads(content)
            memory, passes = int(box["memory_kib"]), int(box["passes"])
            salt, sealed = base64.b64decode(box["salt"]), base64.b64decode(box["sealed"])
            if memory > MAX_ARGON2_MEMORY_KIB or passes > MAX_ARGON2_PASSES:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise Unavailable(
                f"{self.file.path} is no key under a passphrase. Name its real source with "
                "`UaitApp.master_key`, or restore the file."
            ) from None
        try:
            return decrypt(stretch(self.passphrase, salt, memory, passes), sealed, salt)
        except InvalidTag:
            raise Unavailable(
                f"The passphrase does not open {self.file.path}. Try again with the right one."
            ) from None

    def save(self, content: bytes) -> None:
        """Seal under a fresh salt and replace the file."""
        if len(self.passphrase) < MIN_PASSPHRASE:
            raise InvalidInput(f"A passphrase has at least {MIN_PASSPHRASE} characters.")
        salt = secrets.token_bytes(16)
        key = stretch(self.passphrase, salt, ARGON2_MEMORY_KIB, ARGON2_PASSES)
        box = {
            "memory_kib": ARGON2_MEMORY_KIB,
            "passes": ARGON2_PASSES,
            "salt": base64.b64encode(salt).decode(),
            "sealed": base64.b64encode(encrypt(key, content, salt)).decode(),
        }
        self.file.save(json.dumps(box).encode())


def stretch(passphrase: str, salt: bytes, memory_kib: int, passes: int) -> bytes:
    """Turn a passphrase into a key (Argon2id, RFC 9106)."""
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    return Argon2id(
        salt=salt, length=32, iterations=passes, lanes=ARGON2_LANES, memory_cost=memory_kib
    ).derive(passphrase.encode())


@dataclass(frozen=True)
class KeyringSource:
    """The operating system's keyring; one entry for each data folder."""

    user: str
    service: str = "uait"
    description: str = "the operating system's keyring"

    def load(self) -> bytes | None:
        """Read the entry."""
        entry: str | None = self._call("get_password", self.service, self.user)
        return None if entry is None else entry.encode()

    def save(self, content: bytes) -> None:
        """Write the entry."""
        self._call("set_password", self.service, self.user, content.decode())

    def _call(self, verb: str, *arguments: str) -> Any:
        try:
            import keyring
            from keyring.errors import KeyringError, NoKeyringError
        except ImportError:
            raise DependencyMissing(
                "The master key is in the OS keyring, and the package for it is not installed. "
                "Run `pip install 'uait[keyring]'`."
            ) from None
        try:
            return getattr(keyring, verb)(*arguments)
        except NoKeyringError:
            raise Unavailable(
                "This machine has no keyring (a server without a desktop seldom has one). Set "
                "`UaitApp.master_key` to `file:` or `passphrase:`."
            ) from None
        except KeyringError as error:
            raise Unavailable(
                f"The OS keyring did not open ({type(error).__name__}). Unlock it and try again."
            ) from None


@dataclass(frozen=True)
class TransitSource:
    """The file, sealed by the transit engine of OpenBao or Vault: that server holds the key."""

    file: FileSource
    address: str
    mount: str
    key: str
    token: str = field(repr=False)

    @property
    def description(self) -> str:
        """Where the key is, for messages."""
        return f"{self.file.description}, sealed by {self.address}"

    def load(self) -> bytes | None:
        """Let the transit engine open the file."""
        content = self.file.load()
        if content is None:
            return None
        answer = self._call("decrypt_data", ciphertext=content.decode("ascii", "replace"))
        return base64.b64decode(answer["data"]["plaintext"])

    def save(self, content: bytes) -> None:
        """Let the transit engine seal the content."""
        answer = self._call("encrypt_data", plaintext=base64.b64encode(content).decode())
        self.file.save(answer["data"]["ciphertext"].encode())

    def _call(self, verb: str, **arguments: str) -> Any:
        client = vault_client(self.address, self.token, TRANSIT_SECONDS)
        import hvac
        import requests

        try:
            transit = client.secrets.transit
            return getattr(transit, verb)(name=self.key, mount_point=self.mount, **arguments)
        except (hvac.exceptions.VaultError, requests.RequestException) as error:
            raise Unavailable(
                f"{self.address} did not open the master key ({type(error).__name__}). Check that "
                "it is reachable and unsealed and that the token may use the transit key."
            ) from None
        finally:
            client.adapter.close()


def open_source(
    url: str,
    folder: Path,
    *,
    environ: MutableMapping[str, str] = os.environ,
    ask: Ask = getpass.getpass,
) -> KeySource:
    """Return the source that a URL names; `folder` is where key files are unless it says.

    Secrets that it takes from the environment are deleted there.

    Raises:
        InvalidInput: the URL names none.
        Unavailable: a passphrase or token is missing.
    """
    parts = urlsplit(url if ":" in url else f"{url}:")
    file = FileSource(Path(parts.path).expanduser() if parts.path else folder / KEY_FILE)
    if parts.scheme == "file":
        return file
    if parts.scheme == "passphrase":
        return PassphraseSource(file, passphrase(file, environ, ask))
    if parts.scheme == "keyring":
        return KeyringSource(user=parts.path or str(folder.absolute()))
    if parts.scheme in ("openbao", "vault"):
        mount, _, key = parts.path.strip("/").rpartition("/")
        plain = parse_qs(parts.query).get("tls") == ["off"]
        if mount and key and not (plain and parts.hostname not in LOOPBACK):
            return TransitSource(
                FileSource(folder / "master.transit"),
                address=f"{'http' if plain else 'https'}://{parts.netloc}",
                mount=mount,
                key=key,
                token=transit_token(environ),
            )
    raise InvalidInput(
        f"`UaitApp.master_key` is {url!r}. Write `file:`, `file:/path`, `passphrase:`, `keyring:` "
        "or `openbao://host:8200/transit/<key>` (`?tls=off` only for this machine)."
    )


def passphrase(file: FileSource, environ: MutableMapping[str, str], ask: Ask) -> str:
    """Take the passphrase from the environment, or ask for it (twice for a new key)."""
    if given := environ.pop(PASSPHRASE_VARIABLE, None):
        return given
    if not sys.stdin.isatty():
        raise Unavailable(
            f"The master key needs its passphrase: set {PASSPHRASE_VARIABLE}, or start the server "
            "from a terminal."
        )
    given = ask("Passphrase of the master key: ")
    if not file.path.exists() and ask("Again: ") != given:
        raise InvalidInput("The two passphrases differ. Start again.")
    return given


def transit_token(environ: MutableMapping[str, str]) -> str:
    """Take the token for OpenBao or Vault from the environment or its own token file."""
    found = [environ.pop(name, "") for name in TOKEN_VARIABLES]
    home = Path.home() / ".vault-token"
    for token in (*found, home.read_text().strip() if home.is_file() else ""):
        if token:
            return token
    raise Unavailable(
        "The master key is sealed by OpenBao or Vault: set BAO_TOKEN or VAULT_TOKEN, or log in "
        "with its own command."
    )


def vault_client(
    address: str, token: str, timeout: float, namespace: str | None = None
) -> hvac.Client:
    """Return a client of OpenBao or HashiCorp Vault; `client.adapter.close()` ends it.

    One on this machine is never asked through a proxy that the environment names.

    Raises:
        DependencyMissing: the extra `vault` is not installed.
    """
    try:
        import hvac
        import requests
    except ImportError:
        raise DependencyMissing(
            "A secret or the master key is kept by OpenBao or Vault, and its client is not "
            "installed. Run `pip install 'uait[vault]'`."
        ) from None
    session = requests.Session()
    session.trust_env = urlsplit(address).hostname not in ("127.0.0.1", "::1", "localhost")
    return hvac.Client(
        url=address,
        token=token,
        namespace=namespace,
        timeout=timeout,
        allow_redirects=False,
        session=session,
    )
