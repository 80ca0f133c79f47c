"""Kernels and their owners, and the short-lived token that a kernel gets for its proof.

::

    kernel                                        server
      MAC(key of the connection file; kernel id, time, nonce, server's address)
      ── POST /kernel-token ────────────────────────► the same key is in the kernel manager
      ◄──────────────── token: 5 minutes, audience `uait-kernel`, the owner's rights at most

The key is never sent, and no long-lived secret is in the kernel's environment. Whose kernel it is
was recorded when it was started; a kernel that nobody started gets no token. How to look at the
live kernels is `jupyter_kernels.py`; the MAC itself is the client's (`uait_kernel.kernel_proof`).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import ConfigDict, Field

from uait_kernel.kernel_proof import proof_mac
from uait_server_ext.errors import PermissionDenied
from uait_server_ext.events.record import AuditEvent
from uait_server_ext.schema import Schema
from uait_server_ext.storage.ids import Clock, now

from .principal import KERNEL_PERMISSIONS, Principal

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from uait_server_ext.events.audit import AuditLog
    from uait_server_ext.storage.database import Database

    from .directory import Directory, Standing
    from .jwt_claims import AccessClaims
    from .tokens import AccessTokens

WINDOW_SECONDS = 60.0
LEAST_KEY_BYTES = 16  # Jupyter's own keys have 33; none at all where signing was switched off
AUDIENCE: Literal["uait-kernel"] = "uait-kernel"


class KernelProof(Schema):
    """What a kernel sends to prove itself."""

    model_config = ConfigDict(extra="forbid")

    kernel_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    timestamp: Annotated[int, Field(ge=0, lt=1 << 40)] = Field(description="Seconds, UTC.")
    nonce: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{16,64}$")] = Field(
        description="Fresh and random in every proof."
    )
    mac: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="HMAC-SHA-256 in hexadecimal, by the key of the kernel's connection file."
    )


class KernelAccess(Schema):
    """A kernel's access token."""

    access_token: str = Field(repr=False)
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105
    expires_in: int = Field(description="Seconds.")
    scope: str = Field(description="Permissions, separated by spaces.")


@dataclass(frozen=True, slots=True)
class KernelOwner:
    """Who started a kernel, and the most that its tokens may do."""

    user_id: str
    permissions: frozenset[str]

    @staticmethod
    def of(principal: Principal) -> KernelOwner:
        """Return the owner that a principal becomes: a key's kernel can do no more than the key."""
        return KernelOwner(principal.id, principal.permissions & KERNEL_PERMISSIONS)


@dataclass(frozen=True, slots=True)
class Binding:
    """One process of a kernel, and its owner."""

    owner: KernelOwner | None
    generation: int


class LiveKernels(Protocol):
    """The kernels that run now."""

    async def key(self, kernel_id: str) -> bytes | None:
        """Return the key of a kernel's connection file; None where no such kernel is alive."""

    def audience(self) -> str:
        """Return the server's address as its kernels know it (`Endpoint.url`)."""


class KernelBindings:
    """Which kernels run, whose they are, and which process of a kernel it is.

    It is in memory: no kernel outlives the server that started it.

    Attributes:
        changes: rises when a kernel's process begins or ends, so that cached answers go stale.
    """

    def __init__(self, clock: Clock = now) -> None:
        self._clock = clock
        self._bindings: dict[str, Binding] = {}
        self._last = 0
        self.changes = 0

    def bind(self, kernel_id: str, owner: KernelOwner | None) -> int:
        """Note that a process of a kernel starts; tokens of the process before it are dead.

        Returns its generation: greater than every one before it, of any kernel.
        """
        self._last = max(self._last + 1, int(self._clock() * 1000))
        self._bindings[kernel_id] = Binding(owner, self._last)
        self.changes += 1
        return self._last

    def release(self, kernel_id: str) -> None:
        """Note that a kernel has ended: its tokens are dead."""
        if self._bindings.pop(kernel_id, None):
            self.changes += 1

    def end_tokens(self, user_id: str) -> None:
        """End the tokens of a person's kernels: at logout. The kernels run on and prove anew."""
        for kernel_id, binding in list(self._bindings.items()):
            if binding.owner and binding.owner.user_id == user_id:
                self.bind(kernel_id, binding.owner)

    def owner(self, kernel_id: str) -> KernelOwner | None:
        """Return who started a kernel; None where nobody did, or it does not run."""
        binding = self._bindings.get(kernel_id)
        return binding.owner if binding else None

    def generation(self, kernel_id: str) -> int | None:
        """Return the generation of the process that runs, None where none does."""
        binding = self._bindings.get(kernel_id)
        return binding.generation if binding else None

    def instance(self, kernel_id: str) -> str | None:
        """Return what a token names: the kernel and its process, `<kernel id>@<generation>`."""
        generation = self.generation(kernel_id)
        return None if generation is None else f"{kernel_id}@{generation}"

    def stands(self, claims: AccessClaims) -> bool:
        """Tell whether the kernel process that a token was issued to still runs."""
        if claims.kernel_id is None:
            return False
        kernel_id = claims.kernel_id.rpartition("@")[0]
        owner = self.owner(kernel_id)
        return (
            owner is not None
            and owner.user_id == claims.user_id
            and claims.kernel_id == self.instance(kernel_id)
        )


