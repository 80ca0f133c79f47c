"""Cases 84 to 87, 89, 90 and 96: secrets at rest, in use, and on their way out."""

from __future__ import annotations

import ast
import asyncio
import logging
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.security.conftest import Api, IdentityServer, Person
from tests.unit.vault.state import ADA, CANARY, EVE, State, content, new, opened
from uait_server_ext.errors import (
    NotFound,
    PermissionDenied,
    SealBroken,
    Unavailable,
)
from uait_server_ext.storage.key_sources import FileSource
from uait_server_ext.storage.master_key import MasterKey, current_id, open_keyring
from uait_server_ext.storage.rotation import begin, rewrap_some, rotate
from uait_server_ext.storage.sealing import Sealer, find, open_envelope
from uait_server_ext.vault.models import LeaseRequest

run = asyncio.run


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with opened(tmp_path) as found:
        yield found


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_084_a_copy_of_the_state_without_its_key_holds_no_secret(
    state: State, tmp_path_factory: pytest.TempPathFactory
) -> None:
    vault = state.vault
    run(vault.create(ADA, new("one", f"{CANARY}-one")))
    run(vault.set(ADA, "one", content(f"{CANARY}-two")))
    run(vault.create(ADA, new("gone", f"{CANARY}-gone")))
    run(vault.delete(ADA, "gone"))
    lease = run(vault.lease(ADA, LeaseRequest(secret="one", purpose="chat")))
    run(vault.use(lease.id))
    run(vault.reveal(ADA, "one"))
    state.database.write_now(lambda c: state.sealer.put(c, "totp:x", CANARY.encode()))
    # While the server runs: the database, its write-ahead log, the anchor.
    copy = tmp_path_factory.mktemp("stolen") / "state"
    shutil.copytree(state.folder, copy, ignore=shutil.ignore_patterns("keys"))
    names = {Path(name).name for name in all_bytes(copy)}
    assert {"uait.db", "uait.db-wal", "audit.anchor"} <= names
    key = state.database.read_now(state.sealer.keyring.current)
    for name, data in all_bytes(copy).items():
        for planted in (CANARY.encode(), CANARY.encode("utf-16-le"), key.secret):
            assert planted not in data, name
    with pytest.raises(Unavailable, match="Restore the key"), opened(copy):
        pass
    assert not list((copy / "keys").glob("*"))  # and none was made anew


def test_084_the_running_server_s_state_holds_no_secret(
    server: IdentityServer, admin: Api, tmp_path: Path
) -> None:
    answer = admin.post("~/vault/secrets", {"name": "at-rest", "value": CANARY, "shared": True})
    assert answer.status_code == 200, answer.text
    copy = tmp_path / "copy"
    shutil.copytree(server.state, copy, ignore=shutil.ignore_patterns("keys", "models"))
    assert not [name for name, data in all_bytes(copy).items() if CANARY.encode() in data]


TAMPER = {
    "a flipped bit": "UPDATE sealed_values SET sealed = "
    "CAST(substr(sealed, 1, 20) || CASE substr(sealed, 21, 1) WHEN x'00' "
    "THEN x'01' ELSE x'00' END || substr(sealed, 22) AS BLOB) WHERE name = :two",
    "a flipped bit in the wrapped key": "UPDATE sealed_values SET wrapped = "
    "CAST(substr(wrapped, 1, 20) || CASE substr(wrapped, 21, 1) WHEN x'00' "
    "THEN x'01' ELSE x'00' END || substr(wrapped, 22) AS BLOB) WHERE name = :two",
    "the row of another secret": "UPDATE sealed_values SET (version, wrapped, sealed) = "
    "(SELECT version, wrapped, sealed FROM sealed_values WHERE name = :other) WHERE name = :two",
    "an older version's row": "UPDATE sealed_values SET (version, wrapped, sealed) = "
    "(SELECT version, wrapped, sealed FROM sealed_values WHERE name = :one) WHERE name = :two",
    "the current version set back": "UPDATE secrets SET current = 1 WHERE id = :id",
    "another owner": "UPDATE secrets SET owner = '*' WHERE id = :id",
}


