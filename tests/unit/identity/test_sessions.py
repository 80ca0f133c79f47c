"""Sessions in both stores: the same promises, kept by SQL and by a real Redis."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.identity.people import People, people
from uait_server_ext.errors import Unauthenticated, Unavailable
from uait_server_ext.identity.sessions import Session, SessionLimits, Sessions, open_sessions

LIMITS = SessionLimits(per_user=5)


class RedisServer:
    """A Redis of one's own, in memory, on a free port."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = shutil.which("redis-server")
        assert command, "redis-server is not installed: see the Makefile's system packages"
        self.process = subprocess.Popen(
            [command, "--port", str(self.port), "--save", "", "--appendonly", "no"],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.2).close()
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError("redis-server did not start")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[People]:
    with people(tmp_path) as built:
        built.time = time.time()  # Redis has a clock of its own, to let keys expire
        built.add("ada")
        built.add("ben")
        yield built


@pytest.fixture(params=["sql", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue("redis_server").url if request.param == "redis" else ""


class Store:
    """Runs a test's coroutine with a store that is closed after it."""

    def __init__(self, here: People, url: str) -> None:
        self.here = here
        self.url = url

    def __call__(self, work: Callable[[Sessions], Coroutine[Any, Any, None]]) -> None:
        async def with_store() -> None:
            sessions = open_sessions(
                self.url, self.here.identity.database, lambda: self.here.time, LIMITS
            )
            try:
                await work(sessions)
            finally:
                await sessions.close()

        asyncio.run(with_store())


@pytest.fixture
def store(here: People, url: str) -> Store:
    return Store(here, url)


async def begin(
    sessions: Sessions,
    user: str,
    *,
    pending: bool = False,
    factors: tuple[str, ...] = ("password",),
) -> tuple[str, Session]:
    return await sessions.start(user, 3, factors, pending, "192.0.2.1", "a browser" * 50)


def test_a_session_is_found_by_its_secret_alone(store: Store) -> None:
    ada = store.here.ids["ada"]

    async def work(sessions: Sessions) -> None:
        secret, session = await begin(sessions, ada)
        assert len(secret) >= 43
        assert await sessions.find(secret) == session
        assert (session.user_id, session.epoch, session.factors) == (ada, 3, ("password",))
        assert session.authenticated_at == session.created_at == store.here.time
        assert len(session.user_agent) == 200
        for wrong in ("", session.id, secret[:-1], secret + "x", "\ud800", "a\0b", "x" * 100_000):
            assert await sessions.find(wrong) is None

    store(work)


def test_a_session_ends_when_it_is_not_used(store: Store) -> None:
    async def work(sessions: Sessions) -> None:
        secret, _ = await begin(sessions, store.here.ids["ada"])
        store.here.later(LIMITS.idle_seconds - 1)
        assert await sessions.find(secret)
        await sessions.touch(secret)
        store.here.later(LIMITS.idle_seconds - 1)
        assert await sessions.find(secret)
        store.here.later(1)
        assert await sessions.find(secret) is None
        await sessions.touch(secret)
        assert await sessions.find(secret) is None
        assert await sessions.list(store.here.ids["ada"]) == []

    store(work)


def test_a_session_ends_however_much_it_is_used(store: Store) -> None:
    async def work(sessions: Sessions) -> None:
        secret, _ = await begin(sessions, store.here.ids["ada"])
        step = LIMITS.idle_seconds / 2
        for _ in range(int(LIMITS.absolute_seconds / step) - 1):
            store.here.later(step)
            await sessions.touch(secret)
            assert await sessions.find(secret)
        store.here.later(step)
        assert await sessions.find(secret) is None

    store(work)


def test_a_session_is_touched_at_most_once_a_minute(store: Store) -> None:
    async def work(sessions: Sessions) -> None:
        secret, session = await begin(sessions, store.here.ids["ada"])
        store.here.later(59)
        await sessions.touch(secret)
        found = await sessions.find(secret)
        assert found
        assert found.last_seen_at == session.created_at
        store.here.later(1)
        await sessions.touch(secret)
        found = await sessions.find(secret)
        assert found
        assert found.last_seen_at == session.created_at + 60

    store(work)


def test_an_upgrade_gives_a_new_secret_and_ends_the_old(store: Store) -> None:
    async def work(sessions: Sessions) -> None:
        old, pending = await begin(sessions, store.here.ids["ada"], pending=True)
        assert pending.pending
        assert pending.authenticated_at == 0
        generation = await store.here.identity.database.generation("identity")
        store.here.later(30)
        new, session = await sessions.upgrade(old, ["totp"])
        assert await sessions.find(old) is None
        assert await sessions.find(new) == session
        assert new != old
        assert session.id != pending.id
        assert session.factors == ("password", "totp")
        assert not session.pending
        assert session.authenticated_at == store.here.time
        assert session.expires_at == pending.created_at + LIMITS.absolute_seconds
        assert await store.here.identity.database.generation("identity") > generation
        with pytest.raises(Unauthenticated):
            await sessions.upgrade(old, ["totp"])
        assert await sessions.list(store.here.ids["ada"]) == [session]

    store(work)


def test_a_login_without_its_second_factor_waits_ten_minutes(store: Store) -> None:
    async def work(sessions: Sessions) -> None:
        secret, _ = await begin(sessions, store.here.ids["ada"], pending=True)
        store.here.later(LIMITS.pending_seconds)
        assert await sessions.find(secret) is None
        with pytest.raises(Unauthenticated):
            await sessions.upgrade(secret, ["totp"])

    store(work)


def test_of_upgrades_at_once_one_wins(store: Store) -> None:
    async def work(sessions: Sessions) -> None:
        secret, _ = await begin(sessions, store.here.ids["ada"])
        outcomes = await asyncio.gather(
            *(sessions.upgrade(secret, ["totp"]) for _ in range(20)), return_exceptions=True
        )
        assert sum(not isinstance(one, BaseException) for one in outcomes) == 1
        assert len(await sessions.list(store.here.ids["ada"])) == 1

    store(work)


def test_a_session_is_ended_by_its_owner_only(store: Store) -> None:
    ada, ben = store.here.ids["ada"], store.here.ids["ben"]

    async def work(sessions: Sessions) -> None:
        secret, session = await begin(sessions, ada)
        await begin(sessions, ben)
        assert not await sessions.end(ben, session.id)
        assert await sessions.find(secret)
        generation = await store.here.identity.database.generation("identity")
        assert await sessions.end(ada, session.id)
        assert await store.here.identity.database.generation("identity") > generation
        assert await sessions.find(secret) is None
        assert not await sessions.end(ada, session.id)
        assert len(await sessions.list(ben)) == 1

    store(work)


def test_all_sessions_but_one_are_ended(store: Store) -> None:
    ada = store.here.ids["ada"]

    async def work(sessions: Sessions) -> None:
        begun = [await begin(sessions, ada) for _ in range(4)]
        other, _ = await begin(sessions, store.here.ids["ben"])
        kept_secret, kept = begun[1]
        assert await sessions.end_all(ada, except_id=kept.id) == 3
        assert [secret for secret, _ in begun if await sessions.find(secret)] == [kept_secret]
        assert await sessions.end_all(ada) == 1
        assert await sessions.end_all(ada) == 0
        assert await sessions.find(other)

    store(work)


def test_a_person_has_only_so_many_sessions(store: Store) -> None:
    ada = store.here.ids["ada"]

    async def work(sessions: Sessions) -> None:
        secrets = []
        for _ in range(LIMITS.per_user + 2):
            store.here.later(1)
            secrets.append((await begin(sessions, ada))[0])
        alive = [secret for secret in secrets if await sessions.find(secret)]
        assert alive == secrets[2:]
        listed = await sessions.list(ada)
        assert [s.last_seen_at for s in listed] == sorted(
            (s.last_seen_at for s in listed), reverse=True
        )

    store(work)


def test_no_secret_is_stored(here: People, tmp_path: Path) -> None:
    async def work(sessions: Sessions) -> None:
        secret, _ = await begin(sessions, here.ids["ada"])
        for file in (tmp_path / "state").iterdir():
            if file.is_file():
                assert secret.encode() not in file.read_bytes()

    Store(here, "")(work)


def test_no_secret_is_stored_in_redis(here: People, redis_server: RedisServer) -> None:
    async def work(sessions: Sessions) -> None:
        secret, _ = await begin(sessions, here.ids["ada"])
        redis = sessions.redis  # type: ignore[attr-defined]
        for key in await redis.keys("*"):
            kind = await redis.type(key)
            text = await (redis.get(key) if kind == "string" else redis.hgetall(key))
            assert secret not in f"{key} {text}"
            assert 0 < await redis.ttl(key) <= LIMITS.absolute_seconds + 1

    Store(here, redis_server.url)(work)


def test_without_redis_nobody_gets_in_and_nobody_hangs(here: People) -> None:
    server = RedisServer()
    ada = here.ids["ada"]

    async def work(sessions: Sessions) -> None:
        secret, session = await begin(sessions, ada)
        server.stop()
        began = time.monotonic()
        for refused in (
            sessions.find(secret),
            sessions.touch(secret),
            sessions.upgrade(secret, ["totp"]),
            begin(sessions, ada),
            sessions.list(ada),
            sessions.end(ada, session.id),
            sessions.end_all(ada),
        ):
            with pytest.raises(Unavailable, match="store of sessions") as caught:
                await refused
            assert secret not in str(caught.value)
        assert time.monotonic() - began < 10

    Store(here, server.url)(work)


def test_a_redis_that_lost_its_data_has_ended_all(here: People, redis_server: RedisServer) -> None:
    async def work(sessions: Sessions) -> None:
        secret, _ = await begin(sessions, here.ids["ada"])
        await sessions.redis.flushall()  # type: ignore[attr-defined]
        assert await sessions.find(secret) is None
        assert await sessions.list(here.ids["ada"]) == []

    Store(here, redis_server.url)(work)


class SessionLife(RuleBasedStateMachine):
    """Whatever happens in whatever order: who was ended stays out, who was not stays in."""

    folder: Path

    @initialize()
    def build(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.context = people(self.folder)
        self.here = self.context.__enter__()
        self.here.add("ada")
        self.here.add("ben")
        self.sessions = open_sessions(
            "", self.here.identity.database, lambda: self.here.time, SessionLimits(per_user=100)
        )
        self.alive: dict[str, Session] = {}
        self.dead: set[str] = set()

    def teardown(self) -> None:
        if hasattr(self, "context"):
            self.context.__exit__(None, None, None)
            shutil.rmtree(self.folder)

    @rule(name=st.sampled_from(["ada", "ben"]), pending=st.booleans())
    def start(self, name: str, pending: bool) -> None:
        secret, session = asyncio.run(begin(self.sessions, self.here.ids[name], pending=pending))
        self.alive[secret] = session

    @rule(data=st.data())
    def upgrade(self, data: st.DataObject) -> None:
        if self.alive:
            old = data.draw(st.sampled_from(sorted(self.alive)))
            new, session = asyncio.run(self.sessions.upgrade(old, ["totp"]))
            self.kill(old)
            self.alive[new] = session

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.alive:
            secret = data.draw(st.sampled_from(sorted(self.alive)))
            session = self.alive[secret]
            assert asyncio.run(self.sessions.end(session.user_id, session.id))
            self.kill(secret)

    @rule(name=st.sampled_from(["ada", "ben"]))
    def end_all(self, name: str) -> None:
        asyncio.run(self.sessions.end_all(self.here.ids[name]))
        for secret in [s for s, v in self.alive.items() if v.user_id == self.here.ids[name]]:
            self.kill(secret)

    @rule(seconds=st.sampled_from([1.0, 61.0, 601.0, 43_201.0]))
    def wait(self, seconds: float) -> None:
        self.here.later(seconds)
        for secret, session in list(self.alive.items()):
            idle = self.here.time >= session.last_seen_at + LIMITS.idle_seconds
            if idle or self.here.time >= session.expires_at:
                self.kill(secret)

    def kill(self, secret: str) -> None:
        del self.alive[secret]
        self.dead.add(secret)

    @invariant()
    def only_the_living_get_in(self) -> None:
        if hasattr(self, "alive"):
            for secret in self.alive:
                assert asyncio.run(self.sessions.find(secret))
            for secret in self.dead:
                assert asyncio.run(self.sessions.find(secret)) is None


SessionLife.TestCase.settings = settings(
    max_examples=15, stateful_step_count=12, deadline=None, derandomize=True
)
TestSessionLife = SessionLife.TestCase
