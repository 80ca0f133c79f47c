"""The kernels of a Jupyter server under UAIT's rules, whatever manager class its owner chose.

`secure_kernels` hooks into the live kernel manager where it prepares a kernel, the public
`pre_start_kernel`. From there every kernel has a scrubbed environment, encrypted ports, an owner,
and a note of each of its processes: the first, a restart, Jupyter's own restart after a crash.

Not covered: kernels behind a Jupyter gateway. They run elsewhere, get only `KERNEL_*` variables
from here, and have no owner here: their magics need an API key in `UAIT_TOKEN`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from jupyter_client.manager import KernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_server.base.call_context import CallContext
from jupyter_server.serverapp import ServerApp

from uait_kernel.endpoint import parse_address
from uait_kernel.errors import UsageMistake

from .kernel_environment import KernelEnvironment
from .kernel_proof import KernelBindings, KernelOwner
from .principal import Principal

Encryption = Literal["required", "auto", "disabled"]


class JupyterKernels:
    """The live kernels of a server, as `kernel_proof.LiveKernels` wants to know them."""

    def __init__(self, serverapp: ServerApp, bindings: KernelBindings) -> None:
        self.serverapp = serverapp
        self.bindings = bindings

    async def key(self, kernel_id: str) -> bytes | None:
        """Return the key of a kernel's connection file; None where no such kernel is alive."""
        manager = self.serverapp.kernel_manager
        if kernel_id not in manager:
            return None
        kernel = manager.get_kernel(kernel_id)
        alive: bool | Awaitable[bool] = kernel.is_alive()
        if isinstance(alive, Awaitable):
            alive = await alive
        return bytes(kernel.session.key) if alive else None

    def audience(self) -> str:
        """Return the address that the server's runtime file gives, as kernels write it.

        Empty where the server listens on a Unix socket only: no kernel's proof is for that.
        """
        try:
            return parse_address(self.serverapp.connection_url)[0].url
        except UsageMistake:
            return ""


def secure_kernels(
    serverapp: ServerApp,
    bindings: KernelBindings,
    *,
    environment: KernelEnvironment | None = None,
    encryption: Encryption = "required",
) -> JupyterKernels:
    """Put the kernels of a server under UAIT's rules; call once, before the first one starts.

    Args:
        environment: what kernels may see of the server's environment.
        encryption: CurveZMQ between server and kernel. `required`: a kernel that cannot do it
            does not start; `auto`: it starts without.
    """
    manager: Any = serverapp.kernel_manager
    scrub = environment or KernelEnvironment()
    if manager.has_trait("transport_encryption"):
        manager.transport_encryption = encryption
    prepare: Callable[..., tuple[Any, Any, str]] = manager.pre_start_kernel
    remove: Callable[..., Any] = manager.remove_kernel
    update: Callable[..., None] = manager.update_env

    def pre_start_kernel(kernel_name: str | None, kwargs: dict[str, Any]) -> tuple[Any, Any, str]:
        kwargs["env"] = scrub.clean(kwargs.get("env"))
        kernel, name, kernel_id = prepare(kernel_name, kwargs)
        if isinstance(kernel, KernelManager):
            kernel.transport_encryption = encryption
        watch(kernel, kernel_id, starter(), bindings, scrub)
        return kernel, name, kernel_id

    def remove_kernel(kernel_id: str) -> Any:
        bindings.release(kernel_id)
        return remove(kernel_id)

    def update_env(*, kernel_id: str, env: Mapping[str, str]) -> None:
        # Jupyter hands the server's whole environment over when a notebook is renamed.
        update(kernel_id=kernel_id, env=scrub.clean(env))

    manager.pre_start_kernel = pre_start_kernel
    manager.remove_kernel = remove_kernel
    manager.update_env = update_env
    return JupyterKernels(serverapp, bindings)


def watch(
    kernel: Any,
    kernel_id: str,
    owner: KernelOwner | None,
    bindings: KernelBindings,
    scrub: KernelEnvironment,
) -> None:
    """Scrub and note every process that a kernel's provisioner launches, of whatever class it is.

    Jupyter keeps the provisioner over restarts, which pass by every other public hook.
    """
    try:
        provisioner: Any = KernelProvisionerFactory.instance(
            parent=kernel.parent
        ).create_provisioner_instance(kernel_id, kernel.kernel_spec, parent=kernel)
    except Exception:
        # No such kernel or provisioner: the kernel manager meets the same error and reports it.
        return
    launch = provisioner.launch_kernel
    named = frozenset(kernel.kernel_spec.env)

    async def launch_kernel(cmd: list[str], **kwargs: Any) -> Any:
        kwargs["env"] = scrub.at_launch(kwargs.get("env"), named)
        bindings.bind(kernel_id, owner)
        try:
            return await launch(cmd, **kwargs)
        except BaseException:
            bindings.release(kernel_id)
            raise

    provisioner.launch_kernel = launch_kernel
    kernel.provisioner = provisioner


def starter() -> KernelOwner | None:
    """Return who sends the request in which this runs; None outside of one, or without login."""
    handler = CallContext.get(CallContext.JUPYTER_HANDLER)
    principal = getattr(getattr(handler, "current_user", None), "principal", None)
    return KernelOwner.of(principal) if isinstance(principal, Principal) else None


def secure_terminals(serverapp: ServerApp, environment: KernelEnvironment | None = None) -> bool:
    """Scrub the environment of terminals as that of kernels; call when extensions are loaded.

    Returns whether the server has terminals.
    """
    assert serverapp.web_app
    manager: Any = serverapp.web_app.settings.get("terminal_manager")
    if manager is None:
        return False
    scrub = environment or KernelEnvironment()
    make: Callable[..., dict[str, str]] = manager.make_term_env

    def make_term_env(*args: Any, **kwargs: Any) -> dict[str, str]:
        return scrub.at_launch(make(*args, **kwargs))

    manager.make_term_env = make_term_env
    return True
