"""One-time links, and the accounts and passwords that they lead to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from tests.unit.identity.people import CLIENT, PASSWORD, People, people, run
from uait_server_ext.errors import (
    Conflict,
    InvalidInput,
    LinkUnusable,
    NotFound,
    PermissionDenied,
    TooManyAttempts,
    Unauthenticated,
    WeakPassword,
)
from uait_server_ext.identity import enrolment, login
from uait_server_ext.identity.directory import OPERATOR
from uait_server_ext.identity.links import LIFETIME_SECONDS
from uait_server_ext.identity.principal import ROLES, Principal
from uait_server_ext.identity.tables import links

OTHER = "eleven nervous walruses"
Outcome = Coroutine[Any, Any, login.LoggedIn]


@pytest.fixture
def here(tmp_path: Path) -> Iterator[People]:
    with people(tmp_path) as built:
        yield built


@pytest.fixture
def staffed(here: People) -> People:
    here.add("ada", "admin", password=PASSWORD)
    here.add("ben", "viewer", password=PASSWORD)
    return here


def set_up(here: People, secret: str, password: str = PASSWORD, name: str = "ada") -> Outcome:
    return enrolment.set_up(here.identity, secret, name, None, password, CLIENT)


def accept(here: People, secret: str, name: str, password: str = PASSWORD) -> Outcome:
    return enrolment.accept(here.identity, secret, name, None, password, CLIENT)


def log_in(here: People, name: str, password: str = PASSWORD) -> Outcome:
    return login.log_in(here.identity, name, password, CLIENT)


def invite(here: People, role: str = "viewer") -> str:
    actor = here.principal("ada")
    return run(enrolment.invite(here.identity, actor, role, CLIENT.address)).secret


def reset_link(here: People, name: str = "ben") -> str:
    return run(enrolment.reset_link(here.identity, OPERATOR, here.ids[name], CLIENT.address)).secret


def test_the_first_person_administers(here: People) -> None:
    link = run(here.identity.links.first_setup())
    assert link
    assert link.secret not in repr(link)
    assert link.url("http://host/base/") == f"http://host/base/uait/setup#secret={link.secret}"
    entered = run(set_up(here, link.secret))
    assert entered.state.state == "logged-in"
    session = run(here.identity.sessions.find(entered.secret))
    assert session
    user = run(here.identity.directory.user(session.user_id))
    assert (user.username, user.roles) == ("ada", ["admin"])
    assert run(here.identity.links.first_setup()) is None
    with pytest.raises(PermissionDenied, match="works once"):
        run(set_up(here, link.secret, name="eve"))
    assert here.events("setup") == [("refused", "eve")]


def test_a_new_set_up_link_voids_the_one_before(here: People) -> None:
    first, second = run(here.identity.links.first_setup()), run(here.identity.links.first_setup())
    assert first
    assert second
    with pytest.raises(PermissionDenied):
        run(set_up(here, first.secret))
    run(set_up(here, second.secret))


def test_a_set_up_link_is_worthless_once_there_is_somebody(here: People) -> None:
    link = run(here.identity.links.first_setup())
    assert link
    here.add("ada", "admin")
    with pytest.raises(PermissionDenied):
        run(set_up(here, link.secret, name="eve"))
    assert run(here.identity.directory.users())[1] == 1


def test_of_two_set_ups_at_once_one_wins(here: People) -> None:
    link = run(here.identity.links.first_setup())
    assert link

    async def both() -> list[object]:
        tries = (set_up(here, link.secret, name=f"boss{n}") for n in range(6))
        return await asyncio.gather(*tries, return_exceptions=True)

    assert sum(isinstance(one, login.LoggedIn) for one in run(both())) == 1
    assert run(here.identity.directory.users())[1] == 1


def test_a_weak_password_does_not_cost_the_link(here: People) -> None:
    link = run(here.identity.links.first_setup())
    assert link
    for weak in ("short", "password", "uait2026"):
        with pytest.raises(WeakPassword):
            run(set_up(here, link.secret, weak))
    with pytest.raises(InvalidInput):
        run(set_up(here, link.secret, name="no name"))
    run(set_up(here, link.secret))


def test_an_invitation_makes_one_account_with_its_role(staffed: People) -> None:
    secret = invite(staffed, "analyst")
    entered = run(accept(staffed, secret, "cyd"))
    assert entered.state.state == "logged-in"
    cyd = run(staffed.identity.directory.user_named("cyd"))
    assert cyd.roles == ["analyst"]
    with pytest.raises(LinkUnusable) as caught:
        run(accept(staffed, secret, "dan"))
    assert caught.value.status == 400
    run(log_in(staffed, "cyd"))


def test_a_taken_name_does_not_cost_the_invitation(staffed: People) -> None:
    secret = invite(staffed)
    with pytest.raises(Conflict):
        run(accept(staffed, secret, "BEN"))
    run(accept(staffed, secret, "cyd"))


def test_nobody_invites_to_more_than_they_hold(staffed: People) -> None:
    key = Principal(
        id=staffed.ids["ada"],
        name="key",
        kind="api-key",
        permissions=frozenset({"users:write", *ROLES["viewer"]}),
    )
    with pytest.raises(PermissionDenied):
        run(enrolment.invite(staffed.identity, key, "admin", CLIENT.address))
    with pytest.raises(InvalidInput):
        run(enrolment.invite(staffed.identity, staffed.principal("ada"), "boss", CLIENT.address))


def test_an_invitation_dies_with_the_inviters_right(staffed: People) -> None:
    directory = staffed.identity.directory
    staffed.add("eve", "admin")
    eve = staffed.principal("eve")
    for_admin = run(enrolment.invite(staffed.identity, eve, "admin", "::1")).secret
    run(directory.change(staffed.principal("ada"), eve.id, roles=["viewer"]))
    with pytest.raises(LinkUnusable):
        run(accept(staffed, for_admin, "mallory"))
    with pytest.raises(NotFound):
        run(directory.user_named("mallory"))


@pytest.mark.parametrize("purpose", ["invitation", "reset"])
def test_links_expire(staffed: People, purpose: Any) -> None:
    secret = invite(staffed) if purpose == "invitation" else reset_link(staffed)
    staffed.later(LIFETIME_SECONDS[purpose])
    if purpose == "invitation":
        tried = accept(staffed, secret, "cyd")
    else:
        tried = enrolment.reset(staffed.identity, secret, OTHER, CLIENT)
    with pytest.raises(LinkUnusable):
        run(tried)


def test_a_link_serves_its_own_purpose_only(staffed: People) -> None:
    invitation, reset = invite(staffed), reset_link(staffed)
    with pytest.raises(LinkUnusable):
        run(enrolment.reset(staffed.identity, invitation, OTHER, CLIENT))
    with pytest.raises(LinkUnusable):
        run(accept(staffed, reset, "cyd"))
    with pytest.raises(PermissionDenied):
        run(set_up(staffed, reset))


def test_a_reset_sets_the_password_and_ends_every_login(staffed: People) -> None:
    before = run(log_in(staffed, "ben"))
    first, second = reset_link(staffed), reset_link(staffed)
    with pytest.raises(LinkUnusable):
        run(enrolment.reset(staffed.identity, first, OTHER, CLIENT))  # replaced
    entered = run(enrolment.reset(staffed.identity, second, OTHER, CLIENT))
    assert run(staffed.identity.sessions.find(before.secret)) is None
    assert run(staffed.identity.sessions.find(entered.secret))
    assert staffed.epoch("ben") == 1
    with pytest.raises(LinkUnusable):
        run(enrolment.reset(staffed.identity, second, OTHER, CLIENT))
    with pytest.raises(Unauthenticated):
        run(log_in(staffed, "ben"))
    run(log_in(staffed, "ben", OTHER))


def test_of_two_resets_at_once_one_wins(staffed: People) -> None:
    secret = reset_link(staffed)

    async def both() -> list[object]:
        tries = (
            enrolment.reset(staffed.identity, secret, f"{OTHER} {n}", CLIENT) for n in range(6)
        )
        return await asyncio.gather(*tries, return_exceptions=True)

    assert sum(isinstance(one, login.LoggedIn) for one in run(both())) == 1


def test_a_reset_is_no_way_up(staffed: People) -> None:
    key = Principal(
        id=staffed.ids["ada"],
        name="key",
        kind="api-key",
        permissions=frozenset({"users:write", *ROLES["viewer"]}),
    )
    with pytest.raises(PermissionDenied):
        run(enrolment.reset_link(staffed.identity, key, staffed.ids["ada"], "::1"))
    run(enrolment.reset_link(staffed.identity, key, staffed.ids["ben"], "::1"))
    with pytest.raises(NotFound):
        run(enrolment.reset_link(staffed.identity, OPERATOR, "usr_nobody", "::1"))


def test_a_disabled_person_has_no_reset(staffed: People) -> None:
    secret = reset_link(staffed)
    run(staffed.identity.directory.change(OPERATOR, staffed.ids["ben"], disabled=True))
    with pytest.raises(LinkUnusable):
        run(enrolment.reset(staffed.identity, secret, OTHER, CLIENT))
    with pytest.raises(Conflict):
        reset_link(staffed)


def test_guessing_links_is_limited(staffed: People) -> None:
    async def guess(number: int) -> None:
        await enrolment.reset(staffed.identity, f"link_{number}", OTHER, CLIENT)

    for number in range(30):
        with pytest.raises(LinkUnusable):
            run(guess(number))
    with pytest.raises(TooManyAttempts):
        run(guess(31))


def test_links_are_stored_hashed_and_forgotten_when_old(staffed: People) -> None:
    secret = invite(staffed)
    stored = staffed.read(lambda c: c.scalars(select(links.c.secret_sha256)).all())
    assert secret not in stored
    staffed.later(LIFETIME_SECONDS["invitation"])
    invite(staffed)
    assert staffed.read(lambda c: c.scalar(select(func.count()).select_from(links))) == 1


# Logging in.


@pytest.mark.parametrize("name", ["ben", "nobody", "", "no name", "x" * 10_000, "\ud800"])
def test_a_failed_login_tells_nothing(staffed: People, name: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        run(log_in(staffed, name, "wrong password"))
    assert caught.value.detail == "The user name or the password is wrong. Try again."


def test_a_failed_login_is_noted_bounded_and_without_the_password(staffed: People) -> None:
    for name in ("ben", "x" * 10_000, "a\r\nforged"):
        with pytest.raises(Unauthenticated):
            run(log_in(staffed, name, "hunter2-secret"))
    assert staffed.events("login.password") == [
        ("refused", staffed.ids["ben"]),
        ("refused", "x" * 64),
        ("refused", "a??forged"),
    ]


@pytest.mark.parametrize("state", ["disabled", "no password"])
def test_who_may_not_log_in_looks_like_a_wrong_password(staffed: People, state: str) -> None:
    if state == "disabled":
        run(staffed.identity.directory.change(OPERATOR, staffed.ids["ben"], disabled=True))
    else:
        staffed.add("cyd", "viewer")
    with pytest.raises(Unauthenticated, match="user name or the password"):
        run(log_in(staffed, "ben" if state == "disabled" else "cyd"))


def test_a_login_replaces_the_browsers_session(staffed: People) -> None:
    first = run(log_in(staffed, "ben"))
    again = login.Client("192.0.2.1", "pytest", first.secret, first.binding)
    second = run(login.log_in(staffed.identity, "ada", PASSWORD, again))
    assert run(staffed.identity.sessions.find(first.secret)) is None
    assert second.binding == first.binding
    planted = login.Client("192.0.2.1", "pytest", "chosen by somebody", "chosen too")
    third = run(login.log_in(staffed.identity, "ada", PASSWORD, planted))
    assert third.secret != "chosen by somebody"
    assert third.binding != "chosen too"


def test_a_right_password_is_hashed_anew_at_new_costs(staffed: People) -> None:
    staffed.identity.passwords.passes = 2
    del staffed.identity.passwords._hasher
    run(log_in(staffed, "ben"))
    found = staffed.read(lambda c: staffed.identity.directory.credentials(c, "ben"))
    assert found
    assert found.password_hash
    assert "t=2" in found.password_hash
    assert staffed.epoch("ben") == 0
    run(log_in(staffed, "ben"))


def session_of(here: People, name: str) -> tuple[Principal, login.Client]:
    entered = run(log_in(here, name))
    session = run(here.identity.sessions.find(entered.secret))
    assert session
    standing = here.principal(name)
    principal = Principal(
        id=standing.id, name=name, permissions=standing.permissions, credential=session.id
    )
    return principal, login.Client("192.0.2.1", "pytest", entered.secret, entered.binding)


def test_a_password_change_keeps_only_this_login(staffed: People) -> None:
    other = run(log_in(staffed, "ben"))
    link = reset_link(staffed)
    ben, browser = session_of(staffed, "ben")
    change = login.change_password
    with pytest.raises(PermissionDenied, match="current password"):
        run(change(staffed.identity, ben, "wrong", OTHER, browser))
    with pytest.raises(WeakPassword):
        run(change(staffed.identity, ben, PASSWORD, "ben12345", browser))
    assert staffed.epoch("ben") == 0
    fresh = run(change(staffed.identity, ben, PASSWORD, OTHER, browser))
    assert fresh
    session = run(staffed.identity.sessions.find(fresh))
    assert session
    assert session.epoch == staffed.epoch("ben") == 1
    assert [one.id for one in run(staffed.identity.sessions.list(ben.id))] == [session.id]
    assert run(staffed.identity.sessions.find(other.secret)) is None
    with pytest.raises(LinkUnusable):
        run(enrolment.reset(staffed.identity, link, OTHER, CLIENT))
    run(log_in(staffed, "ben", OTHER))


def test_guessing_the_current_password_is_limited(staffed: People) -> None:
    ben, browser = session_of(staffed, "ben")
    for _ in range(5):
        with pytest.raises(PermissionDenied):
            run(login.change_password(staffed.identity, ben, "wrong", OTHER, browser))
    with pytest.raises(TooManyAttempts):
        run(login.change_password(staffed.identity, ben, PASSWORD, OTHER, browser))


@pytest.mark.parametrize("kind", ["api-key", "kernel", "agent", "service"])
def test_only_a_person_proves_or_changes(staffed: People, kind: Any) -> None:
    program = Principal(id=staffed.ids["ben"], name="key", kind=kind, credential="key_1")
    refused: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        lambda: login.change_password(staffed.identity, program, PASSWORD, OTHER, CLIENT),
        lambda: login.reauthenticate(staffed.identity, program, CLIENT, password=PASSWORD),
    ]
    for attempt in refused:
        with pytest.raises(PermissionDenied):
            run(attempt())


def test_a_fresh_proof_gives_a_fresh_session(staffed: People) -> None:
    ben, browser = session_of(staffed, "ben")
    staffed.later(3600)
    with pytest.raises(Unauthenticated):
        run(login.reauthenticate(staffed.identity, ben, browser, password="wrong"))
    with pytest.raises(InvalidInput, match="`password`"):
        run(login.reauthenticate(staffed.identity, ben, browser, code="123456"))
    fresh = run(login.reauthenticate(staffed.identity, ben, browser, password=PASSWORD))
    session = run(staffed.identity.sessions.find(fresh))
    assert session
    assert session.authenticated_at == staffed.time
    assert browser.session_secret
    assert run(staffed.identity.sessions.find(browser.session_secret)) is None


def test_a_second_factor_makes_the_session_wait(staffed: People) -> None:
    import pyotp

    ben = staffed.ids["ben"]
    begun = run(staffed.identity.factors.begin_totp(ben, "ben", "phone"))
    app = pyotp.TOTP(begun.secret)
    run(staffed.identity.factors.confirm_totp(ben, begun.id, app.at(staffed.time)))
    staffed.later(60)
    ways = (
        lambda: log_in(staffed, "ben"),
        lambda: enrolment.reset(staffed.identity, reset_link(staffed), OTHER, CLIENT),
    )
    for enter in ways:
        entered = run(enter())
        assert entered.state.state == "second-factor"
        assert set(entered.state.methods) == {"totp", "recovery"}
        session = run(staffed.identity.sessions.find(entered.secret))
        assert session
        assert session.pending
    me, browser = session_of_after_code(staffed, app)
    with pytest.raises(InvalidInput, match="`code`"):
        run(login.reauthenticate(staffed.identity, me, browser, password=OTHER))
    staffed.later(60)
    code = app.at(staffed.time)
    run(login.reauthenticate(staffed.identity, me, browser, code=code))


def session_of_after_code(here: People, app: Any) -> tuple[Principal, login.Client]:
    entered = run(log_in(here, "ben", OTHER))
    here.later(60)
    run(here.identity.factors.check_code(here.ids["ben"], app.at(here.time)))
    secret, session = run(here.identity.sessions.upgrade(entered.secret, ["totp"]))
    principal = Principal(id=session.user_id, name="ben", credential=session.id)
    return principal, login.Client("192.0.2.1", "pytest", secret, entered.binding)


def test_a_role_that_needs_a_second_factor_says_so(tmp_path: Path) -> None:
    with people(tmp_path, second_factor_required_roles=("admin",)) as here:
        here.add("ada", "admin", password=PASSWORD)
        here.add("ben", "viewer", password=PASSWORD)
        assert run(log_in(here, "ada")).state.must_enrol
        assert not run(log_in(here, "ben")).state.must_enrol


def test_logging_out_ends_the_session(staffed: People) -> None:
    ben, browser = session_of(staffed, "ben")
    run(login.log_out(staffed.identity, ben, browser))
    assert browser.session_secret
    assert run(staffed.identity.sessions.find(browser.session_secret)) is None
    assert staffed.events("logout") == [("ok", ben.id)]
