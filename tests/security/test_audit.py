"""Case 88 and what the audit log must hold: who, what, from where, with which result."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.security.conftest import Api, IdentityServer, Person, identity_server, user_maker
from tests.unit.vault.state import State, event, opened

run = asyncio.run


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with opened(tmp_path) as found:
        for number in range(9):
            run(found.audit.record(event(principal=f"user {number}")))
        yield found


@pytest.mark.parametrize(
    ("attack", "kind", "sequence"),
    [
        ("UPDATE audit_events SET outcome = 'refused' WHERE sequence = 5", "edited", 5),
        ("UPDATE audit_events SET seal_revision = 0 WHERE sequence = 5", "edited", 5),
        ("DELETE FROM audit_events WHERE sequence = 5", "deleted", 5),
        ("DELETE FROM audit_events WHERE sequence > 6", "tail-cut", 7),
        ("DELETE FROM audit_events", "tail-cut", 1),
    ],
)
def test_088_an_edited_deleted_or_cut_log_fails_verification(
    state: State, attack: str, kind: str, sequence: int
) -> None:
    assert run(state.audit.verify()).intact
    state.sql(attack)
    found = run(state.audit.verify())
    assert (found.intact, found.kind, found.sequence) == (False, kind, sequence)


def test_088_an_event_that_an_editor_chains_himself_fails_verification(state: State) -> None:
    """All of the program's code and the database, but not the master key."""
    from uait_server_ext.events.record import FIELDS, link

    rows = state.rows(f"SELECT {', '.join(FIELDS)} FROM audit_events ORDER BY sequence")
    chain = "0" * 64
    for row in rows:
        values = list(row)
        if values[0] == 4:
            values[4] = "somebody else"
        chain = link(b"guess" * 8, chain, tuple(values))
        state.sql(
            "UPDATE audit_events SET principal = :p, chain = :c WHERE sequence = :s",
            p=values[4],
            c=chain,
            s=values[0],
        )
    found = run(state.audit.verify())
    assert (found.kind, found.sequence) == ("edited", 1)


def test_088_over_http_verify_tells_of_an_edited_event(
    jupyter_folders: dict[str, str], tmp_path: Path
) -> None:
    with identity_server(tmp_path) as server:
        person = user_maker(server)("admin")
        admin = server.login(person)
        assert admin.get("~/audit/verify").json()["intact"] is True
        with sqlite3.connect(server.state / "uait.db") as database:
            database.execute("UPDATE audit_events SET principal = 'x' WHERE sequence = 1")
        database.close()
        found = admin.get("~/audit/verify").json()
        assert (found["intact"], found["kind"], found["sequence"]) == (False, "edited", 1)


def test_087_only_who_may_read_the_audit_log_does(
    server: IdentityServer, people: dict[str, Person], login: Callable[[Person], Api]
) -> None:
    for role in ("viewer", "analyst", "developer"):
        person = login(people[role])
        for path in ("~/audit", "~/audit/export", "~/audit/verify"):
            assert person.get(path).status_code == 403
    assert server.anonymous().get("~/audit").status_code == 401


def test_077_what_a_stranger_types_at_the_login_forges_no_line_and_is_cut(
    server: IdentityServer, people: dict[str, Person], login: Callable[[Person], Api]
) -> None:
    stranger = server.browser()
    forged = 'x\r\n{"action":"login.password","outcome":"ok"}\n\u2028\x1b[2J'
    stranger.post("~/login", {"username": forged, "password": "wrong password here"})
    stranger.post("~/login", {"username": "n" * 300_000, "password": "wrong password here"})
    admin = login(people["admin"])
    export = admin.get("~/audit/export")
    assert export.headers["Content-Type"].startswith("application/jsonl")
    lines = export.text.split("\n")
    assert lines.pop() == ""
    events = [json.loads(line) for line in lines]
    assert [each["sequence"] for each in events] == list(range(1, len(events) + 1))
    assert max(map(len, lines)) < 20_000
    assert all(line.isprintable() for line in lines)
    assert len(server.logged()) < 2_000_000
    assert "\x1b[2J" not in server.logged()


def test_074_filters_of_the_audit_log_are_values_not_sql(
    server: IdentityServer, people: dict[str, Person], login: Callable[[Person], Api]
) -> None:
    admin = login(people["admin"])
    for hostile in ("' OR 1=1--", '"; DROP TABLE audit_events;--', "%", "a' UNION SELECT 1--"):
        for name in ("principal", "target", "action"):
            answer = admin.get("~/audit", params={name: hostile})
            assert answer.status_code == 200, answer.text
            assert answer.json()["events"] == []
    for name, value in (
        ("outcome", "' OR 1=1--"),
        ("before", "1;2"),
        ("before", "99999999999999999999"),
        ("since", "nan"),
        ("since", "1e400"),
        ("limit", "0"),
        ("limit", "501"),
    ):
        assert admin.get("~/audit", params={name: value}).status_code == 422, (name, value)
