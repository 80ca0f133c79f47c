"""Kernels under UAIT's rules in a real Jupyter server: environment, owner, encrypted ports."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from jupyter_server.auth import IdentityProvider
from jupyter_server.serverapp import ServerApp
from jupyter_server.services.kernels.kernelmanager import ServerKernelManager
from tornado.httpclient import HTTPClientError, HTTPResponse

from uait_server_ext.identity.jupyter_kernels import (
    JupyterKernels,
    secure_kernels,
    secure_terminals,
)
from uait_server_ext.identity.jupyter_provider import UaitUser
from uait_server_ext.identity.kernel_environment import KernelEnvironment
from uait_server_ext.identity.kernel_proof import KernelBindings
from uait_server_ext.identity.principal import ROLES, Principal

Fetch = Callable[..., Awaitable[HTTPResponse]]

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
pytestmark = [pytest.mark.slow, linux]

CANARY = "canary-of-the-server"
SECRETS = (
    "OPENAI_API_KEY",
    "UAIT_MASTER_KEY",
    "DATABASE_URL",
    "JUPYTERHUB_API_TOKEN",
    "PGPASSWORD",
)
ADA = Principal("usr_ada", "Ada", "user", ROLES["developer"])


class OwnProvider(IdentityProvider):
    """An identity provider whose one user is Ada."""

    async def get_user(self, handler: Any) -> UaitUser:
        handler._token_authenticated = True
        return UaitUser.of(ADA)


class OwnManager(ServerKernelManager):
    """The kernel manager class that an administrator has chosen."""

    started = 0

    async def start_kernel(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        type(self).started += 1
        return await super().start_kernel(*args, **kwargs)


class GreedyProvisioner(LocalProvisioner):
    """A kernelspec's own provisioner, which takes the whole environment and adds to it."""

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        kwargs["env"] = {**os.environ, "PROVISIONER_TOKEN": "its own"}
        return await super().pre_launch(**kwargs)


@pytest.fixture
def jp_server_config() -> dict[str, Any]:
    return {
        "ServerApp": {
            "jpserver_extensions": {"jupyter_server_terminals": True},
            "identity_provider_class": OwnProvider,
        },
        "MappingKernelManager": {
            "kernel_manager_class": f"{__name__}.OwnManager",
            "transport_encryption": "disabled",
        },
    }


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put secrets into the server's environment."""
    for name in SECRETS:
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("TEAM_COLOUR", "blue")


@pytest.fixture
def bindings() -> KernelBindings:
    return KernelBindings()