class KernelTokens:
    """Check kernels' proofs and issue their tokens."""

    def __init__(
        self,
        database: Database,
        *,
        directory: Directory,
        tokens: AccessTokens,
        audit: AuditLog,
        bindings: KernelBindings,
        kernels: LiveKernels,
        clock: Clock = now,
    ) -> None:
        self.database = database
        self.directory = directory
        self.tokens = tokens
        self.audit = audit
        self.bindings = bindings
        self.kernels = kernels
        self.clock = clock

    async def exchange(self, proof: KernelProof, address: str) -> KernelAccess:
        """Return a token for a proof.

        Args:
            address: where the request came from, for the audit log.

        Raises:
            PermissionDenied: forged, of no live kernel, too old, used before, or of a kernel
                without an owner who may use it. Who holds no key cannot tell the first two apart.
        """
        # Before the key is asked for: a restart in between leaves a token that is already dead.
        instance = self.bindings.instance(proof.kernel_id)
        owner = self.bindings.owner(proof.kernel_id)
        key = await self.kernels.key(proof.kernel_id)
        if not self.holds_key(proof, key):
            raise await self.refused(proof, address, "proof", "The kernel's proof is not valid.")
        if abs(self.clock() - proof.timestamp) > WINDOW_SECONDS:
            raise await self.refused(
                proof,
                address,
                "time",
                "The kernel's proof is too old or from the future. Set the clocks of the kernel's "
                "and the server's machine.",
            )
        if owner is None or instance is None:
            raise await self.refused(
                proof,
                address,
                "owner",
                "Nobody who is logged in started this kernel. Start it from JupyterLab, or set "
                "UAIT_TOKEN to an API key.",
            )
        first, standing = await self.database.write(
            lambda connection: self._spend(connection, proof, owner, address)
        )
        if not first:
            raise await self.refused(
                proof, address, "replay", "The kernel's proof was used before. Send a new one."
            )
        if standing is None or standing.disabled:
            raise await self.refused(
                proof, address, "disabled", "The account of this kernel's owner is not active."
            )
        scope = standing.permissions & owner.permissions & KERNEL_PERMISSIONS
        token = await self.tokens.issue(
            user_id=standing.user_id,
            epoch=standing.epoch,
            scope=scope,
            authenticated_at=0.0,
            audience=AUDIENCE,
            kernel_id=instance,
        )
        return KernelAccess(
            access_token=token,
            expires_in=self.tokens.lifetime(AUDIENCE),
            scope=" ".join(sorted(scope)),
        )

    def holds_key(self, proof: KernelProof, key: bytes | None) -> bool:
        """Tell whether the proof was made with the key; takes as long where there is none."""
        usable = key is not None and len(key) >= LEAST_KEY_BYTES
        expected = proof_mac(
            key if key is not None and usable else bytes(32),
            kernel_id=proof.kernel_id,
            timestamp=proof.timestamp,
            nonce=proof.nonce,
            audience=self.kernels.audience(),
        )
        return hmac.compare_digest(expected, proof.mac) and usable

    def _spend(
        self, connection: Connection, proof: KernelProof, owner: KernelOwner, address: str
    ) -> tuple[bool, Standing | None]:
        """Take a valid proof's nonce; tell whether it was new, and how its owner stands."""
        from sqlalchemy import delete, select

        from .tables import nonces

        subject = f"kernel:{proof.kernel_id}"
        mine = (nonces.c.subject == subject, nonces.c.nonce == proof.nonce)
        connection.execute(delete(nonces).where(nonces.c.expires_at < self.clock()))
        if connection.scalar(select(nonces.c.nonce).where(*mine)) is not None:
            return False, None
        expires_at = proof.timestamp + 2 * WINDOW_SECONDS  # no clock accepts the proof after that
        connection.execute(
            nonces.insert().values(subject=subject, nonce=proof.nonce, expires_at=expires_at)
        )
        standing = self.directory.standing(connection, owner.user_id)
        if standing and not standing.disabled:
            self.audit.append(connection, event("ok", proof, address, owner))
        return True, standing

    async def refused(
        self, proof: KernelProof, address: str, reason: str, detail: str
    ) -> PermissionDenied:
        """Note a refusal and return its error."""
        owner = self.bindings.owner(proof.kernel_id)
        await self.audit.record(event("refused", proof, address, owner, reason=reason))
        return PermissionDenied(detail)


def event(
    outcome: Literal["ok", "refused"],
    proof: KernelProof,
    address: str,
    owner: KernelOwner | None,
    **detail: str,
) -> AuditEvent:
    """Describe what came of a proof for the audit log."""
    return AuditEvent(
        action="kernel.token",
        outcome=outcome,
        principal=owner.user_id if owner else None,
        kind="kernel",
        address=address,
        target=proof.kernel_id,
        detail=detail,
    )