@pytest.mark.parametrize("tamper", TAMPER)
def test_085_what_was_changed_in_the_database_is_not_released(state: State, tamper: str) -> None:
    vault = state.vault
    made = run(vault.create(ADA, new("mine", "first")))
    run(vault.set(ADA, "mine", content("second")))
    other = run(vault.create(ADA, new("other", "third")))
    lease = run(vault.lease(ADA, LeaseRequest(secret="mine", purpose="chat")))
    names = {
        "id": made.id,
        "one": f"secret:{made.id}:1",
        "two": f"secret:{made.id}:2",
        "other": f"secret:{other.id}:1",
    }
    used = {name: value for name, value in names.items() if f":{name}" in TAMPER[tamper]}
    assert state.sql(TAMPER[tamper], **used) == 1
    for read in (vault.reveal(ADA, "mine"), vault.use(lease.id)):
        with pytest.raises(SealBroken) as caught:
            run(read)
        assert not {"first", "second", "third"} & set(str(caught.value).split())
    assert state.actions().count(("vault.broken", "failed")) == 2
    # A process that starts now notices at the latest at the read.
    with pytest.raises(SealBroken), opened(state.folder) as again:
        run(again.vault.reveal(ADA, "mine"))


def test_085_a_whole_older_state_of_the_rows_is_noticed(state: State) -> None:
    """The rows of a secret and the head, put back together: only the audit log can tell."""
    vault = state.vault
    run(vault.create(ADA, new("mine", "revoked-value")))
    for table in ("sealed_values", "secrets", "secret_versions"):
        state.sql(f"CREATE TABLE old_{table} AS SELECT * FROM {table}")
    run(vault.set(ADA, "mine", content("new value")))
    run(vault.reveal(ADA, "mine"))
    for table in ("secret_versions", "secrets", "sealed_values"):
        state.sql(f"DELETE FROM {table}")
    for table in ("sealed_values", "secrets", "secret_versions"):
        state.sql(f"INSERT INTO {table} SELECT * FROM old_{table}")
    with pytest.raises(SealBroken, match="older than the audit log says"):
        run(vault.reveal(ADA, "mine"))
    assert run(state.audit.verify()).kind == "rolled-back"


def test_085_another_key_opens_nothing(state: State) -> None:
    made = run(state.vault.create(ADA, new()))
    row = state.database.read_now(lambda c: find(c, f"secret:{made.id}:1"))
    assert row
    with pytest.raises(SealBroken):
        open_envelope(MasterKey.generate(), row)


def test_086_a_rotation_broken_off_half_way_leaves_every_secret_readable(state: State) -> None:
    vault = state.vault
    for number in range(12):
        run(vault.create(ADA, new(f"s{number}", f"value {number}")))
    keyring = state.sealer.keyring
    database = state.database
    database.write_now(lambda c: begin(c, keyring, state.vault.clock))
    database.write_now(lambda c: rewrap_some(c, keyring, 10))
    in_use = {row[0] for row in state.rows("SELECT DISTINCT key_id FROM sealed_values")}
    assert len(in_use) == 2
    with opened(state.folder) as after:  # another process, which knows what is on disk
        for number in range(12):
            assert run(after.vault.reveal(ADA, f"s{number}")).value == f"value {number}"
        run(after.vault.set(ADA, "s3", content("changed meanwhile")))
        assert rotate(after.database, after.sealer.keyring).resumed
    assert run(vault.reveal(ADA, "s3")).value == "changed meanwhile"
    (now_in_use,) = {row[0] for row in state.rows("SELECT DISTINCT key_id FROM sealed_values")}
    assert now_in_use == database.read_now(current_id)
    fresh = open_keyring(database, FileSource(state.folder / "keys/master.key"))
    assert fresh.ids() == [now_in_use]
    assert (
        database.read_now(Sealer(fresh).verify) == 26
    )  # 12 rows, 13 versions, the audit log's key


def test_087_reading_without_the_permission_is_refused_and_recorded(state: State) -> None:
    run(state.vault.create(ADA, new(shared=True)))
    with pytest.raises(PermissionDenied):
        run(state.vault.reveal(EVE, "openai", address="192.0.2.7"))
    (row,) = state.rows(
        "SELECT principal, address, target FROM audit_events WHERE outcome='refused'"
    )
    assert row == (EVE.id, "192.0.2.7", "openai")


