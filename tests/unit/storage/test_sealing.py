"""Sealed values: what is put is got back, and whatever was changed is never released."""

from __future__ import annotations

import secrets
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.vault.state import State, opened
from uait_server_ext.errors import InvalidInput, NotFound, SealBroken
from uait_server_ext.storage.sealing import Sealer


def put(state: State, name: str, value: bytes) -> None:
    state.database.write_now(lambda c: state.sealer.put(c, name, value))


def get(state: State, name: str) -> bytes:
    return state.database.read_now(lambda c: state.sealer.get(c, name))


def delete(state: State, name: str) -> None:
    state.database.write_now(lambda c: state.sealer.delete(c, name))


def fresh(state: State) -> Sealer:
    """Return a sealer that remembers nothing."""
    return Sealer(state.sealer.keyring)


class Stop(Exception):
    pass


def test_a_value_comes_back_and_is_not_in_the_file(state: State) -> None:
    put(state, "a", b"canary")
    assert get(state, "a") == b"canary"
    assert b"canary" not in b"".join(p.read_bytes() for p in state.folder.iterdir() if p.is_file())


def test_nothing_under_a_name_is_not_found(state: State) -> None:
    with pytest.raises(NotFound):
        get(state, "none")
    delete(state, "none")


@pytest.mark.parametrize("name", ["", "head", "x" * 201])
def test_a_name_that_cannot_be_is_refused(state: State, name: str) -> None:
    with pytest.raises(InvalidInput):
        put(state, name, b"x")


def test_an_empty_and_a_long_value(state: State) -> None:
    for value in (b"", secrets.token_bytes(1 << 20)):
        put(state, "a", value)
        assert get(state, "a") == value


def test_a_change_that_was_rolled_back_leaves_the_store_whole(state: State) -> None:
    put(state, "a", b"1")

    def work(connection: object) -> None:
        state.sealer.put(connection, "a", b"2")  # type: ignore[arg-type]
        assert state.sealer.get(connection, "a") == b"2"  # type: ignore[arg-type]
        raise Stop

    with pytest.raises(Stop):
        state.database.write_now(work)
    assert get(state, "a") == b"1"
    put(state, "b", b"3")
    assert state.database.read_now(fresh(state).verify) == 3  # with the audit log's key


def test_two_processes_see_each_other(state: State) -> None:
    other = fresh(state)
    for round_ in range(5):
        put(state, "a", b"ours %d" % round_)
        assert state.database.read_now(lambda c: other.get(c, "a")).startswith(b"ours")
        state.database.write_now(lambda c: other.put(c, "a", b"theirs"))
        assert get(state, "a") == b"theirs"


@pytest.mark.parametrize("remembers", [True, False])
@pytest.mark.parametrize(
    "attack",
    [
        "UPDATE sealed_values SET sealed = CAST(x'00' || substr(sealed, 2) AS BLOB) "
        "WHERE name = 'a'",
        "UPDATE sealed_values SET sealed = 'some text' WHERE name = 'a'",
        "UPDATE sealed_values SET sealed = x'00' || substr(sealed, 2) WHERE name = 'a'",
        "UPDATE sealed_values SET wrapped = x'00' || substr(wrapped, 2) WHERE name = 'a'",
        "UPDATE sealed_values SET sealed = x'' WHERE name = 'a'",
        "UPDATE sealed_values SET version = version + 1 WHERE name = 'a'",
        "UPDATE sealed_values SET (wrapped, sealed) = "
        "(SELECT wrapped, sealed FROM sealed_values WHERE name = 'b') WHERE name = 'a'",
        "UPDATE sealed_values SET (wrapped, sealed, version) = "
        "(SELECT wrapped, sealed, version FROM sealed_values WHERE name = 'b') WHERE name = 'a'",
        "UPDATE sealed_values SET (wrapped, sealed, version) = "
        "(SELECT wrapped, sealed, version FROM old) WHERE name = 'a'",
        "DELETE FROM sealed_values WHERE name = 'a'",
    ],
)
def test_what_was_changed_is_not_released(state: State, attack: str, remembers: bool) -> None:
    put(state, "a", b"first")
    state.sql("CREATE TABLE old AS SELECT * FROM sealed_values WHERE name = 'a'")
    put(state, "a", b"second")
    put(state, "b", b"other")
    assert get(state, "a") == b"second"
    assert state.sql(attack) == 1
    sealer = state.sealer if remembers else fresh(state)
    with pytest.raises(SealBroken) as caught:
        state.database.read_now(lambda c: sealer.get(c, "a"))
    assert "first" not in str(caught.value)
    with pytest.raises(SealBroken):
        state.database.read_now(sealer.verify)


