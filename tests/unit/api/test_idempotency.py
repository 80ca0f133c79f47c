"""Idempotency keys: carried out once, answered as often as asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from uait_server_ext.api.idempotency import (
    KEEP_SECONDS,
    LEASE_SECONDS,
    IdempotencyKeys,
    KeptAnswer,
    idempotency_key,
    request_digest,
)
from uait_server_ext.errors import Conflict, InvalidInput
from uait_server_ext.storage.database import Database, sqlite_url

FIRST = request_digest("POST", "/uait/v1/x?a=1", b'{"a":1}')
OTHER = request_digest("POST", "/uait/v1/x?a=1", b'{"a":2}')
ANSWER = KeptAnswer(201, "application/json", b'{"id":"x"}')


class Hand:
    at = 1_000_000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Hand:
    return Hand()


@pytest.fixture
def keys(tmp_path: Path, clock: Hand) -> Iterator[IdempotencyKeys]:
    database = Database(sqlite_url(tmp_path / "x.db"))
    database.open()
    yield IdempotencyKeys(database, clock)
    database.close()


async def kept(keys: IdempotencyKeys, principal: str = "usr_1") -> None:
    assert await keys.begin(principal, "k", FIRST) is None
    await keys.keep(principal, "k", ANSWER.status, ANSWER.content_type, ANSWER.body)


def test_a_repetition_has_the_first_answer(keys: IdempotencyKeys) -> None:
    async def run() -> None:
        await kept(keys)
        assert await keys.begin("usr_1", "k", FIRST) == ANSWER

    asyncio.run(run())


def test_a_key_belongs_to_one_principal(keys: IdempotencyKeys) -> None:
    async def run() -> None:
        await kept(keys)
        assert await keys.begin("usr_2", "k", OTHER) is None

    asyncio.run(run())


def test_a_key_belongs_to_one_request(keys: IdempotencyKeys) -> None:
    async def run() -> None:
        await kept(keys)
        with pytest.raises(InvalidInput, match="another request"):
            await keys.begin("usr_1", "k", OTHER)

    asyncio.run(run())


def test_while_the_first_runs_a_second_waits(keys: IdempotencyKeys) -> None:
    async def run() -> None:
        results = await asyncio.gather(
            *(keys.begin("usr_1", "k", FIRST) for _ in range(10)), return_exceptions=True
        )
        assert results.count(None) == 1
        assert sum(isinstance(result, Conflict) for result in results) == 9

    asyncio.run(run())


def test_a_failure_gives_the_key_back(keys: IdempotencyKeys) -> None:
    async def run() -> None:
        assert await keys.begin("usr_1", "k", FIRST) is None
        await keys.release("usr_1", "k")
        assert await keys.begin("usr_1", "k", OTHER) is None

    asyncio.run(run())


def test_release_does_not_forget_an_answer(keys: IdempotencyKeys) -> None:
    async def run() -> None:
        await kept(keys)
        await keys.release("usr_1", "k")
        assert await keys.begin("usr_1", "k", FIRST) == ANSWER

    asyncio.run(run())


def test_a_request_that_died_with_its_server_gives_its_key_back(
    keys: IdempotencyKeys, clock: Hand
) -> None:
    async def run() -> None:
        await keys.begin("usr_1", "k", FIRST)
        clock.at += LEASE_SECONDS + 1
        assert await keys.begin("usr_1", "k", FIRST) is None

    asyncio.run(run())


def test_an_answer_is_kept_for_a_day(keys: IdempotencyKeys, clock: Hand) -> None:
    async def run() -> None:
        await kept(keys)
        clock.at += KEEP_SECONDS - 1
        assert await keys.begin("usr_1", "k", FIRST) == ANSWER
        clock.at += 2
        assert await keys.begin("usr_1", "k", OTHER) is None

    asyncio.run(run())


def test_an_answer_with_a_secret_is_not_in_the_database(
    keys: IdempotencyKeys, tmp_path: Path
) -> None:
    async def run() -> None:
        await keys.begin("usr_1", "k", FIRST)
        await keys.keep("usr_1", "k", 201, "application/json", None)
        with pytest.raises(Conflict, match="was carried out"):
            await keys.begin("usr_1", "k", FIRST)

    asyncio.run(run())


def test_the_key_is_read_from_both_spellings_and_bounded() -> None:
    assert idempotency_key("POST", {"Idempotency-Key": '"8e03978e-40d5"'}) == "8e03978e-40d5"
    assert idempotency_key("POST", {"Idempotency-Key": "8e03978e-40d5"}) == "8e03978e-40d5"
    assert idempotency_key("GET", {"Idempotency-Key": "x"}) is None
    assert idempotency_key("POST", {}) is None
    for key in ("", '""', "x" * 101, "a b", "é"):
        with pytest.raises(InvalidInput, match="Idempotency-Key"):
            idempotency_key("POST", {"Idempotency-Key": key})


def test_method_path_query_and_body_make_a_request() -> None:
    digests = {
        request_digest(method, uri, body)
        for method in ("POST", "PUT")
        for uri in ("/a", "/a?b", "/ab")
        for body in (b"", b"1")
    }
    assert len(digests) == 12
