"""A real server, a real kernel, and what the token that the kernel proves itself for can do."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_core.paths import jupyter_runtime_dir

from uait_kernel.endpoint import parse_address
from uait_kernel.kernel_proof import proof_mac
from uait_server_ext.identity.principal import KERNEL_PERMISSIONS

if TYPE_CHECKING:
    from tests.security.conftest import Api, IdentityServer, Person

pytestmark = pytest.mark.slow

OPENED = """
import json, uait_kernel
from uait_kernel.session import SESSION
with SESSION.client() as client:
    client.models()
    print(json.dumps(client._http.server.token.headers()["Authorization"].split()))
"""


class Kernel:
    """A kernel of the server, and a line to it."""

    def __init__(self, api: Api, kernel_id: str) -> None:
        self.api, self.id = api, kernel_id

    @property
    def connection_file(self) -> Path:
        return Path(jupyter_runtime_dir()) / f"kernel-{self.id}.json"

    @property
    def key(self) -> bytes:
        return str(json.loads(self.connection_file.read_text())["key"]).encode()

    def run(self, code: str) -> str:
        """Run a cell and return what it printed; wait for a kernel that has just begun."""
        client = BlockingKernelClient(connection_file=str(self.connection_file))
        client.load_connection_file()
        client.start_channels()
        messages: list[dict[str, Any]] = []
        try:
            for attempts_left in reversed(range(30)):
                try:
                    client.wait_for_ready(timeout=60)
                    break
                except RuntimeError:  # no heartbeat yet
                    if not attempts_left:
                        raise
            client.execute_interactive(code, timeout=60, output_hook=messages.append)
        finally:
            client.stop_channels()
        contents = [message["content"] for message in messages]
        errors = [content for content in contents if "ename" in content]
        assert not errors, errors
        return "".join(content.get("text", "") for content in contents)

    def token(self) -> str:
        """Return the token for which the kernel proves itself."""
        scheme, token = json.loads(self.run(OPENED))
        assert scheme == "Bearer"
        return str(token)

    def proof(self, url: str, **changes: Any) -> dict[str, Any]:
        """Make a proof of this kernel outside of it."""
        signed: dict[str, Any] = {
            "kernel_id": self.id,
            "timestamp": int(time.time()),
            "nonce": f"nonce-{time.time_ns()}",
        } | changes
        key = signed.pop("key", None) or self.key
        audience = parse_address(url)[0].url
        return signed | {"mac": proof_mac(key, audience=audience, **signed)}


@contextmanager
def started(api: Api) -> Iterator[Kernel]:
    """Run a kernel that this caller starts."""
    answer = api.post("api/kernels", {"name": "python3"})
    assert answer.status_code == 201, answer.text
    kernel = Kernel(api, answer.json()["id"])
    try:
        yield kernel
    finally:
        api.delete(f"api/kernels/{kernel.id}")


@pytest.fixture(scope="module")
def ada(people: dict[str, Person], server: IdentityServer) -> Api:
    """Return the browser of a developer."""
    return server.login(people["developer"])


@pytest.fixture(scope="module")
def kernel(ada: Api) -> Iterator[Kernel]:
    """Run a kernel of that developer."""
    with started(ada) as running:
        yield running


def address(server: IdentityServer) -> str:
    """Return the address that the server's runtime file gives."""
    runtime = Path(jupyter_runtime_dir()) / f"jpserver-{server.pid}.json"
    return str(json.loads(runtime.read_text())["url"])


def shown(server: IdentityServer, proof: dict[str, Any]) -> httpx.Response:
    """Show a proof as a kernel does: without a login."""
    return server.anonymous().post("~/kernel-token", proof)


def test_098_a_kernel_opens_its_server_by_its_proof(
    server: IdentityServer, kernel: Kernel, people: dict[str, Person]
) -> None:
    program = server.program(kernel.token())
    me = program.get("~/models")
    assert me.status_code == 200
    assert people["developer"].id not in kernel.run("import os; print(dict(os.environ))")