def test_a_value_that_was_deleted_cannot_be_brought_back(state: State) -> None:
    put(state, "a", b"first")
    state.sql("CREATE TABLE old AS SELECT * FROM sealed_values WHERE name = 'a'")
    delete(state, "a")
    state.sql("INSERT INTO sealed_values SELECT * FROM old")
    with pytest.raises(SealBroken):
        get(state, "a")
    with pytest.raises(SealBroken):
        state.database.read_now(lambda c: fresh(state).get(c, "a"))


def test_the_head_alone_put_back_is_noticed(state: State) -> None:
    put(state, "a", b"first")
    state.sql("CREATE TABLE old AS SELECT * FROM sealed_values WHERE name = 'head'")
    put(state, "a", b"second")
    state.sql("DELETE FROM sealed_values WHERE name = 'head'")
    with pytest.raises(SealBroken):
        get(state, "a")
    state.sql("INSERT INTO sealed_values SELECT * FROM old")
    with pytest.raises(SealBroken):
        get(state, "a")


def test_after_a_restore_the_rows_can_be_accepted(state: State) -> None:
    put(state, "a", b"1")
    put(state, "b", b"2")
    state.sql("DELETE FROM sealed_values WHERE name = 'b'")
    with pytest.raises(SealBroken):
        get(state, "b")
    with pytest.raises(SealBroken, match="deleted, added or put back"):
        state.database.read_now(lambda c: fresh(state).get(c, "a"))
    state.database.write_now(state.sealer.accept)
    assert get(state, "a") == b"1"
    put(state, "a", b"3")
    assert state.database.read_now(fresh(state).verify) == 2


def test_reprs_hold_no_key_material(state: State) -> None:
    keyring = state.sealer.keyring
    key = state.database.read_now(keyring.current)
    for shown in (repr(key), repr(keyring.source), repr(state.sealer)):
        assert key.secret.hex() not in shown
        assert repr(key.secret) not in shown


steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "delete", "roll back", "other process"]),
        st.sampled_from("abc"),
        st.binary(max_size=8),
    ),
    max_size=20,
)


@given(steps=steps)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_store_is_a_map(steps: list[tuple[str, str, bytes]], tmp_path_factory: object) -> None:
    folder: Path = tmp_path_factory.mktemp("map")  # type: ignore[attr-defined]
    model: dict[str, bytes] = {}
    with opened(folder) as state:
        for verb, name, value in steps:
            if verb == "delete":
                delete(state, name)
                model.pop(name, None)
            elif verb == "roll back":
                with pytest.raises(Stop):
                    state.database.write_now(lambda c: roll_back(state, c))
            else:
                sealer = state.sealer if verb == "put" else fresh(state)
                state.database.write_now(partial(sealer.put, name=name, plaintext=value))
                model[name] = value
            for key in "abc":
                if key in model:
                    assert get(state, key) == model[key]
                else:
                    with pytest.raises(NotFound):
                        get(state, key)
        assert state.database.read_now(fresh(state).verify) == len(model) + 1


def roll_back(state: State, connection: object) -> None:
    state.sealer.put(connection, "a", b"never")  # type: ignore[arg-type]
    state.sealer.delete(connection, "b")  # type: ignore[arg-type]
    raise Stop