def test_087_where_the_audit_log_cannot_be_written_nothing_is_released(state: State) -> None:
    vault = state.vault
    run(vault.create(ADA, new()))
    lease = run(vault.lease(ADA, LeaseRequest(secret="openai", purpose="chat")))
    state.sql(
        "CREATE TRIGGER full BEFORE INSERT ON audit_events "
        "BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
    )
    for read in (vault.reveal(ADA, "openai"), vault.use(lease.id)):
        with pytest.raises(Unavailable) as caught:
            run(read)
        assert caught.value.status == 503
        assert CANARY not in "".join(traceback.format_exception(caught.value))
    state.sql("DROP TRIGGER full")
    assert run(vault.reveal(ADA, "openai")).value == CANARY
    assert [use.uses for use in run(vault.leases(ADA))] == [0]


def test_087_the_record_is_committed_before_the_value_is_read(state: State) -> None:
    run(state.vault.create(ADA, new()))
    seen: list[tuple[str, str]] = []
    read = state.database.read

    async def watched(work: object) -> object:
        seen.extend(state.actions()[-1:])
        return await read(work)  # type: ignore[arg-type]

    state.database.read = watched  # type: ignore[method-assign, assignment]
    assert run(state.vault.reveal(ADA, "openai")).value == CANARY
    assert seen == [("vault.reveal", "ok")]


def test_087_over_http_each_role_gets_what_it_may(
    server: IdentityServer,
    admin: Api,
    people: dict[str, Person],
    login: Callable[[Person], Api],
) -> None:
    admin.post("~/vault/secrets", {"name": "by-role", "value": CANARY, "shared": True})
    revealed = admin.post("~/vault/secrets/by-role/reveal", {})
    assert revealed.status_code == 200, revealed.text
    assert revealed.json()["value"] == CANARY
    assert revealed.headers["Cache-Control"] == "no-store"
    for role in ("viewer", "analyst", "developer"):
        person = login(people[role])
        for answer in (
            person.post("~/vault/secrets/by-role/reveal", {}),
            person.put("~/vault/secrets/by-role", {"value": "x"}),
            person.delete("~/vault/secrets/by-role"),
            person.post("~/vault/secrets", {"name": "mine", "value": "x"}),
        ):
            assert answer.status_code == 403, (role, answer.text)
            assert CANARY not in answer.text
        listed = person.get("~/vault/secrets")
        assert listed.status_code == (403 if role == "viewer" else 200)
        assert CANARY not in listed.text
    refused = admin.get("~/audit?outcome=refused&limit=100").json()["events"]
    assert any(event["principal"] == people["viewer"].id for event in refused)
    ok = admin.get("~/audit?action=vault.reveal&outcome=ok").json()["events"]
    assert ok[0]["principal"] == people["admin"].id
    assert ok[0]["address"] == "127.0.0.1"


def test_057_another_s_secret_is_not_found_even_by_an_administrator(
    admin: Api, make_user: Callable[..., Person], login: Callable[[Person], Api]
) -> None:
    made = admin.post("~/vault/secrets", {"name": "private", "value": CANARY}).json()
    other = login(make_user("admin"))
    for answer in (
        other.get(f"~/vault/secrets/{made['id']}"),
        other.put(f"~/vault/secrets/{made['id']}", {"value": "x"}),
        other.delete(f"~/vault/secrets/{made['id']}"),
        other.delete(f"~/vault/secrets/{made['id']}/versions/1"),
        other.post(f"~/vault/secrets/{made['id']}/reveal", {}),
        other.post("~/vault/leases", {"secret": made["id"], "purpose": "p"}),
    ):
        assert answer.status_code == 404, answer.text
    assert made["id"] not in other.get("~/vault/secrets").text
    lease = admin.post("~/vault/leases", {"secret": made["id"], "purpose": "p"}).json()
    assert other.delete(f"~/vault/leases/{lease['id']}").status_code == 404
    assert admin.delete(f"~/vault/leases/{lease['id']}").status_code == 204


