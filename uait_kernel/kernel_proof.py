"""How this kernel proves itself to the server that started it, and the token it gets for that.

The server and its kernel share one secret already: the key of the connection file, with which
Jupyter signs the messages between them. A MAC over who, when and for whom proves that this process
holds it; the key itself is never sent. The token that comes back lives for minutes, in memory.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePath

from .endpoint import Endpoint, Server, Token
from .errors import UnexpectedAnswer
from .transport import Transport

PURPOSE = "uait-kernel-token/1"
KERNEL_ID = re.compile(r"[\w-]{1,64}", re.ASCII)
EXCHANGE_SECONDS = 10.0
RENEW_BEFORE_SECONDS = 60.0

Clock = Callable[[], float]
Exchange = Callable[[], tuple[str, float]]
"""Return a new token and the seconds for which it counts."""


def proof_mac(key: bytes, *, kernel_id: str, timestamp: int, nonce: str, audience: str) -> str:
    """Return the proof, HMAC-SHA-256 in hexadecimal.

    No message that Jupyter signs with this key begins like this one: those begin with a JSON
    object.

    Args:
        timestamp: seconds since the epoch (UTC).
        audience: the server's address as `Endpoint.url` writes it.
    """
    message = "|".join((PURPOSE, kernel_id, str(timestamp), nonce, audience))
    return hmac.new(key, message.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class OwnKernel:
    """The kernel in whose process this code runs."""

    id: str
    key: bytes = field(repr=False)


def own_kernel() -> OwnKernel | None:
    """Return the kernel of this process; None in a script, or in a kernel without an own key."""
    module = sys.modules.get("ipykernel.kernelapp")
    if module is None or not module.IPKernelApp.initialized():
        return None
    app = module.IPKernelApp.instance()
    # Jupyter Server names the connection file of a kernel `kernel-<id>.json`.
    kernel_id = PurePath(app.connection_file).stem.removeprefix("kernel-")
    key = bytes(app.session.key)
    if not key or not KERNEL_ID.fullmatch(kernel_id):
        return None
    return OwnKernel(kernel_id, key)


def exchange_with(endpoint: Endpoint, kernel: OwnKernel, *, now: Clock = time.time) -> Exchange:
    """Return the function that proves the kernel to a server and brings a new token.

    Its errors are those of `Transport.call`: `PermissionDenied` where the server does not accept
    the proof, `Unavailable` where it gives no tokens.
    """

    def exchange() -> tuple[str, float]:
        timestamp, nonce = int(now()), secrets.token_urlsafe(24)
        proof = {"kernel_id": kernel.id, "timestamp": timestamp, "nonce": nonce}
        mac = proof_mac(
            kernel.key,
            kernel_id=kernel.id,
            timestamp=timestamp,
            nonce=nonce,
            audience=endpoint.url,
        )
        server = Server(endpoint, Token(), "the server of this kernel")
        transport = Transport(server, timeout=EXCHANGE_SECONDS)
        answer = transport.call("POST", "kernel-token", body=proof | {"mac": mac})
        token, seconds = answer.get("access_token"), answer.get("expires_in")
        if not isinstance(token, str) or not isinstance(seconds, int | float):
            raise UnexpectedAnswer(f"{server} answered the kernel's proof without a token.")
        return token, float(seconds)

    return exchange


class KernelToken(Token):
    """A token that is fetched when it is first needed and renewed before it ends."""

    __slots__ = ("_clock", "_exchange", "_lock", "_renew_at")

    def __init__(self, exchange: Exchange, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self._exchange = exchange
        self._clock = clock
        self._lock = threading.Lock()
        self._renew_at = 0.0

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return "Token(of this kernel)"

    def headers(self) -> dict[str, str]:
        """Return the header that proves who is asking; fetches a token where that is due.

        Raises:
            UaitClientError: the server gave none.
        """
        with self._lock:
            if not self._value or self._clock() >= self._renew_at:
                self._value = ""
                value, seconds = self._exchange()
                self._renew_at = self._clock() + seconds - min(RENEW_BEFORE_SECONDS, seconds / 2)
                self._value = Token(value)._value
            return {"Authorization": f"Bearer {self._value}"}

    def refused(self) -> bool:
        """Forget a token that the server no longer takes; a new one may be taken."""
        with self._lock:
            self._value = ""
        return True
