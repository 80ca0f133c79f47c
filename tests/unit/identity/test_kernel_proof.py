"""The proof of a kernel, its token, whose kernel it is; and what a kernel's environment holds."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import Connection, func, select

from uait_kernel.kernel_proof import proof_mac
from uait_server_ext.errors import PermissionDenied
from uait_server_ext.events.record import AuditEvent
from uait_server_ext.identity.directory import Standing
from uait_server_ext.identity.jwt_claims import AccessClaims
from uait_server_ext.identity.kernel_environment import KernelEnvironment, looks_secret
from uait_server_ext.identity.kernel_proof import (
    KernelBindings,
    KernelOwner,
    KernelProof,
    KernelTokens,
)
from uait_server_ext.identity.principal import KERNEL_PERMISSIONS, PERMISSIONS, ROLES, Principal
from uait_server_ext.identity.tables import nonces
from uait_server_ext.identity.tokens import AccessTokens
from uait_server_ext.storage.database import Database, sqlite_url

START = 1_800_000_000.0
URL = "http://127.0.0.1:8888/"
KERNEL = "8b9a4f0e-56a1-4c1e-9d1c-0123456789ab"
KEY = b"0123456789abcdef-0123456789abcdef"
ADA = KernelOwner("usr_ada", frozenset(KERNEL_PERMISSIONS))


class PlainSeals:
    """Keeps in memory what the real one seals."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def put(self, connection: Connection, name: str, plaintext: bytes) -> None:
        self.values[name] = plaintext

    def get(self, connection: Connection, name: str) -> bytes:
        return self.values[name]

    def delete(self, connection: Connection, name: str) -> None:
        self.values.pop(name, None)


class Events:
    """Remembers what was written to the audit log."""

    def __init__(self) -> None:
        self.all: list[AuditEvent] = []

    def append(self, connection: Connection, event: AuditEvent) -> None:
        self.all.append(event)

    async def record(self, event: AuditEvent) -> None:
        self.all.append(event)


class People:
    """A directory of one developer."""

    def __init__(self) -> None:
        self.epoch, self.disabled = 3, False
        self.permissions = ROLES["developer"]

    def standing(self, connection: Connection, user_id: str) -> Standing | None:
        if user_id != ADA.user_id:
            return None
        return Standing(
            user_id=user_id,
            username="ada",
            display_name="Ada",
            roles=frozenset({"developer"}),
            permissions=self.permissions,
            epoch=self.epoch,
            disabled=self.disabled,
        )


@dataclass
class Kernels:
    """The live kernels of a server."""

    keys: dict[str, bytes] = field(default_factory=dict)

    async def key(self, kernel_id: str) -> bytes | None:
        return self.keys.get(kernel_id)

    def audience(self) -> str:
        return URL


class Bench:
    """Everything that a kernel's proof meets."""

    def __init__(self, folder: Path) -> None:
        self.now = START
        self.database = Database(sqlite_url(folder / "uait.db"))
        self.database.open()
        self.kernels = Kernels({KERNEL: KEY})
        self.bindings = KernelBindings(self.clock)
        self.people, self.events = People(), Events()
        self.tokens = AccessTokens(self.database, PlainSeals(), self.clock, "here")
        self.service = KernelTokens(
            self.database,
            directory=self.people,  # type: ignore[arg-type]
            tokens=self.tokens,
            audit=self.events,  # type: ignore[arg-type]
            bindings=self.bindings,
            kernels=self.kernels,
            clock=self.clock,
        )

    def clock(self) -> float:
        return self.now

    def proof(self, **changes: Any) -> KernelProof:
        """Make a valid proof, with members signed otherwise where `changes` say so."""
        signed: dict[str, Any] = {
            "kernel_id": KERNEL,
            "timestamp": int(self.now),
            "nonce": f"nonce-of-this-proof-{self.now:.6f}".replace(".", "-"),
        }
        key = changes.pop("key", KEY)
        audience = changes.pop("audience", URL)
        signed |= changes
        return KernelProof(**signed, mac=proof_mac(key, audience=audience, **signed))

    def exchange(self, proof: KernelProof) -> Any:
        return asyncio.run(self.service.exchange(proof, "127.0.0.1"))

    def refused(self, proof: KernelProof) -> str:
        """Exchange a proof that must be refused; return the reason of the audit log."""
        with pytest.raises(PermissionDenied):
            self.exchange(proof)
        last = self.events.all[-1]
        assert last.outcome == "refused"
        return str(last.detail["reason"])

    def claims(self, access: Any) -> AccessClaims:
        return asyncio.run(self.tokens.verify(access.access_token, ("uait-kernel",)))

    def nonces(self) -> int:
        return int(
            self.database.read_now(lambda c: c.scalar(select(func.count()).select_from(nonces)))
            or 0
        )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    bench.bindings.bind(KERNEL, ADA)
    yield bench
    bench.database.close()


