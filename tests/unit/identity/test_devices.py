"""The device flow: begin, approve or deny in person, poll; and how it is abused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.identity.credential_store import ADA, BEN, Store, open_store, run
from uait_server_ext.errors import (
    AccessDenied,
    AuthorizationPending,
    Busy,
    CodeExpired,
    GrantRefused,
    InvalidInput,
    NotFound,
    PermissionDenied,
    SlowDown,
)
from uait_server_ext.identity.devices import ALPHABET, Begun
from uait_server_ext.identity.tables import device_codes

USER = ("uait-user",)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        yield opened


def begin(store: Store, scope: str | None = None, address: str = "198.51.100.1") -> Begun:
    return run(store.devices.begin("uait on a laptop", scope, address))


def approve(store: Store, begun: Begun, user_id: str = ADA) -> None:
    run(store.devices.decide(store.person(user_id), begun.user_code, "approve"))


def test_an_approved_client_gets_tokens_once(store: Store) -> None:
    begun = begin(store)
    with pytest.raises(AuthorizationPending):
        run(store.devices.poll(begun.device_code))
    asked = run(store.devices.look(store.person(), begun.shown.lower()))
    assert (asked.client, asked.address, asked.expires_in) == (
        "uait on a laptop", "198.51.100.1", 600,
    )  # fmt: skip
    approve(store, begun)
    store.later(5)
    answer = run(store.devices.poll(begun.device_code))
    claims = run(store.tokens.verify(answer.access_token, USER))
    assert (claims.user_id, claims.scope) == (ADA, frozenset(asked.scope))
    assert run(store.refresh.rotate(answer.refresh_token))
    with pytest.raises(GrantRefused):
        run(store.devices.poll(begun.device_code))
    assert store.events() == [("device.approve", "ok"), ("login.device", "ok")]


def test_the_errors_have_the_names_that_oauth_clients_know(store: Store) -> None:
    begun = begin(store)
    with pytest.raises(AuthorizationPending) as pending:
        run(store.devices.poll(begun.device_code))
    with pytest.raises(SlowDown) as slow:
        run(store.devices.poll(begun.device_code))
    assert slow.value.problem()["interval"] == 10
    store.later(5)
    with pytest.raises(SlowDown):  # five seconds are not enough any more
        run(store.devices.poll(begun.device_code))
    store.later(600)
    with pytest.raises(CodeExpired) as expired:
        run(store.devices.poll(begun.device_code))
    denied_one = begin(store)
    run(store.devices.decide(store.person(), denied_one.user_code, "deny"))
    with pytest.raises(AccessDenied) as denied:
        run(store.devices.poll(denied_one.device_code))
    with pytest.raises(GrantRefused) as unknown:
        run(store.devices.poll("' OR 1=1--"))
    names = [
        (caught.value.problem()["error"], caught.value.problem()["code"], caught.value.status)
        for caught in (pending, slow, expired, denied, unknown)
    ]
    assert names == [
        (name, name, 400)
        for name in (
            "authorization_pending",
            "slow_down",
            "expired_token",
            "access_denied",
            "invalid_grant",
        )
    ]


def test_a_client_gets_no_more_than_the_person_may(store: Store) -> None:
    begun = begin(store, "models:run vault:reveal users:write")
    approve(store, begun, BEN)  # a viewer
    assert run(store.devices.poll(begun.device_code)).scope == "models:run"
    begun = begin(store, "vault:reveal")
    with pytest.raises(PermissionDenied):
        approve(store, begun, BEN)
    with pytest.raises(InvalidInput):
        begin(store, "models:run everything")


@pytest.mark.parametrize(
    "changed",
    [{"kind": "api-key"}, {"kind": "kernel"}, {"credential": "jti_x"}, {"credential": None}],
)
def test_only_a_person_in_a_browser_approves(store: Store, changed: dict[str, str]) -> None:
    begun = begin(store)
    for decide in (
        store.devices.decide(store.person(ADA, **changed), begun.user_code, "approve"),
        store.devices.look(store.person(ADA, **changed), begun.user_code),
    ):
        with pytest.raises(PermissionDenied):
            run(decide)


def test_a_decision_is_final(store: Store) -> None:
    begun = begin(store)
    run(store.devices.decide(store.person(), begun.user_code, "deny"))
    with pytest.raises(NotFound):
        approve(store, begun)


def test_an_approval_dies_with_the_standing_of_who_gave_it(store: Store) -> None:
    for change in ({"epoch": 7}, {"disabled_at": 1.0}):
        begun = begin(store)
        approve(store, begun)
        store.change_user(ADA, **change)
        with pytest.raises(AccessDenied):
            run(store.devices.poll(begun.device_code))
        store.change_user(ADA, disabled_at=None)


def test_codes_cannot_be_guessed_through_a_person(store: Store) -> None:
    begun = begin(store)
    person = store.person()
    for wrong in ("BBBB-BBBB", "", "' OR 1=1--", "x" * 1000, "%"):
        with pytest.raises(NotFound):
            run(store.devices.decide(person, wrong, "approve"))
    with pytest.raises(Busy) as caught:
        approve(store, begun)
    assert caught.value.problem()["retry_after"] == 900
    approve(store, begun, BEN)  # another person is not kept from their work
    store.later(901)
    with pytest.raises(NotFound):
        approve(store, begun)


def test_user_codes_are_unambiguous_and_forgiving(store: Store) -> None:
    begun = begin(store)
    assert set(begun.user_code) <= set(ALPHABET)
    assert not set(ALPHABET) & set("AEIOU01I")
    typed = f" {begun.shown[:4].lower()} – {begun.shown[5:]} "
    assert run(store.devices.look(store.person(), typed))
    assert begun.device_code not in repr(begun)


def test_waiting_logins_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(20):
        begin(store)
    with pytest.raises(Busy):
        begin(store)
    begin(store, address="198.51.100.2")
    monkeypatch.setattr("uait_server_ext.identity.devices.MAX_WAITING", 21)
    with pytest.raises(Busy):
        begin(store, address="198.51.100.3")
    store.later(600)
    begin(store)
    assert store.count(device_codes) == 1
