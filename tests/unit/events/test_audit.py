"""The audit log: append, query, export, and that `verify` finds whatever was done to it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.unit.vault.state import State, event, opened
from uait_server_ext.errors import SealBroken, Unavailable
from uait_server_ext.events.audit import AuditEvent, AuditLog, AuditQuery, AuditReport

run = asyncio.run


def fill(state: State, count: int) -> None:
    def work(connection: Any) -> None:
        for number in range(count):
            state.time[0] = 1000.0 + number
            who = "ada" if number % 2 else "ben"
            state.audit.append(connection, event(principal=who, target=f"t{number % 3}"))

    state.database.write_now(work)


def verify(state: State) -> AuditReport:
    return run(state.audit.verify())


def test_an_empty_log_and_a_full_one_are_intact(state: State) -> None:
    assert verify(state).intact
    fill(state, 5)
    found = verify(state)
    assert (found.intact, found.checked, found.kind) == (True, 5, None)
    assert json.loads((state.folder / "audit.anchor").read_text())["sequence"] == 5


def test_an_event_of_a_rolled_back_transaction_is_not_there(state: State) -> None:
    fill(state, 2)

    def work(connection: Any) -> None:
        state.audit.append(connection, event())
        raise LookupError

    with pytest.raises(LookupError):
        state.database.write_now(work)
    fill(state, 1)
    assert verify(state).checked == 3
    assert verify(state).intact


Attack = Callable[[State], Any]


def cut_tail(state: State) -> None:
    state.sql("DELETE FROM audit_events WHERE sequence > 7")


def replace_tail(state: State) -> None:
    """Cut the tail, then let the server go on: it appends over what is missing."""
    cut_tail(state)
    for _ in range(6):
        fill(state, 1)


def swap(state: State) -> None:
    for before, after in ((3, 99), (4, 3), (99, 4)):
        state.sql("UPDATE audit_events SET sequence = :a WHERE sequence = :b", a=after, b=before)


def restore_all(state: State) -> None:
    """Put the whole database back, but not the anchor."""
    state.sql("DELETE FROM audit_events")


def change(what: str, sequence: int) -> Attack:
    return lambda s: s.sql(f"UPDATE audit_events SET {what} WHERE sequence = {sequence}")


def remove(sequence: int) -> Attack:
    return lambda s: s.sql(f"DELETE FROM audit_events WHERE sequence = {sequence}")


ATTACKS: dict[str, tuple[Attack, str, int | None]] = {
    "edit": (change("principal = 'eve'", 4), "edited", 4),
    "edit time": (change("at = 1", 1), "edited", 1),
    "edit detail": (change("detail = '[]'", 9), "edited", 9),
    "edit chain": (change("chain = 'x'", 10), "edited", 10),
    "swap": (swap, "edited", 3),
    "delete": (remove(6), "deleted", 6),
    "delete first": (remove(1), "deleted", 1),
    "cut tail": (cut_tail, "tail-cut", 8),
    "replace tail": (replace_tail, "tail-cut", 10),
    "restore all": (restore_all, "tail-cut", 1),
    "no anchor": (lambda s: (s.folder / "audit.anchor").unlink(), "anchor-missing", None),
    "own anchor": (lambda s: (s.folder / "audit.anchor").write_text("{}"), "anchor-forged", None),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_verify_names_the_first_event_that_does_not_hold(state: State, attack: str) -> None:
    fill(state, 10)
    do, kind, sequence = ATTACKS[attack]
    do(state)
    found = verify(state)
    assert (found.intact, found.kind, found.sequence) == (False, kind, sequence)


@pytest.mark.parametrize("attack", ["cut tail", "no anchor", "own anchor", "restore all"])
def test_the_evidence_stays_when_the_server_goes_on(state: State, attack: str) -> None:
    fill(state, 10)
    do, kind, _ = ATTACKS[attack]
    do(state)
    with opened(state.folder) as again:
        for _ in range(12):
            fill(again, 1)
        assert verify(again).kind == kind


def test_an_anchor_of_another_place_in_the_log_is_forged(state: State) -> None:
    fill(state, 10)
    anchor = state.folder / "audit.anchor"
    content = json.loads(anchor.read_text())
    state.sql("DELETE FROM audit_events WHERE sequence = 10")
    chain = state.rows("SELECT chain FROM audit_events WHERE sequence = 9")[0][0]
    anchor.write_text(json.dumps(content | {"sequence": 9, "chain": chain}))
    assert verify(state).kind == "anchor-forged"


def test_a_database_editor_cannot_chain_anew(state: State) -> None:
    fill(state, 3)
    state.sql("DELETE FROM sealed_values WHERE name = 'audit:chain'")
    with pytest.raises(SealBroken):
        verify(state)
    with pytest.raises(SealBroken):
        AuditLog(state.database, state.sealer, state.folder / "audit.anchor").open()


def test_sealed_values_that_were_put_back_are_noticed_by_the_log(state: State) -> None:
    state.sql("CREATE TABLE old AS SELECT * FROM sealed_values")
    state.database.write_now(lambda c: state.sealer.put(c, "a", b"1"))
    fill(state, 1)
    state.sql("DELETE FROM sealed_values")
    state.sql("INSERT INTO sealed_values SELECT * FROM old")
    assert verify(state).kind == "rolled-back"
    with pytest.raises(SealBroken, match="older than the audit log says"):
        fill(state, 1)


def test_after_a_restore_the_log_can_be_accepted(state: State) -> None:
    fill(state, 10)
    cut_tail(state)
    run(state.audit.accept(event("vault.accept-restore")))
    found = verify(state)
    assert (found.intact, found.checked) == (True, 8)
    fill(state, 2)
    assert verify(state).intact


def test_query_filters_and_pages(state: State) -> None:
    fill(state, 10)
    state.time[0] = 2000.0
    run(state.audit.record(AuditEvent(action="key.create", outcome="refused", principal="ada")))

    def found(**fields: Any) -> list[int]:
        return [e.sequence for e in run(state.audit.query(AuditQuery(**fields))).events]

    assert found(principal="ada") == [11, 10, 8, 6, 4, 2]
    assert found(principal="ada", target="t1") == [8, 2]
    assert found(outcome="refused") == [11]
    assert found(action="login.", limit=2) == [10, 9]
    assert found(action="login.password", before=3) == [2, 1]
    assert found(action="login") == []
    assert found(action="%.") == []
    assert found(principal="' OR 1=1--") == []
    assert found(since=1003.0, until=1005.0) == [5, 4]
    first = run(state.audit.query(AuditQuery(limit=6)))
    assert first.next == 6
    second = run(state.audit.query(AuditQuery(limit=6, before=first.next)))
    assert [e.sequence for e in second.events] == [5, 4, 3, 2, 1]
    assert second.next is None


def test_export_is_one_json_object_a_line(state: State) -> None:
    fill(state, 1005)
    run(state.audit.record(event(principal="a\nb")))

    async def lines(**options: Any) -> list[str]:
        return [line async for line in state.audit.export(**options)]

    all_lines = run(lines())
    assert len(all_lines) == 1006
    assert [json.loads(line)["sequence"] for line in all_lines] == list(range(1, 1007))
    assert all(line.count("\n") == 1 for line in all_lines)
    assert len(run(lines(after=1000))) == 6
    assert len(run(lines(after=3, limit=2))) == 2


def test_a_log_that_cannot_be_written_says_so(state: State) -> None:
    state.sql("DROP TABLE audit_events")
    with pytest.raises(Unavailable, match="cannot be written"):
        run(state.audit.record(event()))


APPEND = """
import sys
from pathlib import Path
from tests.unit.vault.state import event, opened
with opened(Path(sys.argv[1])) as state:
    for n in range(int(sys.argv[2])):
        state.database.write_now(lambda c: state.audit.append(c, event(principal=sys.argv[3])))
