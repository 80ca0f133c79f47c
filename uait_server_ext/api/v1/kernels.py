"""The operation that kernels themselves call: a short-lived token for their proof."""

from __future__ import annotations

from uait_server_ext.api.operation import PUBLIC, Call, operation
from uait_server_ext.identity.kernel_proof import KernelAccess, KernelProof


@operation("POST", "/kernel-token", permission=PUBLIC, rate="write")
async def kernel_token(call: Call, body: KernelProof) -> KernelAccess:
    """Give a kernel of this server an access token for the proof that it holds its own key.

    The proof is the HMAC-SHA-256, by the key of the kernel's connection file, of
    `uait-kernel-token/1|<kernel id>|<timestamp>|<nonce>|<server address>`.
    """
    return await call.services.identity.kernel_tokens.exchange(body, call.request.address)