def test_a_proof_gives_a_token_of_five_minutes_for_this_kernel_only(bench: Bench) -> None:
    access = bench.exchange(bench.proof())
    assert (access.expires_in, access.token_type) == (300, "Bearer")
    claims = bench.claims(access)
    assert claims.user_id == "usr_ada"
    assert claims.epoch == 3
    assert claims.audience == "uait-kernel"
    assert claims.expires_at - claims.issued_at == 300
    assert claims.scope == KERNEL_PERMISSIONS == set(access.scope.split())
    assert claims.kernel_id == bench.bindings.instance(KERNEL)
    assert bench.bindings.stands(claims)
    assert access.access_token not in repr(access)
    (event,) = bench.events.all
    assert (event.action, event.outcome, event.principal) == ("kernel.token", "ok", "usr_ada")


def test_098_a_kernel_token_never_does_more_than_its_owner_or_the_key_that_started_it(
    bench: Bench,
) -> None:
    assert not KERNEL_PERMISSIONS & {p for p in PERMISSIONS if not p.startswith("system:")} - {
        "models:read",
        "models:run",
        "knowledge:read",
        "knowledge:write",
    }
    bench.people.permissions = ROLES["viewer"]
    assert "knowledge:write" not in bench.claims(bench.exchange(bench.proof())).scope
    bench.now += 1
    starter = Principal("usr_ada", "Ada", "api-key", frozenset({"kernels:run", "models:read"}))
    bench.bindings.bind(KERNEL, KernelOwner.of(starter))
    assert bench.claims(bench.exchange(bench.proof())).scope == {"models:read"}


def test_098_a_token_is_dead_after_a_restart_and_after_the_end(bench: Bench) -> None:
    first = bench.claims(bench.exchange(bench.proof()))
    bench.bindings.bind(KERNEL, ADA)  # in the same millisecond
    assert not bench.bindings.stands(first)
    bench.now += 1
    second = bench.claims(bench.exchange(bench.proof()))
    assert bench.bindings.stands(second)
    bench.bindings.release(KERNEL)
    assert not bench.bindings.stands(second)
    bench.bindings.bind(KERNEL, KernelOwner("usr_ben", ADA.permissions))
    assert not bench.bindings.stands(second)
    assert bench.bindings.generation("another") is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key": b"another-key-of-the-right-length-0"}, "proof"),
        ({"key": b""}, "proof"),
        ({"kernel_id": "0" * 36}, "proof"),
        ({"audience": "http://evil.example:80/"}, "proof"),
        ({"timestamp": int(START) - 61}, "time"),
        ({"timestamp": int(START) + 61}, "time"),
    ],
)
def test_099_a_forged_old_or_redirected_proof_is_refused(
    bench: Bench, changes: dict[str, Any], reason: str
) -> None:
    assert bench.refused(bench.proof(**changes)) == reason
    assert bench.nonces() == 0  # nobody without the key fills the table