CLOSED = [
    ("GET", "~/vault/secrets"),
    ("GET", "~/users"),
    ("GET", "~/me/keys"),
    ("POST", "~/me/keys"),
    ("GET", "~/audit"),
    ("GET", "api/contents"),
    ("PUT", "api/contents/x.txt"),
    ("GET", "api/kernels"),
    ("POST", "api/kernels"),
    ("GET", "api/sessions"),
    ("POST", "api/terminals"),
    ("GET", "lab/api/settings"),
    ("POST", "lab/api/extensions"),
    ("POST", "api/shutdown"),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_098_a_kernel_token_opens_nothing_but_models_and_knowledge(
    server: IdentityServer, kernel: Kernel, method: str, path: str
) -> None:
    program = server.program(kernel.token())
    body: dict[str, Any] = {} if method == "GET" else {"json": {}}
    assert program.request(method, path, **body).status_code == 403


def test_098_a_kernel_token_names_its_scope(server: IdentityServer, kernel: Kernel) -> None:
    answer = shown(server, kernel.proof(address(server)))
    assert answer.status_code == 200, answer.text
    assert set(answer.json()["scope"].split()) == KERNEL_PERMISSIONS
    assert answer.json()["expires_in"] <= 300


def test_098_a_kernel_token_is_dead_after_restart_and_after_shutdown(
    server: IdentityServer, ada: Api
) -> None:
    with started(ada) as kernel:
        first = server.program(kernel.token())
        assert first.get("~/models").status_code == 200
        assert ada.post(f"api/kernels/{kernel.id}/restart", {}).status_code == 200
        assert first.get("~/models").status_code == 401
        second = server.program(kernel.token())
        assert second.get("~/models").status_code == 200
        assert first.get("~/models").status_code == 401
    assert second.get("~/models").status_code == 401


def test_098_a_kernel_token_dies_with_its_owners_account(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    admin, ben = server.login(make_user("admin")), make_user("developer")
    answer = server.login(ben).post("api/kernels", {"name": "python3"})
    kernel = Kernel(admin, answer.json()["id"])
    program = server.program(kernel.token())
    assert program.get("~/models").status_code == 200
    proof = kernel.proof(address(server))
    assert admin.patch(f"~/users/{ben.id}", {"disabled": True}).status_code == 200
    assert program.get("~/models").status_code == 401
    assert shown(server, proof).status_code == 403
    admin.delete(f"api/kernels/{kernel.id}")


@pytest.mark.parametrize(
    "changes",
    [
        {"key": b"0" * 33},
        {"kernel_id": "8b9a4f0e-56a1-4c1e-9d1c-0123456789ab"},
        {"timestamp": 1},
        {"timestamp": (1 << 40) - 1},
    ],
)
def test_099_a_forged_proof_is_refused(
    server: IdentityServer, kernel: Kernel, changes: dict[str, Any]
) -> None:
    answer = shown(server, kernel.proof(address(server), **changes))
    assert answer.status_code == 403
    assert answer.json()["code"] == "permission-denied"


def test_099_a_proof_counts_once_and_for_this_server_only(
    server: IdentityServer, kernel: Kernel
) -> None:
    proof = kernel.proof(address(server))
    assert shown(server, proof).status_code == 200
    assert shown(server, proof).status_code == 403
    assert shown(server, kernel.proof("http://evil.example:8888/")).status_code == 403


def test_099_another_kernels_key_proves_nothing(server: IdentityServer, ada: Api) -> None:
    with started(ada) as one, started(ada) as two:
        forged = one.proof(address(server), key=two.key)
        assert shown(server, forged).status_code == 403


def test_100_a_real_kernel_cannot_read_its_servers_secrets(
    server: IdentityServer, kernel: Kernel
) -> None:
    said = kernel.run(
        "import os\n"
        "print([n for n in os.environ if n.startswith('UAIT_')])\n"
        "print(open(f'/proc/{os.getppid()}/status').read().count('Name'))"
    )
    assert said.startswith("[]\n")


@pytest.mark.skipif(sys.platform != "linux", reason="CurveZMQ is tested where /proc is")
def test_101_the_servers_kernels_speak_encrypted(kernel: Kernel) -> None:
    assert json.loads(kernel.connection_file.read_text())["curve_publickey"]


def test_045_logout_ends_the_tokens_of_ones_kernels_and_not_the_kernels(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    cleo = make_user("developer")
    browser = server.login(cleo)
    with started(browser) as kernel:
        before = server.program(kernel.token())
        assert before.get("~/models").status_code == 200
        other = server.login(cleo)
        assert other.post("~/logout").status_code == 204
        assert before.get("~/models").status_code == 401
        # The notebook goes on: its kernel proves itself anew, for as long as its owner may.
        assert "'smollm2" in kernel.run(MODELS)


MODELS = """
from uait_kernel.session import SESSION
with SESSION.client() as client:
    print([model.id for model in client.models()])
"""
