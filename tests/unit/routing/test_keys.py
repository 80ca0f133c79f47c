"""A provider's key: leased, kept for a minute, asked for anew when refused, never shown."""

from __future__ import annotations

import logging

import pytest
from pydantic import SecretStr

from tests.unit.routing.mock_provider import MockProvider
from tests.unit.routing.world import ADA, ask, run
from uait_server_ext.errors import (
    AddressRefused,
    DependencyMissing,
    InvalidInput,
    NotFound,
    PermissionDenied,
    UaitError,
    UpstreamRefused,
)
from uait_server_ext.inference.models import ChatDone
from uait_server_ext.routing.config import parse, routing_of
from uait_server_ext.routing.providers.keys import KEEP_SECONDS, LeasedKey
from uait_server_ext.routing.providers.litellm import LiteLLMProvider
from uait_server_ext.routing.providers.openai_http import OpenAIProvider, retry_after

VALUE = "sk-a-very-secret-value"
FILE = """
[providers.team]
url = "{url}"
privacy = "private"
key = "vault:team"
guarded = {guarded}
[providers.team.models.m]
"""


class Lease:
    id = "lease_1"


class Vault:
    """Leases of one secret; what it was asked for is counted."""

    def __init__(self) -> None:
        self.leased: list[tuple[str, str]] = []
        self.used = 0
        self.error: UaitError | None = None
        self.ended = False

    async def lease(self, secret: str, purpose: str, seconds: int) -> Lease:
        if self.error:
            raise self.error
        self.leased.append((secret, purpose))
        self.ended = False
        return Lease()

    async def use(self, lease_id: str) -> SecretStr:
        if self.ended:
            raise PermissionDenied("The lease has expired: take a new one.")
        self.used += 1
        return SecretStr(VALUE)


class Hand:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def test_a_value_is_kept_for_a_minute_and_a_lease_as_long_as_it_lasts() -> None:
    async def go() -> None:
        vault, clock = Vault(), Hand()
        key = LeasedKey("team", "vault:team", vault, clock=clock)
        for _ in range(3):
            assert (await key.value()).get_secret_value() == VALUE
        assert (len(vault.leased), vault.used) == (1, 1)
        assert vault.leased[0][0] == "team"
        assert "team" in vault.leased[0][1]
        clock.at += KEEP_SECONDS
        await key.value()
        assert (len(vault.leased), vault.used) == (1, 2)
        clock.at += KEEP_SECONDS
        vault.ended = True
        await key.value()
        assert (len(vault.leased), vault.used) == (2, 3)
        key.forget()
        await key.value()
        assert len(vault.leased) == 3
        assert VALUE not in repr(vars(key))

    run(go())


def test_a_secret_that_is_not_there_is_for_an_administrator_to_mend() -> None:
    vault = Vault()
    vault.error = NotFound("There is no such secret.")
    with pytest.raises(UpstreamRefused, match="`team`"):
        run(LeasedKey("team", "vault:team", vault).value())


def test_the_key_is_sent_and_told_to_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    async def go() -> None:
        async with MockProvider() as mock:
            routing = routing_of(parse(FILE.format(url=mock.url, guarded="false")))
            target = routing.targets["team/m"]
            key = LeasedKey("team", "vault:team", Vault())
            provider = OpenAIProvider("team", routing.provider("team"), key)
            events = [e async for e in provider.chat(target, ask(), ADA)]
            assert isinstance(events[-1], ChatDone)
            assert f"authorization: bearer {VALUE}" in mock.heads[0].lower()
            mock.script.append("400")
            with pytest.raises(InvalidInput) as caught:
                await anext(provider.chat(target, ask(), ADA))
            assert VALUE not in caught.value.detail
            mock.script.append("401")
            with pytest.raises(UpstreamRefused) as refused:
                await anext(provider.chat(target, ask(), ADA))
            assert VALUE not in refused.value.detail
            await provider.close()

    with caplog.at_level(logging.DEBUG):
        run(go())
    assert VALUE not in caplog.text


def test_a_guarded_address_is_not_connected_to_where_it_is_not_public() -> None:
    async def go() -> None:
        async with MockProvider() as mock:
            routing = routing_of(parse(FILE.format(url=mock.url, guarded="true")))
            provider = OpenAIProvider("team", routing.provider("team"))
            with pytest.raises(AddressRefused):
                await anext(provider.chat(routing.targets["team/m"], ask(), ADA))
            assert not mock.calls
            await provider.close()

    run(go())


def test_retry_after_is_read_in_both_forms() -> None:
    assert retry_after("7") == 7
    assert retry_after(None) is None
    assert retry_after("soon") is None
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_litellm_is_an_extra_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DependencyMissing, match=r"uait\[litellm\]"):
        LiteLLMProvider("bedrock")