@pytest.mark.parametrize("member", ["kernel_id", "timestamp", "nonce", "mac"])
def test_099_every_member_of_a_proof_is_signed(bench: Bench, member: str) -> None:
    proof = bench.proof()
    other = {
        "kernel_id": "another",
        "timestamp": proof.timestamp + 1,
        "nonce": proof.nonce + "x",
        "mac": proof.mac[:-1] + ("0" if proof.mac[-1] != "0" else "1"),
    }
    bench.kernels.keys["another"] = b"another-key-of-the-right-length-0"
    assert bench.refused(proof.model_copy(update={member: other[member]})) == "proof"


def test_099_a_replayed_proof_is_refused(bench: Bench) -> None:
    proof = bench.proof()
    bench.exchange(proof)
    assert bench.refused(proof) == "replay"
    bench.now += 59
    assert bench.refused(proof) == "replay"
    bench.now += 2
    assert bench.refused(proof) == "time"


def test_099_nonces_are_forgotten_only_when_no_clock_takes_the_proof(bench: Bench) -> None:
    ahead = bench.proof(timestamp=int(START) + 60)
    bench.exchange(ahead)
    bench.now += 120
    assert bench.refused(ahead) == "replay"
    bench.now += 1
    assert bench.refused(ahead) == "time"
    bench.now += 60
    bench.exchange(bench.proof())
    assert bench.nonces() == 1


@pytest.mark.parametrize("key", [b"", b"short"])
def test_099_a_kernel_whose_signing_was_switched_off_proves_nothing(
    bench: Bench, key: bytes
) -> None:
    bench.kernels.keys[KERNEL] = key
    assert bench.refused(bench.proof(key=key)) == "proof"
    assert bench.refused(bench.proof(key=bytes(32))) == "proof"


def test_099_an_unknown_kernel_and_a_wrong_key_look_alike(bench: Bench) -> None:
    answers = []
    for proof in (bench.proof(kernel_id="unknown"), bench.proof(key=b"x" * 33)):
        with pytest.raises(PermissionDenied) as caught:
            bench.exchange(proof)
        answers.append(caught.value.problem())
    assert answers[0] == answers[1]


def test_099_a_kernel_that_nobody_started_gets_no_token(bench: Bench) -> None:
    bench.bindings.bind(KERNEL, None)
    assert bench.refused(bench.proof()) == "owner"
    bench.bindings.release(KERNEL)
    assert bench.refused(bench.proof()) == "owner"


