"""Rotation of the master key: broken off anywhere, it loses nothing and goes on."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.vault.state import State, opened
from uait_server_ext.errors import SealBroken, Unavailable
from uait_server_ext.storage import files
from uait_server_ext.storage.key_sources import FileSource
from uait_server_ext.storage.master_key import Keyring, open_keyring
from uait_server_ext.storage.rotation import rotate
from uait_server_ext.storage.sealing import Sealer


class Killed(BaseException):
    """The process is gone: nothing that comes after runs."""


class Fuse:
    """Kills at the n-th step; a step is a commit or a write of the key file, before or after."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


def fill(state: State, count: int) -> None:
    def work(connection: Any) -> None:
        for number in range(count):
            state.sealer.put(connection, f"s:{number}", b"value %d" % number)

    state.database.write_now(work)


def check(state: State, sealer: Sealer, count: int) -> None:
    def work(connection: Any) -> None:
        for number in range(count):
            assert sealer.get(connection, f"s:{number}") == b"value %d" % number

    state.database.read_now(work)


def key_ids(state: State) -> set[str]:
    return {row[0] for row in state.rows("SELECT DISTINCT key_id FROM sealed_values")}


def test_all_values_are_under_the_new_key_and_the_old_one_is_gone(state: State) -> None:
    fill(state, 25)
    (old,) = key_ids(state)
    seen: list[tuple[int, int]] = []
    done = rotate(
        state.database, state.sealer.keyring, batch=10, progress=lambda *at: seen.append(at)
    )
    assert done.rewrapped == 27  # with the head and the audit log's key
    assert seen[-1] == (27, 27)
    assert key_ids(state) == {done.key_id} != {old}
    check(state, state.sealer, 25)
    with pytest.raises(Unavailable):
        Keyring(FileSource(state.folder / "keys/master.key")).key(old)


def test_a_server_that_runs_follows(state: State) -> None:
    fill(state, 5)
    with opened(state.folder) as other:
        check(other, other.sealer, 5)
        rotate(state.database, state.sealer.keyring)
        check(other, other.sealer, 5)
        other.database.write_now(lambda c: other.sealer.put(c, "s:5", b"value 5"))
        rotate(other.database, other.sealer.keyring)
    check(state, state.sealer, 6)


def test_a_copy_from_before_needs_its_old_key(state: State) -> None:
    fill(state, 3)
    state.sql("CREATE TABLE copied AS SELECT * FROM sealed_values")
    rotate(state.database, state.sealer.keyring)
    state.sql("DELETE FROM sealed_values")
    state.sql("INSERT INTO sealed_values SELECT * FROM copied")
    with pytest.raises(Unavailable, match="Restore the key"):
        open_keyring(state.database, FileSource(state.folder / "keys/master.key"))


def test_a_broken_value_stops_the_rotation_and_no_key_is_lost(state: State) -> None:
    fill(state, 3)
    sealed = state.rows("SELECT wrapped FROM sealed_values WHERE name = 's:1'")[0][0]
    state.sql("UPDATE sealed_values SET wrapped = zeroblob(60) WHERE name = 's:1'")
    with pytest.raises(SealBroken, match="s:1"):
        rotate(state.database, state.sealer.keyring, batch=1)
    state.sql("UPDATE sealed_values SET wrapped = :w WHERE name = 's:1'", w=sealed)
    with opened(state.folder) as again:
        assert rotate(again.database, again.sealer.keyring).resumed
        check(again, again.sealer, 3)


@given(points=st.lists(st.integers(1, 14), min_size=1, max_size=4), batch=st.integers(1, 9))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_killed_at_any_point_and_resumed_no_value_is_lost(
    points: list[int], batch: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = tmp_path_factory.mktemp("rotation")
    with opened(folder) as state:
        fill(state, 12)
        (first,) = key_ids(state)
    for point in points:
        with opened(folder) as state, pytest.MonkeyPatch.context() as patch:
            fuse = Fuse(point)
            patch_steps(patch, state, fuse)
            with contextlib.suppress(Killed):
                rotate(state.database, state.sealer.keyring, batch=batch)
            patch.undo()
            # Another process, that knows only what is on disk, reads every value.
            fresh = open_keyring(state.database, FileSource(folder / "keys/master.key"))
            sealer = Sealer(fresh)
            check(state, sealer, 12)
            state.database.write_now(partial(sealer.put, name="s:0", plaintext=b"value 0"))
    with opened(folder) as state:
        done = rotate(state.database, state.sealer.keyring, batch=batch)
        check(state, state.sealer, 12)
        assert key_ids(state) == {done.key_id}
        assert first != done.key_id
        assert state.sealer.keyring.ids() == [done.key_id]


def patch_steps(patch: pytest.MonkeyPatch, state: State, fuse: Fuse) -> None:
    """Make each commit and each write of the key file two places to be killed at."""
    write_now = state.database.write_now

    def commit(work: Any) -> Any:
        def killed_before_commit(connection: Any) -> Any:
            result = work(connection)
            fuse.step()
            return result

        result = write_now(killed_before_commit)
        fuse.step()
        return result

    def write_key(path: Path, data: bytes, *, mode: int = 0o600) -> None:
        fuse.step()
        files.write_atomic(path, data, mode=mode)
        fuse.step()

    patch.setattr(state.database, "write_now", commit)
    patch.setattr("uait_server_ext.storage.key_sources.write_atomic", write_key)
