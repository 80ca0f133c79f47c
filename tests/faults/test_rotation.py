"""10,000 secrets: rotation of the master key killed anywhere, resumed, none lost."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from tests.conftest import REPOSITORY
from tests.unit.storage.test_rotation import Fuse, Killed, key_ids, patch_steps
from tests.unit.vault.state import State, opened
from uait_server_ext.storage.rotation import rotate
from uait_server_ext.storage.sealing import COLUMNS, Sealer, envelope, open_envelope, seal, vars_of
from uait_server_ext.storage.tables import sealed_values

pytestmark = [pytest.mark.slow, pytest.mark.long]

SECRETS = 10_000
BATCH = 250
STEPS = 2 * (SECRETS // BATCH + 8)

ROTATE = """
import sys
from pathlib import Path
from tests.unit.vault.state import opened
from uait_server_ext.storage.rotation import rotate
with opened(Path(sys.argv[1])) as state:
    print("ready", flush=True)
    rotate(state.database, state.sealer.keyring, batch=int(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 10,000 sealed secrets."""
    folder = tmp_path_factory.mktemp("filled")
    with opened(folder) as state:

        def work(connection: Any) -> None:
            key = state.sealer.keyring.current(connection)
            rows = (seal(key, f"s:{n}", 100 + n, b"value %d" % n) for n in range(SECRETS))
            connection.execute(sealed_values.insert(), [vars_of(row) for row in rows])
            state.sealer.accept(connection)

        state.database.write_now(work)
    return folder


@pytest.fixture
def folder(filled: Path, tmp_path: Path) -> Path:
    return copied(filled, tmp_path)


def copied(filled: Path, to: Path) -> Path:
    shutil.copytree(filled, to / "state")
    return to / "state"


def check_all(state: State) -> None:
    """Read every secret as a process would that knows only what is on disk."""

    def work(connection: Any) -> None:
        sealer = Sealer(state.sealer.keyring)
        assert len(sealer.names(connection, "s:")) == SECRETS
        for row in connection.execute(select(*COLUMNS).where(sealed_values.c.name.like("s:%"))):
            value = open_envelope(state.sealer.keyring.key(row.key_id), envelope(row))
            assert value == b"value " + row.name.removeprefix("s:").encode()
        for number in range(0, SECRETS, 500):
            assert sealer.get(connection, f"s:{number}") == b"value %d" % number

    state.database.read_now(work)


@given(point=st.integers(1, STEPS))
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_086_ten_thousand_secrets_survive_a_rotation_killed_at_any_step(
    point: int, filled: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = copied(filled, tmp_path_factory.mktemp("killed"))
    with opened(folder) as state, pytest.MonkeyPatch.context() as patch:
        patch_steps(patch, state, Fuse(point))
        with contextlib.suppress(Killed):
            rotate(state.database, state.sealer.keyring, batch=BATCH)
    with opened(folder) as state:
        check_all(state)
        rotate(state.database, state.sealer.keyring, batch=BATCH)
        check_all(state)
        assert len(key_ids(state)) == 1
    shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX only")
def test_086_a_rotating_process_is_killed_and_resumed_until_done(folder: Path) -> None:
    chance = random.Random(86)
    with opened(folder) as state:
        before = key_ids(state)
    kills = 0
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", ROTATE, str(folder), "100"],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
        )
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        if kills < 5:
            time.sleep(chance.uniform(0.0, 0.5))
            process.kill()
        ended = process.wait(120)
        process.stdout.close()
        with opened(folder) as state:
            check_all(state)
        if ended == 0:
            break
        kills += 1
    assert ended == 0
    assert kills >= 1
    with opened(folder) as state:
        assert len(key_ids(state)) == 1
        assert key_ids(state) != before
        assert state.sealer.keyring.ids() == list(key_ids(state))