def test_099_a_disabled_or_deleted_owner_gets_no_token(bench: Bench) -> None:
    bench.people.disabled = True
    assert bench.refused(bench.proof()) == "disabled"
    bench.now += 1
    bench.bindings.bind(KERNEL, KernelOwner("usr_gone", ADA.permissions))
    assert bench.refused(bench.proof()) == "disabled"


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel_id": "a/../b"},
        {"kernel_id": "a|b"},
        {"kernel_id": "a" * 65},
        {"kernel_id": "a\n"},
        {"nonce": "short"},
        {"nonce": "x" * 65},
        {"timestamp": -1},
        {"timestamp": 1 << 41},
        {"mac": "A" * 64},
        {"more": 1},
    ],
)
def test_099_a_proof_has_one_form(bench: Bench, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        KernelProof.model_validate(bench.proof().model_dump() | changes)


def test_the_mac_is_hmac_sha256_of_the_documented_text() -> None:
    text = f"uait-kernel-token/1|{KERNEL}|1800000000|abc|{URL}"
    expected = hmac.new(KEY, text.encode(), hashlib.sha256).hexdigest()
    made = proof_mac(KEY, kernel_id=KERNEL, timestamp=1_800_000_000, nonce="abc", audience=URL)
    assert made == expected


# The environment of kernels.

SERVER = {
    "PATH": "/bin",
    "HOME": "/home/ada",
    "LC_ALL": "C.UTF-8",
    "PYTHONPATH": "/src",
    "JUPYTER_RUNTIME_DIR": "/run/jupyter",
    "OMP_NUM_THREADS": "2",
    "TOKENIZERS_PARALLELISM": "false",
    "http_proxy": "http://ada:pw-canary@proxy:3128/",
    "PIP_INDEX_URL": "https://__token__:canary@index.example/simple",
    "all_proxy": "ada:canary@proxy:1080",
    "OPENAI_API_KEY": "canary",
    "HF_TOKEN": "canary",
    "JUPYTER_TOKEN": "canary",
    "JUPYTERHUB_API_TOKEN": "canary",
    "JUPYTERHUB_USER": "ada",
    "PGPASSWORD": "canary",
    "DATABASE_URL": "postgresql://ada:canary@db/uait",
    "UAIT_MASTER_KEY": "canary",
    "UAIT_URL": "canary",
    "AWS_SECRET_ACCESS_KEY": "canary",
    "SOMETHING_ELSE": "canary",
    "TEAM_COLOUR": "blue",
}


def environment(*extra: str) -> KernelEnvironment:
    return KernelEnvironment(extra, server=lambda: SERVER)


def test_100_the_environment_of_a_kernel_holds_no_secret_of_the_server() -> None:
    for cleaned in (environment().clean(), environment().clean(SERVER | {"JPY_SESSION_NAME": "x"})):
        assert "canary" not in str(cleaned)
        assert cleaned["http_proxy"] == "http://proxy:3128/"
        assert cleaned["PIP_INDEX_URL"] == "https://index.example/simple"
        assert cleaned["all_proxy"] == "proxy:1080"
        kept = {"PATH", "HOME", "LC_ALL", "PYTHONPATH", "JUPYTER_RUNTIME_DIR", "OMP_NUM_THREADS"}
        assert kept | {"TOKENIZERS_PARALLELISM", "JUPYTERHUB_USER"} <= set(cleaned)
    assert cleaned["JPY_SESSION_NAME"] == "x"


def test_100_what_an_administrator_lists_passes_but_no_pattern_lets_a_secret_through() -> None:
    cleaned = environment("team_*", "*_KEY", "*", "UAIT_MASTER_KEY", "HF_TOKEN").clean()
    assert cleaned["TEAM_COLOUR"] == "blue"
    assert cleaned["HF_TOKEN"] == "canary"
    assert not {"OPENAI_API_KEY", "UAIT_MASTER_KEY", "AWS_SECRET_ACCESS_KEY"} & set(cleaned)


def test_100_what_was_added_for_this_kernel_passes_unless_it_may_be_a_stale_secret() -> None:
    cleaned = environment().clean({**SERVER, "RUN": "7", "OLD_API_KEY": "removed from the server"})
    assert cleaned["RUN"] == "7"
    assert "OLD_API_KEY" not in cleaned


def test_100_at_launch_a_specifications_own_variables_pass_and_the_servers_do_not() -> None:
    launched = environment().at_launch(
        SERVER | {"SPEC_TOKEN": "spec", "EG_TOKEN": "provisioner", "TEAM_COLOUR": "green"},
        own={"SPEC_TOKEN", "TEAM_COLOUR"},
    )
    assert launched["SPEC_TOKEN"] == "spec"
    assert launched["EG_TOKEN"] == "provisioner"
    assert launched["TEAM_COLOUR"] == "green"
    assert not {"OPENAI_API_KEY", "UAIT_MASTER_KEY", "SOMETHING_ELSE"} & set(launched)
    assert environment().at_launch(None) == environment().clean()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.from_regex(r"[A-Za-z]{1,8}(_[A-Za-z0-9]{1,8}){0,3}", fullmatch=True),
    st.sampled_from(["API_KEY", "TOKEN", "SECRET", "PASSWORD", "token", "ACCESS_KEY", "PASSWD"]),
)
def test_100_whatever_a_secret_belongs_to_its_name_gives_it_away(prefix: str, kind: str) -> None:
    for name in (f"{prefix}_{kind}", f"{kind}_{prefix}", f"PYTHON_{prefix}_{kind}"):
        assert looks_secret(name)
        assert not KernelEnvironment(["*"], server=dict).allows(name)