@pytest.fixture
def kernels(
    secrets: None,
    jp_serverapp: ServerApp,
    bindings: KernelBindings,
    monkeypatch: pytest.MonkeyPatch,
) -> JupyterKernels:
    """Put the kernels of the in-process server under UAIT's rules."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    return secure_kernels(jp_serverapp, bindings)


async def post(fetch: Fetch, *path: str, method: str = "POST", body: Any = None) -> Any:
    answer = await fetch(*path, method=method, body=json.dumps(body or {}))
    return json.loads(answer.body) if answer.body else None


def kernel_environment(serverapp: ServerApp, kernel_id: str) -> dict[str, str]:
    """Return the environment with which a kernel's process began."""
    provisioner: Any = serverapp.kernel_manager.get_kernel(kernel_id).provisioner
    return environment_of(provisioner.pid)


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment with which a process began."""
    content = Path(f"/proc/{pid}/environ").read_bytes()
    pairs = (pair.decode().partition("=") for pair in content.split(b"\0") if pair)
    return {name: value for name, _, value in pairs}


def assert_clean(environment: Mapping[str, str]) -> None:
    assert CANARY not in str(environment)
    assert "TEAM_COLOUR" not in environment
    assert {"PATH", "HOME", "JPY_PARENT_PID"} <= set(environment)


async def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    for _ in range(int(seconds / 0.1)):
        if condition():
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it did not happen in time")


async def test_100_from_start_to_end_a_kernel_sees_no_secret_and_keeps_its_owner(
    jp_serverapp: ServerApp, jp_fetch: Fetch, kernels: JupyterKernels, bindings: KernelBindings
) -> None:
    manager = jp_serverapp.kernel_manager
    session = await post(
        jp_fetch,
        "api",
        "sessions",
        body={
            "path": "a.ipynb",
            "type": "notebook",
            "name": "a.ipynb",
            "kernel": {"name": "python3"},
        },
    )
    kernel_id = session["kernel"]["id"]
    kernel: Any = manager.get_kernel(kernel_id)
    assert type(kernel).__name__ == "OwnManager"
    assert type(kernel).started == 1
    began = kernel_environment(jp_serverapp, kernel_id)
    assert_clean(began)
    assert began["JPY_PARENT_PID"] == str(os.getpid())
    assert began["JPY_SESSION_NAME"].endswith("a.ipynb")
    owner = bindings.owner(kernel_id)
    assert owner is not None
    assert owner.user_id == "usr_ada"
    first = bindings.generation(kernel_id)
    assert await kernels.key(kernel_id) == kernel.session.key

    # A new name makes Jupyter hand its whole environment to the next process of the kernel.
    renamed = {"path": "b.ipynb", "name": "b.ipynb"}
    await post(jp_fetch, "api", "sessions", session["id"], method="PATCH", body=renamed)
    await post(jp_fetch, "api", "kernels", kernel_id, "restart")
    restarted = kernel_environment(jp_serverapp, kernel_id)
    assert_clean(restarted)
    assert restarted["JPY_SESSION_NAME"].endswith("b.ipynb")
    second = bindings.generation(kernel_id)
    assert first is not None
    assert second is not None
    assert second > first

    # Jupyter's own restart of a kernel that died: there is no request, so nobody to ask for.
    os.kill(kernel.provisioner.pid, signal.SIGKILL)
    await until(lambda: bindings.generation(kernel_id) not in (None, second))
    await until(lambda: kernel.provisioner.pid and kernel.provisioner.process.poll() is None)
    assert_clean(kernel_environment(jp_serverapp, kernel_id))
    assert bindings.owner(kernel_id) == owner

    await jp_fetch("api", "sessions", session["id"], method="DELETE")
    assert bindings.generation(kernel_id) is None
    assert await kernels.key(kernel_id) is None


async def test_100_a_kernelspecs_own_provisioner_gets_no_secret_either(
    jp_serverapp: ServerApp,
    jp_fetch: Fetch,
    kernels: JupyterKernels,
    jp_data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    factory = KernelProvisionerFactory.instance(parent=jp_serverapp.kernel_manager)
    entry: Any = SimpleNamespace(name="greedy", load=lambda: GreedyProvisioner)
    monkeypatch.setitem(factory.provisioners, "greedy", entry)
    folder = jp_data_dir / "kernels" / "greedy"
    folder.mkdir(parents=True)
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Greedy",
        "language": "python",
        "env": {"SPEC_TOKEN": "of the specification", "TEMPLATE": "${NOT_THERE}"},
        "metadata": {
            "supported_encryption": "curve",
            "kernel_provisioner": {"provisioner_name": "greedy"},
        },
    }
    (folder / "kernel.json").write_text(json.dumps(spec))
    kernel_id = (await post(jp_fetch, "api", "kernels", body={"name": "greedy"}))["id"]
    provisioner = jp_serverapp.kernel_manager.get_kernel(kernel_id).provisioner
    assert type(provisioner).__name__ == "GreedyProvisioner"
    for _ in ("started", "restarted"):
        environment = kernel_environment(jp_serverapp, kernel_id)
        assert_clean(environment)
        assert environment["SPEC_TOKEN"] == "of the specification"
        assert environment["PROVISIONER_TOKEN"] == "its own"
        await post(jp_fetch, "api", "kernels", kernel_id, "restart")
    await jp_fetch("api", "kernels", kernel_id, method="DELETE")


async def test_100_what_an_administrator_lists_reaches_the_kernel(
    secrets: None, jp_serverapp: ServerApp, jp_fetch: Fetch, bindings: KernelBindings
) -> None:
    rules = KernelEnvironment(["TEAM_*", "PGPASSWORD"])
    secure_kernels(jp_serverapp, bindings, environment=rules)
    kernel_id = (await post(jp_fetch, "api", "kernels", body={"name": "python3"}))["id"]
    environment = kernel_environment(jp_serverapp, kernel_id)
    assert environment["TEAM_COLOUR"] == "blue"
    assert environment["PGPASSWORD"] == CANARY
    assert not {"OPENAI_API_KEY", "UAIT_MASTER_KEY"} & set(environment)
    await jp_fetch("api", "kernels", kernel_id, method="DELETE")


async def test_100_a_terminal_sees_no_secret(
    secrets: None, jp_serverapp: ServerApp, jp_fetch: Fetch
) -> None:
    assert secure_terminals(jp_serverapp)
    name = (await post(jp_fetch, "api", "terminals"))["name"]
    manager = jp_serverapp.web_app.settings["terminal_manager"]
    environment = environment_of(manager.terminals[name].ptyproc.pid)
    assert CANARY not in str(environment)
    assert {"TERM", "PATH", "HOME"} <= set(environment)
    await jp_fetch("api", "terminals", name, method="DELETE")


READ_PARENT = """
import ctypes, os, sys
sys.path.insert(0, sys.argv[1])
from uait_server_ext.hardening import PR_SET_DUMPABLE, refuse_dumps

