"""Other vaults: values that stay there, and the master key sealed by one; through hvac."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.vault.bao_server import TOKEN, Bao, bao_server
from tests.unit.vault.state import ADA, CANARY, State, opened
from uait_server_ext.errors import NotFound, Unavailable
from uait_server_ext.vault.models import LeaseRequest, NewSecret
from uait_server_ext.vault.sources import KeyValueSource

run = asyncio.run


@pytest.fixture
def bao() -> Iterator[Bao]:
    with bao_server() as server:
        server.secrets["kv/team/openai"] = {"key": CANARY, "port": 5432}
        yield server


def source(bao: Bao, token: str = TOKEN) -> KeyValueSource:
    return KeyValueSource(bao.address, token, timeout=1.0)


def test_a_value_is_read_through(bao: Bao, state: State) -> None:
    state.vault.sources["openbao"] = source(bao)
    run(state.vault.create(ADA, NewSecret(name="openai", reference="openbao:kv/team/openai#key")))
    assert bao.asked == []
    lease = run(state.vault.lease(ADA, LeaseRequest(secret="openai", purpose="chat")))
    assert run(state.vault.use(lease.id)).get_secret_value() == CANARY
    bao.secrets["kv/team/openai"]["key"] = "rotated there"
    assert run(state.vault.use(lease.id)).get_secret_value() == "rotated there"
    assert bao.asked == ["GET /v1/kv/data/team/openai"] * 2
    assert CANARY.encode() not in (state.folder / "uait.db").read_bytes()


def test_what_is_not_there_is_not_found(bao: Bao) -> None:
    for path, key in (("kv/none", "key"), ("kv/team/openai", "none"), ("kv/team/openai", "port")):
        with pytest.raises(NotFound, match="reference"):
            run(source(bao).read(path, key))


def test_a_vault_that_fails_is_unavailable_and_tells_no_secret(bao: Bao) -> None:
    def refused(token: str = TOKEN) -> str:
        with pytest.raises(Unavailable) as caught:
            run(source(bao, token).read("kv/team/openai", "key"))
        assert token not in str(caught.value)
        return str(caught.value)

    assert "Forbidden" in refused("s.wrong")
    for status in (500, 503):
        bao.fails_with = status
        refused()
    bao.fails_with = 0
    for answer in (b"<html>", b"[]", b'{"data": 1}'):
        bao.answers = answer
        refused()
    bao.answers = None
    bao.delay = 3.0
    assert "Timeout" in refused()


def test_a_vault_that_is_gone_is_unavailable() -> None:
    with bao_server() as gone:
        pass
    with pytest.raises(Unavailable, match="did not give"):
        run(source(gone).read("kv/a", "b"))


def test_the_master_key_sealed_by_transit(
    bao: Bao, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"openbao://{bao.address.removeprefix('http://')}/transit/uait?tls=off"
    monkeypatch.setenv("BAO_TOKEN", TOKEN)
    with opened(tmp_path, url) as state:
        state.database.write_now(lambda c: state.sealer.put(c, "a", b"value"))
    assert (tmp_path / "keys" / "master.transit").read_text().startswith("vault:v1:")
    monkeypatch.setenv("VAULT_TOKEN", TOKEN)
    with opened(tmp_path, url) as state:
        assert state.database.read_now(lambda c: state.sealer.get(c, "a")) == b"value"
    bao.fails_with = 503
    monkeypatch.setenv("BAO_TOKEN", TOKEN)
    with pytest.raises(Unavailable, match="did not open the master key"), opened(tmp_path, url):
        pass