"""


def test_several_processes_append_to_one_chain(state: State) -> None:
    count = 25
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", APPEND, str(state.folder), str(count), name], cwd=REPOSITORY
        )
        for name in ("one", "two")
    ]
    for _ in range(count):
        run(state.audit.record(event(principal="here")))
    assert [writer.wait(60) for writer in writers] == [0, 0]
    found = verify(state)
    assert (found.intact, found.checked) == (True, 3 * count)
    assert json.loads((state.folder / "audit.anchor").read_text())["sequence"] >= 2 * count


def test_verifying_a_long_log_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        fill(state, 1)
        write_many(state, 100_000)

        async def watched() -> tuple[AuditReport, list[float]]:
            task = asyncio.ensure_future(state.audit.verify())
            waits = []
            while not task.done():
                before = time.perf_counter()
                await asyncio.sleep(0.005)
                waits.append(time.perf_counter() - before)
            return task.result(), waits

        found, waits = run(watched())
        assert (found.intact, found.checked) == (True, 100_001)
        # On any machine: a share of the whole, where work on the loop would be all of it at once.
        assert len(waits) > 20
        assert max(waits) < sum(waits) / 4


def write_many(state: State, count: int) -> None:
    """Append faster than `append`, which reads the tail each time; the anchor stays behind."""
    from uait_server_ext.events.record import FIELDS, link
    from uait_server_ext.events.tables import audit_events

    key = state.database.read_now(state.audit.sealed_key)
    assert key
    chain = state.rows("SELECT chain FROM audit_events WHERE sequence = 1")[0][0]
    rows: list[dict[str, Any]] = []
    for sequence in range(2, count + 2):
        row: dict[str, Any] = dict.fromkeys(FIELDS) | {
            "sequence": sequence,
            "at": 1.5,
            "action": "login.password",
            "outcome": "ok",
            "detail": "{}",
            "seal_revision": 1,
        }
        chain = row["chain"] = link(key, chain, tuple(row[name] for name in FIELDS))
        rows.append(row)
    state.database.write_now(lambda c: c.execute(audit_events.insert(), rows))
