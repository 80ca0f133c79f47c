"""The routing file: what it makes, and that a mistake in it is found on its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from uait_server_ext.errors import InvalidInput
from uait_server_ext.routing import config
from uait_server_ext.routing.config import read_routing

GOOD = """\
[providers.team]
url = "https://models.example.org/v1"
key = "vault:team-models"
privacy = "private"

[providers.team.models.large]
name = "qwen3-32b"
price = { input = 0.4, output = 1.2 }
context_tokens = 32768
capabilities = ["tools", "json_schema"]
concurrent = 4

[[tiers]]
name = "small"
models = ["local/smollm2-135m-instruct"]

[[tiers]]
name = "large"
models = ["team/large"]
hedge_seconds = 2
"""


def refusal(tmp_path: Path, text: str) -> str:
    file = tmp_path / "routing.toml"
    file.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_routing(file)
    return caught.value.detail


def test_without_a_file_there_are_no_tiers(tmp_path: Path) -> None:
    for path in (None, tmp_path / "none.toml"):
        routing = read_routing(path)
        assert routing.tiers == ()
        assert routing.targets == {}
        assert routing.provider("local").privacy == "local"


def test_a_file_makes_targets_and_tiers(tmp_path: Path) -> None:
    file = tmp_path / "routing.toml"
    file.write_text(GOOD)
    routing = read_routing(file)
    small, large = routing.tiers
    assert (small.rank, large.rank) == (0, 1)
    assert small.targets[0].privacy == "local"
    (target,) = large.targets
    assert target is routing.targets["team/large"]
    assert (target.name, target.price.output, target.privacy) == ("qwen3-32b", 1.2, "private")
    assert target.capabilities == {"tools", "json_schema"}
    assert target.limits.concurrent == 4
    assert routing.hedge_seconds("large") == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('"https://models', '"ftp://models'), ("line 1", "providers.team", "https://")),
        (('"vault:team-models"', '"sk-verysecret"'), ("line 3", "providers.team.key")),
        (('"private"', '"secret"'), ("line 4", "privacy", "'local', 'private' or 'public'")),
        (("input = 0.4", "input = -1"), ("line 8", "price.input")),
        (("context_tokens", "context_size"), ("line 9", "context_size")),
        (('"tools", "json', '"tool", "json'), ("line 10", "capabilities.0")),
        (('"tools", "json_schema"', '"regex"'), ("providers.team", "regex")),
        (('["team/large"]', '["team/huge"]'), ("line 19", "tiers.1.models.0", "'huge'")),
        (('["team/large"]', '["other/x"]'), ("line 19", "'other'")),
        (('name = "large"', 'name = "small"'), ("line 18", "tiers.1.name")),
        (("https://models.example.org", "http://models.example.org"), None),
        (("[[tiers]]", "[[tiers"), ("line 13",)),
    ],
)
def test_a_mistake_is_found_on_its_line(
    tmp_path: Path, change: tuple[str, str], told: tuple[str, ...] | None
) -> None:
    text = GOOD.replace(*change)
    assert text != GOOD
    if told is None:  # plain HTTP within the organisation is the operator's choice
        (tmp_path / "routing.toml").write_text(text)
        read_routing(tmp_path / "routing.toml")
        return
    detail = refusal(tmp_path, text)
    for word in (*told, "routing.toml", "Correct it"):
        assert word in detail
    assert "verysecret" not in detail


def test_what_would_tell_a_secret_or_lie_about_privacy_is_refused(tmp_path: Path) -> None:
    private = 'privacy = "private"'
    plain = GOOD.replace("https://", "http://").replace(private, "")
    assert "in the clear" in refusal(tmp_path, plain)
    assert "leaves this machine" in refusal(tmp_path, GOOD.replace(private, 'privacy = "local"'))
    detail = refusal(tmp_path, GOOD.replace("https://models", "https://me:verysecret@models"))
    assert "vault" in detail
    assert "verysecret" not in detail


@pytest.mark.parametrize(
    ("host", "here"),
    [("localhost", True), ("127.0.0.1", True), ("::1", True), ("10.0.0.1", False), ("a.b", False)],
)
def test_this_machine_is_known(host: str, here: bool) -> None:
    assert config.is_loopback(host) is here
