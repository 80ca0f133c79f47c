"""People and what they may do to each other, against a running server: cases 57 to 60."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.security.conftest import Api, IdentityServer, Person, identity_server, user_maker
from tests.security.test_passwords import NEW, RATES, enrol, problem
from uait_server_ext.identity.directory import OPERATOR
from uait_server_ext.identity.principal import ROLES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(
    jupyter_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[IdentityServer]:
    """Run a server whose people these tests may remove."""
    folder = tmp_path_factory.mktemp("people")
    with identity_server(folder, f"--UaitApp.rate_limits={RATES}") as running:
        yield running


@pytest.fixture(scope="module")
def make_user(server: IdentityServer) -> Callable[..., Person]:
    return user_maker(server)


@pytest.fixture
def admin(server: IdentityServer, make_user: Callable[..., Person]) -> Api:
    return server.login(make_user("admin"))


def scoped_key(client: Api, *scope: str) -> str:
    """Make an API key of the person of a browser."""
    answer = client.post("~/me/keys", {"name": "test", "permissions": list(scope)})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["key"])


# 57 -- other people's things


def test_057_what_belongs_to_another_is_not_there(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    ann, eve = server.login(make_user("developer")), server.login(make_user("developer"))
    enrol(ann)
    key = ann.post("~/me/keys", {"name": "ann's", "permissions": ["models:read"]}).json()
    key_id = key["info"]["id"]
    factor = ann.get("~/me/factors").json()["totp"][0]["id"]
    session = ann.get("~/me/sessions").json()["sessions"][0]["id"]
    begun = ann.post("~/me/factors/totp", {"name": "second"}).json()["id"]
    for method, path, body in (
        ("DELETE", f"~/me/sessions/{session}", None),
        ("DELETE", f"~/me/keys/{key_id}", None),
        ("DELETE", f"~/me/factors/{factor}", None),
        ("POST", f"~/me/factors/totp/{begun}/confirm", {"code": "123456"}),
        ("DELETE", f"~/me/devices/{key_id}", None),
        ("DELETE", "~/me/sessions/..%2f..%2fx", None),
    ):
        options: dict[str, Any] = {} if body is None else {"json": body}
        answer = eve.request(method, path, **options)
        assert answer.status_code in (400, 404), (path, answer.text)
        assert key_id not in answer.text.replace(path, "")
    assert ann.get("~/me").status_code == 200
    assert [one["id"] for one in ann.get("~/me/keys").json()["keys"]] == [key_id]
    assert len(ann.get("~/me/factors").json()["totp"]) == 1


def test_057_ids_in_a_body_are_checked_too(server: IdentityServer, admin: Api) -> None:
    body = {"roles": ["viewer"], "members": ["usr_aaaaaaaaaaaaaaaa"]}
    assert admin.put("~/groups/lab", body).status_code == 422
    assert admin.get("~/groups/lab").status_code == 404
    for path in ("~/users/usr_aaaaaaaaaaaaaaaa", "~/users/' OR 1=1--", "~/groups/nobody"):
        assert admin.get(path).status_code == 404


def test_057_who_may_not_manage_people_does_not_see_them(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    ann = make_user("viewer")
    for role in ("viewer", "analyst", "developer"):
        client = server.login(make_user(role))
        for path in ("~/users", f"~/users/{ann.id}", "~/groups", "~/roles"):
            problem(client.get(path), 403, "permission-denied")


# 58 -- mass assignment


@pytest.mark.parametrize(
    "extra",
    [
        {"role": "admin"},
        {"roles": ["admin"]},
        {"is_admin": True},
        {"owner_id": "usr_x"},
        {"permissions": ["users:write"]},
        {"id": "usr_x"},
        {"username": "admin"},
        {"epoch": 0},
        {"email_verified": True},
        {"disabled": False},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_058_nobody_sets_what_is_not_theirs(
    server: IdentityServer, make_user: Callable[..., Person], extra: dict[str, Any]
) -> None:
    client = server.login(make_user("viewer"))
    before = client.get("~/me").json()
    problem(client.patch("~/me", {"display_name": "Changed", **extra}), 422, "invalid-input")
    body = {"current": "x", "new": NEW, **extra}
    problem(client.post("~/me/password", body), 422, "invalid-input")
    assert client.get("~/me").json() == before


def test_058_a_profile_takes_a_name_and_nothing_else(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    client = server.login(make_user("viewer"))
    assert client.patch("~/me", {"display_name": "Ann Ø"}).json()["display_name"] == "Ann Ø"
    for name in ("", "a\r\nb", "a\0", "x" * 129, "a\u202eb"):
        assert client.patch("~/me", {"display_name": name}).status_code in (400, 422)
    assert client.get("~/me").json()["display_name"] == "Ann Ø"


def test_058_an_invitation_gives_its_own_role_only(server: IdentityServer, admin: Api) -> None:
    url = admin.post("~/users", {"role": "viewer"}).json()["url"]
    body = {"secret": url.partition("#secret=")[2], "username": "invited", "password": NEW}
    guest = server.browser()
    for extra in ({"role": "admin"}, {"roles": ["admin"]}):
        problem(guest.post("~/invitation", {**body, **extra}), 422, "invalid-input")
    assert guest.post("~/invitation", body).status_code == 200
    assert guest.get("~/me").json()["roles"] == ["viewer"]


# 59 -- no way up


@pytest.mark.parametrize("role", ["viewer", "analyst", "developer"])
def test_059_nobody_gives_themselves_a_role(
    server: IdentityServer, make_user: Callable[..., Person], role: str
) -> None:
    person = make_user(role)
    client = server.login(person)
    for method, path, body in (
        ("PATCH", f"~/users/{person.id}", {"roles": ["admin"]}),
        ("PUT", "~/groups/owners", {"roles": ["admin"], "members": [person.id]}),
        ("POST", "~/users", {"role": "admin"}),
        ("POST", f"~/users/{person.id}/reset", None),
    ):
        options: dict[str, Any] = {} if body is None else {"json": body}
        problem(client.request(method, path, **options), 403, "permission-denied")
    assert client.get("~/me").json()["roles"] == [role]


def test_059_a_key_does_not_hold_more_than_its_owner(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    client = server.login(make_user("developer"))
    answer = client.post("~/me/keys", {"name": "up", "permissions": ["users:write"]})
    assert answer.status_code == 403, answer.text
    assert client.get("~/me/keys").json()["keys"] == []


def test_059_a_narrow_key_of_an_administrator_is_no_way_up(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    boss, victim = make_user("admin"), make_user("viewer")
    key = server.program(
        scoped_key(server.login(boss), "users:read", "users:write", *sorted(ROLES["viewer"]))
    )
    for method, path, body in (
        ("PATCH", f"~/users/{victim.id}", {"roles": ["admin"]}),
        ("POST", f"~/users/{boss.id}/reset", None),
        ("PATCH", f"~/users/{boss.id}", {"disabled": True}),
        ("PUT", "~/groups/owners", {"roles": ["admin"], "members": [victim.id]}),
        ("POST", "~/users", {"role": "admin"}),
    ):
        options: dict[str, Any] = {} if body is None else {"json": body}
        answer = key.request(method, path, **options)
        # 401 where the operation wants a signed request of a key: refused before anything else.
        assert answer.status_code in (401, 403), (path, answer.text)
    assert key.get(f"~/users/{victim.id}").json()["roles"] == ["viewer"]


# 60 -- the last administrator


def only_administrator(server: IdentityServer, make_user: Callable[..., Person]) -> Person:
    """Make an administrator and take the role from everyone else."""
    kept = make_user("admin")
    directory = server.identity.directory

    async def demote() -> None:
        for user in (await directory.users(0, 1000))[0]:
            if "admin" in user.roles and user.id != kept.id:
                await directory.change(OPERATOR, user.id, roles=["viewer"])

    asyncio.run(demote())
    return kept


def test_060_the_last_administrator_stays(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    last = only_administrator(server, make_user)
    client = server.login(last)
    for method, body in (
        ("PATCH", {"roles": ["viewer"]}),
        ("PATCH", {"roles": []}),
        ("PATCH", {"disabled": True}),
        ("DELETE", None),
    ):
        options: dict[str, Any] = {} if body is None else {"json": body}
        answer = client.request(method, f"~/users/{last.id}", **options)
        problem(answer, 409, "conflict")
    assert client.get("~/me").json()["roles"] == ["admin"]


def test_060_administrators_who_remove_each_other_at_once_leave_one(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    bosses = [only_administrator(server, make_user), *(make_user("admin") for _ in range(3))]
    clients = [server.login(boss) for boss in bosses]

    def disable_the_next(number: int) -> int:
        target = bosses[(number + 1) % len(bosses)]
        answer = clients[number].patch(f"~/users/{target.id}", {"disabled": True})
        return answer.status_code

    with ThreadPoolExecutor(len(bosses)) as pool:
        codes = list(pool.map(disable_the_next, range(len(bosses))))
    assert set(codes) <= {200, 401, 403, 409}
    left = [user for user in administrators(server) if not user.disabled]
    assert left
    assert codes.count(200) == len(bosses) - len(left)


def administrators(server: IdentityServer) -> list[Any]:
    users, _ = asyncio.run(server.identity.directory.users(0, 1000))
    return [user for user in users if "admin" in user.roles]