def try_to_read():
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    for name in ("environ", "mem"):
        try:
            os.close(os.open(f"/proc/{os.getppid()}/{name}", os.O_RDONLY))
            print(name, "open", end=" ")
        except OSError:
            print(name, "refused", end=" ")
    print(flush=True)
    os._exit(0)

if os.getuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
    # Changing its user made Linux refuse by itself; a server that was started by its user does not.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
try_to_read()
assert refuse_dumps()
try_to_read()
"""


def test_100_no_process_of_the_same_user_reads_the_servers_environment_or_memory() -> None:
    command = [sys.executable, "-c", READ_PARENT, str(Path(__file__).parents[2])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = (line.split() for line in done.stdout.splitlines())
    if "open" not in before:
        pytest.skip("on this machine no process reads another one anyway")
    assert after == ["environ", "refused", "mem", "refused"]


# 101: the ports of kernels.

LISTEN = """
import json, sys, zmq
info = json.load(open(sys.argv[1]))
socket = zmq.Context().socket(zmq.SUB)
socket.subscribe(b"")
socket.connect(f"tcp://{info['ip']}:{info['iopub_port']}")
print("listening", flush=True)
received = 0
while socket.poll(8000):
    socket.recv_multipart()
    received += 1
print(received, flush=True)
"""


def connection(kernel: Any) -> dict[str, Any]:
    """Return what a kernel's connection file says."""
    content: dict[str, Any] = json.loads(Path(kernel.connection_file).read_text())
    return content


async def overhear(serverapp: ServerApp, kernel_id: str, folder: Path) -> int:
    """Run a cell while another user listens; return how many messages that one received."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("needs root and setpriv, to be another user")
    kernel: Any = serverapp.kernel_manager.get_kernel(kernel_id)
    known = connection(kernel)
    ports = folder / "ports.json"  # a port scan tells as much
    ports.write_text(json.dumps({name: known[name] for name in ("ip", "iopub_port")}))
    for path in (folder, *folder.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/") and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)
    ports.chmod(0o644)
    other = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"]
    listener = await asyncio.create_subprocess_exec(
        *other, sys.executable, "-c", LISTEN, str(ports), stdout=subprocess.PIPE, cwd="/"
    )
    assert listener.stdout is not None
    assert await listener.stdout.readline() == b"listening\n"
    await asyncio.sleep(1)
    client = kernel.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)
        seen: list[Any] = []
        await client.execute_interactive(
            "for n in range(5): print('payroll', n)", timeout=60, output_hook=seen.append
        )
        assert "payroll" in str(seen)
    finally:
        client.stop_channels()
    heard = int(await listener.stdout.readline())
    await listener.wait()
    return heard


@pytest.mark.parametrize("encryption", ["required", "disabled"])
async def test_101_another_user_of_the_machine_receives_nothing_of_a_kernels_output(
    jp_serverapp: ServerApp,
    jp_fetch: Fetch,
    bindings: KernelBindings,
    tmp_path: Path,
    encryption: Any,
) -> None:
    secure_kernels(jp_serverapp, bindings, encryption=encryption)
    kernel_id = (await post(jp_fetch, "api", "kernels", body={"name": "python3"}))["id"]
    try:
        heard = await overhear(jp_serverapp, kernel_id, tmp_path)
    finally:
        await jp_fetch("api", "kernels", kernel_id, method="DELETE")
    # Without encryption the same listener hears it: so silence means something.
    assert (heard == 0) is (encryption == "required")


async def test_101_no_configuration_takes_the_encryption_away(
    jp_serverapp: ServerApp, jp_fetch: Fetch, kernels: JupyterKernels
) -> None:
    kernel_id = (await post(jp_fetch, "api", "kernels", body={"name": "python3"}))["id"]
    kernel: Any = jp_serverapp.kernel_manager.get_kernel(kernel_id)
    assert connection(kernel)["curve_publickey"]
    await jp_fetch("api", "kernels", kernel_id, method="DELETE")


@pytest.mark.parametrize(("encryption", "starts"), [("required", False), ("auto", True)])
async def test_101_a_kernel_that_cannot_encrypt_does_not_start(
    jp_serverapp: ServerApp,
    jp_fetch: Fetch,
    bindings: KernelBindings,
    jp_data_dir: Path,
    encryption: Any,
    starts: bool,
) -> None:
    secure_kernels(jp_serverapp, bindings, encryption=encryption)
    folder = jp_data_dir / "kernels" / "old"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Old", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    if starts:
        kernel_id = (await post(jp_fetch, "api", "kernels", body={"name": "old"}))["id"]
        await jp_fetch("api", "kernels", kernel_id, method="DELETE")
        return
    with pytest.raises(HTTPClientError) as caught:
        await post(jp_fetch, "api", "kernels", body={"name": "old"})
    assert caught.value.code == 500
    assert bindings._bindings == {}
