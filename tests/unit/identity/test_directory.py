"""People, roles and groups: who may change whom, and that somebody always administers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.identity.people import PASSWORD, People, people, run
from uait_server_ext.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    PermissionDenied,
    UaitError,
)
from uait_server_ext.identity import names
from uait_server_ext.identity.directory import OPERATOR
from uait_server_ext.identity.principal import ROLES, Principal


@pytest.fixture
def here(tmp_path: Path) -> Iterator[People]:
    with people(tmp_path) as built:
        yield built


@pytest.fixture
def staffed(here: People) -> People:
    here.add("ada", "admin")
    here.add("ben", "developer")
    here.add("cyd", "viewer")
    return here


def test_a_persons_standing_holds_what_their_roles_allow(staffed: People) -> None:
    standing = staffed.read(lambda c: staffed.identity.directory.standing(c, staffed.ids["ben"]))
    assert standing
    assert standing.roles == {"developer"}
    assert standing.permissions == ROLES["developer"]
    assert (standing.epoch, standing.disabled) == (0, False)
    assert staffed.read(lambda c: staffed.identity.directory.standing(c, "usr_x")) is None


@pytest.mark.parametrize("same", ["ADA", "ａｄａ", "Ada"])
def test_names_are_unique_whatever_their_case_and_width(staffed: People, same: str) -> None:
    with pytest.raises(Conflict, match="taken"):
        staffed.add(same)
    found = staffed.read(lambda c: staffed.identity.directory.credentials(c, same))
    assert found
    assert found.user_id == staffed.ids["ada"]


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "a\n", "a\x00", "a\u202e", "a\u200b", "-a", "@a", "a/b", "a" * 65, "ß" * 40],
)
def test_names_that_cannot_be_are_refused(here: People, name: str) -> None:
    with pytest.raises(InvalidInput):
        here.add(name)
    assert here.read(lambda c: here.identity.directory.credentials(c, name)) is None


@pytest.mark.parametrize("shown", ["", "  ", "a\nb", "a\x07", "a\u202eb", "x" * 129, "a\ud800"])
def test_displayed_names_that_cannot_be_are_refused(staffed: People, shown: str) -> None:
    with pytest.raises(InvalidInput):
        run(staffed.identity.directory.rename(staffed.ids["ada"], shown))


@given(st.text(max_size=80))
def test_a_name_that_is_accepted_is_in_its_normal_form(raw: str) -> None:
    try:
        name, key = names.username(raw)
    except InvalidInput:
        assert names.username_key(raw) is None
        return
    assert names.username(name) == (name, key)
    assert names.username_key(name.upper()) == names.username_key(raw.upper())
    assert name.isprintable()
    assert len(key) <= names.USERNAME_CHARACTERS


@given(st.text(max_size=200))
def test_a_claimed_name_is_fit_for_a_log(raw: str) -> None:
    shown = names.claimed(raw)
    assert len(shown) <= 64
    assert not any(ord(c) < 32 or c == "\x7f" for c in shown)


def test_roles_and_disabling_end_everything_the_person_holds(staffed: People) -> None:
    directory, ada, ben = staffed.identity.directory, staffed.principal("ada"), staffed.ids["ben"]
    generation = run(staffed.identity.database.generation("identity"))
    run(directory.change(ada, ben, roles=["viewer"]))
    assert staffed.epoch("ben") == 1
    assert run(staffed.identity.database.generation("identity")) > generation
    run(directory.change(ada, ben, disabled=True))
    assert staffed.epoch("ben") == 2
    run(directory.change(ada, ben, disabled=True))  # nothing new
    run(directory.change(ada, ben, display_name="Benjamin"))
    assert staffed.epoch("ben") == 2
    assert staffed.events("user.roles") == [("ok", ada.id)]
    assert staffed.events("user.disable") == [("ok", ada.id)]


def test_nobody_gives_a_role_beyond_their_own(staffed: People) -> None:
    directory = staffed.identity.directory
    # A key of the administrator that may manage people and little else.
    key = Principal(
        id=staffed.ids["ada"],
        name="key",
        kind="api-key",
        permissions=frozenset({"users:write", *ROLES["viewer"]}),
    )
    with pytest.raises(PermissionDenied, match="role admin"):
        run(directory.change(key, staffed.ids["cyd"], roles=["admin"]))
    with pytest.raises(PermissionDenied, match="role developer"):
        run(directory.add(key, "dan", roles=["developer"]))
    run(directory.add(key, "dan", roles=["viewer"]))


def test_nobody_changes_a_person_who_may_do_more(staffed: People) -> None:
    directory, ada = staffed.identity.directory, staffed.ids["ada"]
    key = Principal(id=ada, name="key", kind="api-key", permissions=frozenset({"users:write"}))
    for refused in (
        directory.change(key, ada, disabled=True),
        directory.change(key, ada, roles=["viewer"]),
        directory.delete(key, ada),
    ):
        with pytest.raises(PermissionDenied, match="more than you"):
            run(refused)


def test_the_actors_rights_are_those_of_the_moment(staffed: People) -> None:
    directory = staffed.identity.directory
    eve = staffed.add("eve", "admin")
    before = staffed.principal("eve")
    run(directory.change(staffed.principal("ada"), eve, roles=["viewer"]))
    with pytest.raises(PermissionDenied):
        run(directory.change(before, eve, roles=["admin"]))
    run(directory.delete(staffed.principal("ada"), eve))
    with pytest.raises(PermissionDenied):
        run(directory.change(before, staffed.ids["cyd"], roles=["admin"]))


def test_the_last_administrator_stays(staffed: People) -> None:
    directory, ada = staffed.identity.directory, staffed.principal("ada")
    for refused in (
        directory.change(ada, ada.id, roles=["viewer"]),
        directory.change(ada, ada.id, disabled=True),
        directory.delete(ada, ada.id),
    ):
        with pytest.raises(Conflict, match="Nobody would be left"):
            run(refused)
    assert staffed.epoch("ada") == 0  # rolled back
    run(directory.change(ada, staffed.ids["ben"], roles=["admin"]))
    run(directory.change(ada, ada.id, roles=["viewer"]))


def test_an_administrator_through_a_group_counts(staffed: People) -> None:
    directory, groups = staffed.identity.directory, staffed.identity.groups
    ada, ben = staffed.principal("ada"), staffed.ids["ben"]
    run(groups.put(ada, "owners", ["admin"], [ben]))
    run(directory.change(ada, ada.id, roles=["viewer"]))
    boss = staffed.principal("ben")
    for refused in (
        groups.put(boss, "owners", ["admin"], []),
        groups.put(boss, "owners", ["viewer"], [ben]),
        groups.delete(boss, "owners"),
        directory.change(boss, ben, disabled=True),
    ):
        with pytest.raises(Conflict, match="Nobody would be left"):
            run(refused)


def test_two_administrators_who_remove_each_other_leave_one(staffed: People) -> None:
    directory = staffed.identity.directory
    admins = [staffed.ids["ada"], *(staffed.add(f"boss{n}", "admin") for n in range(5))]

    async def everyone_disables_everyone() -> list[object]:
        return await asyncio.gather(
            *(directory.change(OPERATOR, one, disabled=True) for one in admins),
            return_exceptions=True,
        )

    outcomes = run(everyone_disables_everyone())
    assert sum(isinstance(one, Conflict) for one in outcomes) == 1
    listed, total = run(directory.users())
    assert total == len(listed) == 8
    assert len([user for user in listed if "admin" in user.roles and not user.disabled]) == 1


def test_groups_give_their_roles_and_end_what_they_take(staffed: People) -> None:
    groups, ada = staffed.identity.groups, staffed.principal("ada")
    ben, cyd = staffed.ids["ben"], staffed.ids["cyd"]
    made = run(groups.put(ada, "lab", ["analyst"], [cyd]))
    assert (made.roles, made.members) == (["analyst"], [cyd])
    assert staffed.principal("cyd").permissions == ROLES["analyst"]
    assert staffed.epoch("cyd") == 1
    run(groups.put(ada, "lab", ["analyst"], [cyd, ben]))
    assert (staffed.epoch("cyd"), staffed.epoch("ben")) == (1, 1)
    run(groups.put(ada, "lab", [], [cyd, ben]))
    assert staffed.principal("cyd").permissions == ROLES["viewer"]
    assert (staffed.epoch("cyd"), staffed.epoch("ben")) == (2, 2)
    assert [group.name for group in run(groups.all())] == ["lab"]
    run(groups.delete(ada, "lab"))
    with pytest.raises(NotFound):
        run(groups.get("lab"))


def test_a_group_is_no_way_up(staffed: People) -> None:
    groups = staffed.identity.groups
    key = Principal(
        id=staffed.ids["ada"],
        name="key",
        kind="api-key",
        permissions=frozenset({"users:write", *ROLES["viewer"]}),
    )
    with pytest.raises(PermissionDenied):
        run(groups.put(key, "lab", ["admin"], [staffed.ids["cyd"]]))
    run(groups.put(staffed.principal("ada"), "owners", ["admin"], []))
    with pytest.raises(PermissionDenied):
        run(groups.put(key, "owners", ["viewer"], [staffed.ids["cyd"]]))
    with pytest.raises(InvalidInput):
        run(groups.put(staffed.principal("ada"), "lab", ["boss"], []))
    with pytest.raises(InvalidInput):
        run(groups.put(staffed.principal("ada"), "lab", [], ["usr_nobody"]))
    with pytest.raises(InvalidInput):
        run(groups.put(staffed.principal("ada"), "No Name", [], []))


def test_deleting_a_person_takes_what_is_theirs(staffed: People) -> None:
    directory, ben = staffed.identity.directory, staffed.ids["ben"]
    run(staffed.identity.sessions.start(ben, 0, ["password"], False, "::1", ""))
    told: list[str] = []
    directory.on_delete.append(lambda connection, user_id: told.append(user_id))
    run(directory.delete(staffed.principal("ada"), ben))
    assert told == [ben]
    assert run(staffed.identity.sessions.list(ben)) == []
    with pytest.raises(NotFound):
        run(directory.user(ben))
    with pytest.raises(NotFound):
        run(directory.delete(staffed.principal("ada"), ben))


def test_no_hash_is_in_what_is_shown(staffed: People) -> None:
    eve = staffed.add("eve", password=PASSWORD)
    found = staffed.read(lambda c: staffed.identity.directory.credentials_of(c, eve))
    assert found.password_hash
    assert found.password_hash not in repr(found)
    assert found.password_hash not in run(staffed.identity.directory.user(eve)).model_dump_json()


def test_errors_name_what_to_do(staffed: People) -> None:
    with pytest.raises(UaitError, match="Roles: viewer"):
        run(staffed.identity.directory.add(OPERATOR, "dan", roles=["root"]))
    with pytest.raises(NotFound, match="'nobody'"):
        run(staffed.identity.directory.user_named("nobody"))
    assert run(staffed.identity.directory.user_named("ADA")).username == "ada"