def test_089_a_value_is_in_no_log_list_error_or_traceback(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    vault = state.vault
    shown: list[object] = []
    made = run(vault.create(ADA, new()))
    request = new()
    lease = run(vault.lease(ADA, LeaseRequest(secret="openai", purpose="chat")))
    value = run(vault.use(lease.id))
    shown += [
        made,
        request,
        lease,
        value,
        run(vault.secrets(ADA)),
        run(vault.secret(ADA, "openai")),
    ]
    shown.append(run(vault.reveal(ADA, "openai")))
    shown.append(state.database.read_now(lambda c: find(c, f"secret:{made.id}:1")))
    state.sql("UPDATE secrets SET current = 7")
    for failing in (vault.reveal(ADA, "openai"), vault.set(ADA, "openai", content(CANARY))):
        with pytest.raises((SealBroken, NotFound)) as caught:
            run(failing)
        shown.append("".join(traceback.format_exception(caught.value)))
    shown.append(state.rows("SELECT * FROM audit_events"))
    shown.append(caplog.text)
    assert not [each for each in shown if CANARY in repr(each) or CANARY in str(each)]


def test_089_over_http_only_reveal_answers_with_the_value(
    server: IdentityServer, admin: Api
) -> None:
    answers = [
        admin.post("~/vault/secrets", {"name": "quiet", "value": CANARY}),
        admin.post("~/vault/secrets", {"name": "quiet", "value": CANARY}),
        admin.post("~/vault/secrets", {"name": "a b", "value": CANARY}),
        admin.post("~/vault/secrets", {"name": "x", "value": [CANARY]}),
        admin.post("~/vault/secrets", {"name": "x", "value": CANARY, "reference": "kv:a/b#c"}),
        admin.put("~/vault/secrets/quiet", {"value": CANARY}),
        admin.put("~/vault/secrets/none", {"value": CANARY}),
        admin.get("~/vault/secrets"),
        admin.get("~/vault/secrets/quiet"),
        admin.post("~/vault/leases", {"secret": "quiet", "purpose": "chat"}),
        admin.get("~/vault/leases"),
        admin.get("~/audit?limit=500"),
        admin.get("~/audit/export"),
        admin.get("~/openapi.json"),
    ]
    statuses = [answer.status_code for answer in answers]
    assert statuses == [200, 409, 422, 422, 422, 200, 404, 200, 200, 200, 200, 200, 200, 200]
    assert not [answer.request.url for answer in answers if CANARY in answer.text]
    assert CANARY not in server.logged()
    names = "\n".join(event["action"] for event in answers[11].json()["events"])
    assert "vault.create" in names


def test_090_secrets_move_from_the_environment_into_the_vault(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(f"OPENAI_API_KEY={CANARY}\nDEBUG=1\n")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": str(REPOSITORY),
        "HF_TOKEN": "hf-canary",
    }

    def vault(*arguments: str) -> str:
        command = [
            sys.executable,
            "-c",
            "from uait_server_ext.commands.vault import app; app()",
            f"--data-dir={tmp_path / 'state'}",
            *arguments,
        ]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert CANARY not in done.stderr
        return done.stdout

    kept = vault("migrate", "--keep")
    assert "OPENAI_API_KEY: created" in kept
    assert file.read_text() == f"OPENAI_API_KEY={CANARY}\nDEBUG=1\n"
    removed = vault("migrate", "--remove")
    assert "OPENAI_API_KEY: unchanged, removed from the file" in removed
    assert "still set: HF_TOKEN" in removed
    assert file.read_text() == "DEBUG=1\n"
    assert "OPENAI_API_KEY" not in vault("migrate", "--remove")
    assert vault("get", "OPENAI_API_KEY") == f"{CANARY}\n"
    with opened(tmp_path / "state") as state:
        environ = dict(environment)
        assert run(state.vault.scrub(environ)) == ["HF_TOKEN"]
        assert "HF_TOKEN" not in environ


def test_096_no_text_is_ever_expanded_to_a_secret() -> None:
    """Models, prompts and documents cannot reach the vault: their code does not know it."""
    package = REPOSITORY / "uait_server_ext"
    for domain in ("inference", "knowledge", "workflows"):
        for path in (package / domain).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or "", *(alias.name for alias in node.names)]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
                assert not [name for name in names if "vault" in name], path
    for path in package.rglob("*.py"):
        assert "${vault" not in path.read_text(), path


def test_096_a_name_that_a_model_wrote_is_no_secret(admin: Api) -> None:
    admin.post("~/vault/secrets", {"name": "wanted", "value": CANARY, "shared": True})
    for name in ("${vault:wanted}", "{{vault.wanted}}", "%77anted"):
        answer = admin.post("~/vault/leases", {"secret": name, "purpose": "p"})
        assert answer.status_code == 404, answer.text


@pytest.fixture
def admin(people: dict[str, Person], login: Callable[[Person], Api]) -> Api:
    return login(people["admin"])
