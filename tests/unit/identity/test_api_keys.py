"""API keys: made narrower than their maker, found by their hash, limited, used, revoked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.unit.identity.credential_store import ADA, BEN, Store, open_store, run
from uait_server_ext.errors import Conflict, NotFound, PermissionDenied
from uait_server_ext.identity.key_limits import is_plain, matches
from uait_server_ext.identity.tables import api_keys
from uait_server_ext.identity.token_models import ApiKeyRequest, NewApiKey
from uait_server_ext.storage.tables import sealed_values

DAY = 86_400.0
FROM, CHAT = "198.51.100.7", ("POST", "/chat")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def make(store: Store, user_id: str = ADA, **wanted: Any) -> NewApiKey:
    facts = {"name": "nightly", "permissions": ["models:run"]} | wanted
    request = ApiKeyRequest.model_validate(facts)
    return run(store.api_keys.create(store.person(user_id), request, FROM))


def find(store: Store, key: str, address: str = FROM, method: str = "POST", path: str = "/chat"):
    return run(store.api_keys.find(key, address, method, path))


def test_a_key_is_shown_once_and_kept_as_its_hash(store: Store) -> None:
    made = make(store)
    assert re.fullmatch(r"uait_[A-Za-z0-9_-]{43}", made.key)
    assert made.signing_secret is None
    assert made.key.startswith(made.info.prefix)
    assert made.key not in repr(made)
    found = find(store, made.key)
    assert (found.user_id, found.name, found.scope) == (ADA, "nightly", {"models:run"})
    for file in store.folder.iterdir():
        assert made.key.encode() not in file.read_bytes()
    assert store.events() == [("key.create", "ok")]


def test_an_expired_or_revoked_key_is_not_found(store: Store) -> None:
    first, second = make(store, expires_in_days=1), make(store)
    assert second.info.expires_at == store.time + 90 * DAY
    store.later(DAY)
    assert find(store, first.key) is None
    assert find(store, second.key)
    run(store.api_keys.revoke(store.person(), second.info.id))
    assert find(store, second.key) is None
    assert run(store.api_keys.list(ADA)) == []


def test_a_revocation_makes_cached_answers_stale(store: Store) -> None:
    made = make(store)
    before = run(store.database.generation("identity"))
    run(store.api_keys.revoke(store.person(), made.info.id))
    assert run(store.database.generation("identity")) > before


@pytest.mark.parametrize("name", ["models:everything", "", "' OR 1=1--", "MODELS:RUN"])
def test_an_unknown_permission_is_refused(store: Store, name: str) -> None:
    with pytest.raises(ValidationError):
        make(store, permissions=[name])


@pytest.mark.parametrize(
    "wanted",
    [
        {"permissions": []},
        {"expires_in_days": 0},
        {"expires_in_days": 366},
        {"expires_in_days": None},
        {"name": ""},
        {"name": "a\nb"},
        {"routes": ["chat"]},
        {"routes": ["POST chat"]},
        {"routes": ["POST /chat\nGET /users"]},
        {"routes": ["POST /a/../b?x"]},
        {"networks": ["example.org"]},
        {"networks": ["10.0.0.0/33"]},
        {"owner_id": BEN},
    ],
)
def test_a_key_that_cannot_be_is_refused(store: Store, wanted: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make(store, **wanted)
    assert store.count(api_keys) == 0


def test_an_administrator_can_shorten_the_life_of_keys(store: Store) -> None:
    store.api_keys.max_days = 7
    assert make(store).info.expires_at == store.time + 7 * DAY


def test_the_number_of_keys_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uait_server_ext.identity.api_keys.MAX_KEYS", 2)
    made = [make(store), make(store)]
    with pytest.raises(Conflict):
        make(store)
    make(store, BEN)
    run(store.api_keys.revoke(store.person(), made[0].info.id))
    make(store)


@pytest.mark.parametrize(
    ("networks", "address", "allowed"),
    [
        ([], "203.0.113.1", True),
        (["203.0.113.0/24"], "203.0.113.255", True),
        (["203.0.113.0/24"], "203.0.114.0", False),
        (["203.0.113.7/24"], "203.0.113.9", True),
        (["203.0.113.7"], "203.0.113.7", True),
        (["203.0.113.7"], "::ffff:203.0.113.7", True),
        (["203.0.113.7"], "::ffff:203.0.113.8", False),
        (["2001:db8::/32"], "2001:db8::1", True),
        (["2001:db8::/32", "10.0.0.0/8"], "10.9.8.7", True),
        (["0.0.0.0/0"], "2001:db8::1", False),
        (["0.0.0.0/0"], "", False),
        (["0.0.0.0/0"], "unix", False),
    ],
)
def test_a_key_can_be_bound_to_networks(
    store: Store, networks: list[str], address: str, allowed: bool
) -> None:
    made = make(store, networks=networks)
    if allowed:
        assert find(store, made.key, address)
        return
    with pytest.raises(PermissionDenied):
        find(store, made.key, address)
    assert store.events()[-1] == ("key.use", "refused")


@pytest.mark.parametrize(
    ("pattern", "method", "path", "allowed"),
    [
        ("POST /chat", "POST", "/chat", True),
        ("POST /chat", "GET", "/chat", False),
        ("POST /chat", "POST", "/chat/", False),
        ("POST /chat", "POST", "/chatter", False),
        ("POST /chat", "POST", "/users/chat", False),
        ("POST /chat", "POST", "/CHAT", False),
        ("GET /collections/*", "GET", "/collections/default", True),
        ("GET /collections/*", "GET", "/collections", False),
        ("GET /collections/*", "GET", "/collections/", False),
        ("GET /collections/*", "GET", "/collections/default/documents", False),
        ("GET /collections/{collection}", "GET", "/collections/default", True),
        ("POST /collections/*/search", "POST", "/collections/a/search", True),
        ("POST /collections/*/search", "POST", "/collections/a/ask", False),
        ("GET /collections/**", "GET", "/collections/a/documents", True),
        ("GET /collections/**", "GET", "/collections", False),
        ("GET /collections/**", "GET", "/collections/../users", False),
        ("GET /collections/**", "GET", "/collections/%2e%2e/users", False),
        ("GET /collections/**", "GET", "/collections/a%2fb", False),
        ("GET /collections/**", "GET", "/collections//users", False),
        ("* /models/**", "DELETE", "/models/a", True),
        ("* /**", "GET", "/api/contents", True),
        ("GET /api/contents/**", "GET", "/api/contents/a%20b", True),
    ],
)
def test_a_key_can_be_bound_to_operations(
    store: Store, pattern: str, method: str, path: str, allowed: bool
) -> None:
    made = make(store, routes=["GET /health", pattern])
    if allowed:
        assert find(store, made.key, method=method, path=path)
        return
    with pytest.raises(PermissionDenied):
        find(store, made.key, method=method, path=path)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "..", ".", "", "%2F", "%2e%2E", "a%5cb"]), max_size=5))
def test_a_path_with_two_meanings_matches_nothing(parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    while parts and parts[-1] == "" and not path.endswith("//"):
        parts = parts[:-1]  # one slash at the end, or the root
    assert is_plain(path) == all(part in ("a", "b") for part in parts)


def test_the_rest_of_a_path_is_matched_by_two_stars_only() -> None:
    assert matches("GET /a/**", "GET", "/a/b/c")
    assert not matches("GET /a/*", "GET", "/a/b/c")


def test_when_a_key_was_used_is_kept_to_the_minute(store: Store) -> None:
    made = make(store)
    used = [store.time, store.time, store.time + 60]
    for wait, expected in zip((0, 59, 1), used, strict=True):
        store.later(wait)
        find(store, made.key)
        assert run(store.api_keys.list(ADA))[0].last_used_at == expected


def test_a_signing_secret_is_sealed_and_goes_with_its_key(store: Store) -> None:
    made = make(store, signing=True)
    other = make(store, BEN, signing=True)
    assert made.signing_secret
    assert made.signing_secret not in repr(made)
    sealed = store.write(lambda c: store.sealer.get(c, f"signing:{made.info.id}"))
    assert sealed == made.signing_secret.encode()
    assert find(store, made.key).signing
    before = store.count(sealed_values)
    run(store.api_keys.revoke(store.person(), made.info.id))
    assert store.count(sealed_values) == before - 1
    run(store.directory.delete(store.person(), BEN))
    assert store.count(sealed_values) == before - 2
    assert find(store, other.key) is None


def test_people_see_and_revoke_their_own_keys_only(store: Store) -> None:
    made = make(store)
    assert run(store.api_keys.list(BEN)) == []
    for key_id in (made.info.id, "key_unknown", "' OR 1=1--", ""):
        with pytest.raises(NotFound):
            run(store.api_keys.revoke(store.person(BEN), key_id))
    assert find(store, made.key)
    (seen,) = run(store.api_keys.list(ADA))
    assert made.key not in seen.model_dump_json()
