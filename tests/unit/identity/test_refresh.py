"""Refresh tokens: their life from login to logout, and what people see of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.identity.credential_store import ADA, BEN, Store, open_store, run
from uait_server_ext.errors import NotFound, Unauthenticated
from uait_server_ext.identity.tables import refresh_tokens

USER = ("uait-user",)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def test_each_use_brings_the_next_token_and_an_access_token(store: Store) -> None:
    token, seen, began = store.login(), set(), store.time
    for _ in range(3):
        store.later(3600)
        answer = run(store.refresh.rotate(token))
        assert (answer.token_type, answer.expires_in, answer.scope) == ("Bearer", 600, "models:run")
        claims = run(store.tokens.verify(answer.access_token, USER))
        assert (claims.user_id, claims.authenticated_at) == (ADA, began)
        seen.add(token)
        token = answer.refresh_token
    assert len(seen) == 3


def test_secrets_are_neither_stored_nor_shown(store: Store) -> None:
    answer = run(store.refresh.rotate(store.login()))
    assert answer.refresh_token not in repr(answer)
    assert answer.access_token not in repr(answer)
    for file in store.folder.iterdir():
        assert answer.refresh_token.encode() not in file.read_bytes()


@pytest.mark.parametrize("secret", ["", "uaitr_", "' OR 1=1--", "x" * 1000, "\x00", "\ud800"])
def test_an_unknown_token_is_refused(store: Store, secret: str) -> None:
    store.login()
    with pytest.raises(Unauthenticated) as caught:
        run(store.refresh.rotate(secret))
    assert caught.value.problem()["error"] == "invalid_grant"
    assert store.events() == [("token.refresh", "refused")]


def test_a_login_can_be_ended_by_its_token(store: Store) -> None:
    first = store.login()
    answer = run(store.refresh.rotate(first))
    run(store.refresh.end(answer.refresh_token))
    for token in (answer.refresh_token, first):
        with pytest.raises(Unauthenticated):
            run(store.refresh.rotate(token))
    with pytest.raises(Unauthenticated):
        run(store.tokens.verify(answer.access_token, USER))
    run(store.refresh.end("unknown"))


def test_people_see_and_end_their_own_logins_only(store: Store) -> None:
    ada = run(store.refresh.rotate(store.login()))
    store.later(10)
    store.login(BEN)
    jti = run(store.tokens.verify(ada.access_token, USER)).jti
    (mine,) = run(store.refresh.list(ADA, jti))
    assert (mine.client, mine.scope, mine.current) == ("a test", ["models:run"], True)
    (bens,) = run(store.refresh.list(BEN, jti))
    assert not bens.current
    for user, family in ((BEN, mine.id), (ADA, "fam_unknown"), (ADA, "' OR 1=1--")):
        with pytest.raises(NotFound):
            run(store.refresh.end_family(user, family))
    run(store.refresh.end_family(ADA, mine.id))
    assert run(store.refresh.list(ADA)) == []
    assert len(run(store.refresh.list(BEN))) == 1
    with pytest.raises(NotFound):
        run(store.refresh.end_family(ADA, mine.id))


def test_every_login_of_a_person_can_be_ended_at_once(store: Store) -> None:
    tokens = [store.login(), store.login(), store.login(BEN)]
    store.write(lambda c: store.refresh.end_all(c, ADA))
    for token in tokens[:2]:
        with pytest.raises(Unauthenticated):
            run(store.refresh.rotate(token))
    assert run(store.refresh.rotate(tokens[2]))


def test_what_is_over_is_deleted_in_time(store: Store) -> None:
    run(store.refresh.rotate(store.login()))
    store.later(91 * 86_400)
    store.login()
    assert store.count(refresh_tokens) == 1


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(uses=st.lists(st.integers(0, 5), max_size=12))
def test_only_the_newest_token_of_a_living_family_works(store: Store, uses: list[int]) -> None:
    """Use tokens of one family in any order: the model is one number, and whether it is dead."""
    issued, dead = [store.login()], False
    for use in uses:
        index = min(use, len(issued) - 1)
        if not dead and index == len(issued) - 1:
            issued.append(run(store.refresh.rotate(issued[index])).refresh_token)
            continue
        with pytest.raises(Unauthenticated):
            run(store.refresh.rotate(issued[index]))
        dead = True
