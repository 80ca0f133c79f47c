"""Measure what routing costs, beside LiteLLM's Router and LiteLLM's proxy, on one mock provider.

    python benchmarks/gateway.py --peers .venv-peers [--quick] [--check]

``--peers DIR`` is a virtual environment with LiteLLM; it is made where it is missing. The mock
provider is a process of its own that speaks the OpenAI protocol. In turns, in one run:

1. CPU seconds and time of `import`, each in a fresh process.
2. CPU per call of the two routers: with an answer made in the process, and over HTTP to the mock.
3. The two gateways, one process each, asked over HTTP by one client: requests a second of many
   callers at once, and what the 95th percentile of one caller's wait is above the mock's own.

``--check`` fails where a floor is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from uait_server_ext.identity.directory import OPERATOR
from uait_server_ext.identity.principal import ROLES, Principal
from uait_server_ext.identity.service import Identity, IdentitySettings
from uait_server_ext.identity.token_models import ApiKeyRequest
from uait_server_ext.services import Settings, open_foundation, open_identity

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.operations import PASSWORD, UNLIMITED, common, process  # noqa: E402

MOCK = HERE.parent / "tests" / "unit" / "routing" / "mock_provider.py"
LITELLM = "litellm[proxy]>=1.90,<2"
LEAST_CPU_RATIO = 10.0
LEAST_GATEWAY_RATIO = 5.0
MOST_IMPORT_SECONDS = 0.3
WORDS = 16
CALLERS = 16
KEY = "sk-benchmark"
MESSAGES = [{"role": "user", "content": "How long is the coast of Norway?"}]
ROUTING = """
[providers.mock]
url = "{url}"
privacy = "local"
[providers.mock.models.small]
[providers.mock.models.large]
price = {{ input = 1.0, output = 4.0 }}
[[tiers]]
name = "small"
models = ["mock/small"]
[[tiers]]
name = "large"
models = ["mock/large"]
"""


@dataclass
class Door:
    """How one server is asked for a chat, and what it answers."""

    name: str
    port: int
    path: str
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    def request(self) -> bytes:
        """Return the request's bytes."""
        body = json.dumps(self.body).encode()
        lines = {"Host": f"127.0.0.1:{self.port}", "Content-Type": "application/json"}
        lines |= self.headers | {"Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"POST {self.path} HTTP/1.1\r\n{head}\r\n".encode() + body


class Connection:
    """One kept HTTP/1.1 connection; as little client as can be, for it is measured, too."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.bytes = door.request()

    async def __aenter__(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.door.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def ask(self) -> float:
        """Ask once; return the seconds until the whole answer is there."""
        began = time.perf_counter()
        self.writer.write(self.bytes)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        if b"content-length:" in head:
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            answer = await self.reader.readexactly(length)
        else:
            answer = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                answer += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        spent = time.perf_counter() - began
        if int(head.split(b" ", 2)[1]) != 200 or f"word{WORDS - 1}".encode() not in answer:
            raise SystemExit(f"{self.door.name} answered {head[:40]!r} {answer[-300:]!r}")
        return spent


def peers_python(folder: Path) -> Path:
    """Return the Python of the peers' environment; make it and install LiteLLM where missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    if not (folder / "bin" / "litellm").exists():
        install: list[str | Path] = [python, "-m", "pip", "install", "--quiet", LITELLM]
        subprocess.run(install, check=True)
    return python


@contextmanager
def mock_server(folder: Path) -> Iterator[int]:
    """Run the mock provider; yield its port."""
    command = [sys.executable, str(MOCK), "--words", str(WORDS)]
    with (folder / "mock.log").open("wb") as log:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        try:
            assert running.stdout
            yield int(running.stdout.readline())
        finally:
            running.kill()
            running.wait()


@contextmanager
def litellm_server(python: Path, folder: Path, mock: int) -> Iterator[int]:
    """Run LiteLLM's proxy with one worker; yield its port."""
    config = folder / "litellm.yaml"
    model = {
        "model_name": "m",
        "litellm_params": {
            "model": "openai/m",
            "api_base": f"http://127.0.0.1:{mock}/v1",
            "api_key": "none",
        },
    }
    config.write_text(json.dumps({"model_list": [model], "general_settings": {"master_key": KEY}}))
    port = free_port()
    command: list[str | Path] = [python.parent / "litellm", "--config", config, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--num_workers", "1", "--telemetry", "False"]
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    environment.pop("PYTHONPATH", None)
    with (folder / "litellm.log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        try:
            wait_for(port, running, folder / "litellm.log")
            yield port
        finally:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


@contextmanager
def uait_server(folder: Path, mock: int) -> Iterator[tuple[int, str]]:
    """Run `uait lab` with login, limits, budgets and routing; yield its port and an API key."""
    state = folder / "state"
    routing = folder / "routing.toml"
    routing.write_text(ROUTING.format(url=f"http://127.0.0.1:{mock}/v1"))
    command = [
        *(sys.executable, "-m", "uait_server_ext", "lab"),
        *common(folder),
        f"--UaitApp.data_dir={state}",
        f"--UaitApp.routing_file={routing}",
        f"--UaitApp.rate_limits={dict.fromkeys(('read', 'inference', 'login'), UNLIMITED)}",
    ]
    with process(command, folder) as (port, _):
        settings = Settings(data_dir=state, model_cache=state, root_dir=folder)
        foundation = open_foundation(settings)
        try:
            key = asyncio.run(make_key(open_identity(IdentitySettings(), foundation)))
        finally:
            foundation.close()
        yield port, key


async def make_key(identity: Identity) -> str:
    """Make a person with an API key for chats."""
    hashed = await identity.passwords.hash(PASSWORD)
    owner = await identity.database.write(
        lambda c: identity.directory.create(
            c, OPERATOR, username="owner", roles=["admin"], password_hash=hashed
        )
    )
    principal = Principal(owner, "owner", permissions=ROLES["admin"])
    made = await identity.api_keys.create(
        principal, ApiKeyRequest(name="benchmark", permissions=["models:run"])
    )
    return made.key


def free_port() -> int:
    """Return a port that nobody listens on now."""
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(port: int, running: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server listens."""
    import socket

    deadline = time.monotonic() + 300
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if running.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(log.read_text(errors="replace")[-3000:]) from None
            time.sleep(0.3)


def child(python: Path | str, script: str, *arguments: object) -> dict[str, float]:
    """Run a script of this folder in a fresh process; return the figures that it prints."""
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    environment["PYTHONPATH"] = str(HERE.parent) if str(python) == sys.executable else ""
    done = subprocess.run(
        [python, HERE / script, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare_routers(python: Path, mock: int, rounds: int, calls: int) -> dict[str, float]:
    """Print the routers' figures; return the ratios and UAIT's import seconds."""
    seen: dict[str, list[dict[str, float]]] = {"UAIT": [], "LiteLLM": []}
    for _ in range(rounds):
        seen["UAIT"].append(child(sys.executable, "gateway_uait_router.py", mock, calls))
        seen["LiteLLM"].append(child(python, "gateway_litellm_router.py", mock, calls))
    least = {
        who: {name: min(one[name] for one in figures) for name in figures[0]}
        for who, figures in seen.items()
    }
    titles = {
        "import_cpu": ("import, CPU", "s", 1.0),
        "in_process_cpu": ("call, answer made in the process, CPU", "ms", 1e3),
        "http_cpu": ("call over HTTP to the mock, CPU", "ms", 1e3),
        "http_stream_cpu": (f"streamed call of {WORDS + 8} pieces, CPU", "ms", 1e3),
        "memory": ("memory with the router made", "MB", 1.0),
    }
    print(f"{'the router, in the process':42}{'UAIT':>10}{'LiteLLM':>10}{'ratio':>9}")
    ratios = {}
    for name, (title, unit, scale) in titles.items():
        ours, theirs = least["UAIT"][name], least["LiteLLM"][name]
        ratios[name] = theirs / ours
        figures = f"{ours * scale:10.3f}{theirs * scale:10.3f}{theirs / ours:8.1f}x"
        print(f"{f'{title} ({unit})':42}{figures}")
    return ratios | {"import_seconds": least["UAIT"]["import_cpu"]}


async def throughput(door: Door, seconds: float) -> float:
    """Return the requests a second that many callers get at once."""
    done = 0
    until = time.monotonic() + seconds

    async def caller() -> None:
        nonlocal done
        async with Connection(door) as connection:
            while time.monotonic() < until:
                await connection.ask()
                done += 1

    began = time.monotonic()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return done / (time.monotonic() - began)


async def waits(door: Door, count: int) -> list[float]:
    """Return how long one caller waits, again and again."""
    async with Connection(door) as connection:
        return [await connection.ask() for _ in range(count)]


async def compare_gateways(
    direct: Door, ours: Door, theirs: Door, rounds: int, count: int, seconds: float
) -> dict[str, float]:
    """Ask the doors in turns; return requests a second and the 95th percentile of the waits."""
    doors = (direct, ours, theirs)
    for door in doors:
        await waits(door, 20)
    rates: dict[str, list[float]] = {door.name: [] for door in doors}
    waited: dict[str, list[float]] = {door.name: [] for door in doors}
    for _ in range(rounds):
        for door in doors:
            waited[door.name] += await waits(door, count)
        for door in doors[1:]:
            rates[door.name].append(await throughput(door, seconds))
    p95 = {name: quantiles(times, n=20)[-1] for name, times in waited.items()}
    half = {name: median(times) for name, times in waited.items()}
    base = p95[direct.name]
    print(f"{'':22}{'requests/s':>12}{'p50 wait':>12}{'p95 wait':>12}{'p95 added':>12}")
    for door in doors:
        rate = f"{median(rates[door.name]):12.1f}" if rates[door.name] else f"{'':12}"
        added = f"{(p95[door.name] - base) * 1e3:9.2f} ms"
        print(
            f"{door.name:22}{rate}{half[door.name] * 1e3:9.2f} ms{p95[door.name] * 1e3:9.2f} ms"
            f"{added if door is not direct else '':>12}"
        )
    return {
        "rate": median(rates[ours.name]) / median(rates[theirs.name]),
        "added": (p95[theirs.name] - base) / max(1e-6, p95[ours.name] - base),
    }


def doors_of(mock: int, ours: tuple[int, str], theirs: int, stream: bool) -> tuple[Door, ...]:
    """Return the doors of the mock, of UAIT and of LiteLLM."""
    port, key = ours
    openai = {"messages": MESSAGES, "model": "m", "temperature": 0.5, "stream": stream}
    lite = {"Authorization": f"Bearer {KEY}"}
    body = openai | {"model": "mock/large"}
    return (
        Door("the mock itself", mock, "/v1/chat/completions", openai),
        Door(
            "UAIT",
            port,
            "/uait/openai/v1/chat/completions",
            body,
            {"Authorization": f"Bearer {key}"},
        ),
        Door("LiteLLM proxy", theirs, "/v1/chat/completions", openai, lite),
    )


def main() -> None:
    """Measure, print, and judge with --check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    rounds, calls, count, seconds = (1, 100, 40, 2.0) if options.quick else (3, 300, 150, 6.0)
    python = peers_python(options.peers)
    with tempfile.TemporaryDirectory(prefix="uait-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        mock = stack.enter_context(mock_server(folder))
        routers = compare_routers(python, mock, rounds, calls)
        theirs = stack.enter_context(litellm_server(python, folder, mock))
        ours = stack.enter_context(uait_server(folder, mock))
        gateways = {}
        for stream in (False, True):
            kind = "streamed" if stream else "whole"
            print(f"\nthe gateway over HTTP, {kind} answers, {CALLERS} callers for requests/s")
            direct, uait, litellm = doors_of(mock, ours, theirs, stream)
            found = compare_gateways(direct, uait, litellm, rounds, count, seconds)
            for what, ratio in asyncio.run(found).items():
                gateways[f"{kind} {what}"] = ratio
    floors = [
        ("CPU a call", routers["in_process_cpu"], LEAST_CPU_RATIO),
        *((name, ratio, LEAST_GATEWAY_RATIO) for name, ratio in gateways.items()),
    ]
    missed = [name for name, ratio, least in floors if ratio < least]
    if routers["import_seconds"] > MOST_IMPORT_SECONDS:
        missed.append("import")
    told = ", ".join(f"{name} {ratio:.1f}x" for name, ratio, _ in floors)
    print(f"\nUAIT against LiteLLM: {told}; import {routers['import_seconds']:.2f} s")
    if missed:
        print(f"missed: {', '.join(missed)}")
        if options.check:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
