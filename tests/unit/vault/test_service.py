"""The vault without a server: whose secrets, which versions, which record."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from tests.unit.vault.state import ADA, BEN, CANARY, EVE, State, content, new, opened
from uait_server_ext.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    PermissionDenied,
    SealBroken,
)
from uait_server_ext.vault.models import LeaseRequest, NewSecret, SecretContent
from uait_server_ext.vault.store import KEEP_VERSIONS

run = asyncio.run


def test_create_list_set_reveal_delete(state: State) -> None:
    vault = state.vault
    made = run(vault.create(ADA, new(description="for chats")))
    assert (made.name, made.version, made.shared) == ("openai", 1, False)
    assert run(vault.secrets(ADA)) == [made]
    state.time[0] += 1
    changed = run(vault.set(ADA, "openai", content("second")))
    assert (changed.version, changed.updated_at - changed.created_at) == (2, 1)
    assert run(vault.reveal(ADA, made.id)).value == "second"
    assert run(vault.reveal(ADA, "openai", version=1)).value == CANARY
    detail = run(vault.secret(ADA, "openai"))
    assert [(v.version, v.created_by) for v in detail.versions] == [(2, ADA.id), (1, ADA.id)]
    run(vault.delete(ADA, "openai"))
    assert run(vault.secrets(ADA)) == []
    assert state.rows("SELECT name FROM sealed_values WHERE name LIKE 'secret:%'") == []
    assert state.actions() == [
        ("vault.create", "ok"),
        ("vault.set", "ok"),
        ("vault.reveal", "ok"),
        ("vault.reveal", "ok"),
        ("vault.delete", "ok"),
    ]


def test_one_owner_has_one_secret_of_a_name_and_one_s_own_comes_first(state: State) -> None:
    vault = state.vault
    run(vault.create(BEN, new(value="shared", shared=True)))
    assert run(vault.reveal(ADA, "openai")).value == "shared"
    run(vault.create(ADA, new(value="ada's")))
    assert run(vault.reveal(ADA, "openai")).value == "ada's"
    assert run(vault.reveal(BEN, "openai")).value == "shared"
    with pytest.raises(Conflict):
        run(vault.create(ADA, new()))
    with pytest.raises(Conflict):
        run(vault.create(ADA, new(shared=True)))
    assert [s.shared for s in run(vault.secrets(ADA))] == [True, False]


def test_another_s_secret_is_not_there_for_any_verb(state: State) -> None:
    vault = state.vault
    made = run(vault.create(ADA, new()))
    run(vault.set(ADA, made.id, content("second")))
    for key in (made.id, made.name):
        for call in (
            vault.secret(BEN, key),
            vault.reveal(BEN, key),
            vault.reveal(BEN, key, version=1),
            vault.set(BEN, key, content("x")),
            vault.delete(BEN, key),
            vault.destroy(BEN, key, 1),
            vault.lease(BEN, LeaseRequest(secret=key, purpose="p")),
        ):
            with pytest.raises(NotFound):
                run(call)
    assert run(vault.secrets(BEN)) == []
    assert run(vault.reveal(ADA, made.id)).value == "second"


def test_old_versions_are_kept_to_a_limit_and_can_be_destroyed(state: State) -> None:
    vault = state.vault
    run(vault.create(ADA, new(value="v1")))
    for number in range(2, KEEP_VERSIONS + 3):
        run(vault.set(ADA, "openai", content(f"v{number}")))
    kept = [v for v in run(vault.secret(ADA, "openai")).versions if v.destroyed_at is None]
    assert len(kept) == KEEP_VERSIONS
    assert run(vault.reveal(ADA, "openai", version=3)).value == "v3"
    with pytest.raises(NotFound):
        run(vault.reveal(ADA, "openai", version=2))
    run(vault.destroy(ADA, "openai", 3))
    with pytest.raises(NotFound):
        run(vault.reveal(ADA, "openai", version=3))
    with pytest.raises(Conflict):
        run(vault.destroy(ADA, "openai", KEEP_VERSIONS + 2))
    with pytest.raises(NotFound):
        run(vault.destroy(ADA, "openai", 99))


def test_a_lease_is_used_without_being_seen_until_it_ends(state: State) -> None:
    vault = state.vault
    made = run(vault.create(ADA, new()))
    lease = run(vault.lease(ADA, LeaseRequest(secret="openai", purpose="agent: mail", seconds=60)))
    value = run(vault.use(lease.id))
    assert value.get_secret_value() == CANARY
    assert CANARY not in f"{value!r} {value} {lease!r}"
    run(vault.set(ADA, "openai", content("second")))
    assert run(vault.use(lease.id)).get_secret_value() == "second"
    assert [(held.id, held.uses) for held in run(vault.leases(ADA))] == [(lease.id, 2)]
    assert run(vault.leases(BEN)) == []
    state.time[0] += 60
    with pytest.raises(PermissionDenied, match="expired"):
        run(vault.use(lease.id))
    (used,) = state.rows(
        "SELECT principal, target, detail FROM audit_events WHERE action = 'vault.use' LIMIT 1"
    )
    assert used[:2] == (ADA.id, made.id)
    assert "agent: mail" in used[2]
    assert state.actions()[-1] == ("vault.use", "refused")


def test_a_lease_ends_by_revocation_count_deletion_and_its_holder(state: State) -> None:
    vault = state.vault
    run(vault.create(BEN, new(shared=True)))

    def lease(**options: Any) -> str:
        return run(vault.lease(ADA, LeaseRequest(secret="openai", purpose="p", **options))).id

    once = lease(max_uses=1)
    run(vault.use(once))
    with pytest.raises(PermissionDenied, match="as often"):
        run(vault.use(once))

    revoked = lease()
    with pytest.raises(NotFound):
        run(vault.revoke(BEN, revoked))
    run(vault.revoke(ADA, revoked))
    with pytest.raises(PermissionDenied, match="revoked"):
        run(vault.use(revoked))

    held = lease()
    vault.active = lambda _connection, user: user != ADA.id
    with pytest.raises(PermissionDenied, match="may no longer"):
        run(vault.use(held))
    vault.active = lambda _connection, _user: True

    run(vault.delete(BEN, "openai"))
    with pytest.raises(PermissionDenied, match="no such lease"):
        run(vault.use(held))


def test_uses_at_once_do_not_pass_the_limit(state: State) -> None:
    vault = state.vault
    run(vault.create(ADA, new()))
    lease = run(vault.lease(ADA, LeaseRequest(secret="openai", purpose="p", max_uses=5)))

    async def many() -> list[Any]:
        uses = (vault.use(lease.id) for _ in range(12))
        return await asyncio.gather(*uses, return_exceptions=True)

    found = run(many())
    assert sum(isinstance(each, SecretStr) for each in found) == 5
    assert sum(isinstance(each, PermissionDenied) for each in found) == 7


def test_a_deleted_person_s_secrets_and_leases_go(state: State) -> None:
    vault = state.vault
    run(vault.create(ADA, new()))
    run(vault.create(BEN, new("shared", shared=True)))
    lease = run(vault.lease(ADA, LeaseRequest(secret="shared", purpose="p")))
    assert state.database.write_now(lambda c: vault.forget_user(c, ADA.id)) == 1
    with pytest.raises(NotFound):
        run(vault.reveal(ADA, "openai"))
    with pytest.raises(PermissionDenied):
        run(vault.use(lease.id))
    assert run(vault.reveal(BEN, "shared")).value == CANARY


def test_what_decides_who_gets_what_cannot_be_changed_in_the_database(state: State) -> None:
    vault = state.vault
    made = run(vault.create(ADA, new(value="first")))
    run(vault.set(ADA, made.id, content("second")))
    for change, back in (
        ("owner = 'usr_ben'", "owner = 'usr_ada'"),
        ("owner = '*'", "owner = 'usr_ada'"),
        ("current = 1", "current = 2"),
        ("reference = 'kv:a/b#c'", "reference = NULL"),
    ):
        assert state.sql(f"UPDATE secrets SET {change}") == 1
        for who in (ADA, BEN):
            with pytest.raises((SealBroken, NotFound)):
                run(vault.reveal(who, made.id))
        assert state.sql(f"UPDATE secrets SET {back}") == 1
    assert run(vault.reveal(ADA, made.id)).value == "second"
    assert ("vault.broken", "failed") in state.actions()


def test_a_swapped_value_of_two_secrets_is_not_released(state: State) -> None:
    vault = state.vault
    one = run(vault.create(ADA, new("one", "value one")))
    two = run(vault.create(ADA, new("two", "value two")))
    state.sql("UPDATE sealed_values SET name = 'x' WHERE name = :n", n=f"secret:{one.id}:1")
    state.sql(
        "UPDATE sealed_values SET name = :to WHERE name = :n",
        to=f"secret:{one.id}:1",
        n=f"secret:{two.id}:1",
    )
    for secret in (one, two):
        with pytest.raises(SealBroken):
            run(vault.reveal(ADA, secret.id))


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", "sec_abc", "x" * 101, "é", "a\n"])
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        new(name)


@pytest.mark.parametrize("value", ["", "x" * 65_537, "\ud800"])
def test_a_value_that_cannot_be_is_refused_without_being_shown(value: str) -> None:
    with pytest.raises(ValidationError) as caught:
        new(value=value)
    assert "xxxx" not in str(caught.value)


def test_a_value_or_a_reference_not_both_not_neither() -> None:
    with pytest.raises(ValidationError, match="either"):
        SecretContent()
    with pytest.raises(ValidationError, match="either"):
        SecretContent(value=SecretStr("x"), reference="kv:a/b#c")


class Elsewhere:
    """Another vault, in a dictionary."""

    async def read(self, path: str, key: str) -> SecretStr:
        return SecretStr(f"{path} {key}")


def test_a_reference_is_read_through_and_recorded(state: State) -> None:
    vault = state.vault
    reference = NewSecret(name="db", reference="kv:team/db#password")
    with pytest.raises(InvalidInput, match="No other vault"):
        run(vault.create(ADA, reference))
    vault.sources["kv"] = Elsewhere()
    made = run(vault.create(ADA, reference))
    assert made.reference == "kv:team/db#password"
    assert run(vault.reveal(ADA, "db")).value == "team/db password"
    run(vault.set(ADA, "db", content("here now")))
    assert run(vault.reveal(ADA, "db")).value == "here now"


def test_put_is_idempotent(state: State) -> None:
    vault = state.vault
    assert run(vault.put(ADA, new())) == "created"
    assert run(vault.put(ADA, new())) == "unchanged"
    assert run(vault.put(ADA, new(value="other"))) == "changed"
    assert run(vault.secret(ADA, "openai")).version == 2


def test_who_may_only_list_can_do_nothing_else(state: State) -> None:
    vault = state.vault
    run(vault.create(ADA, new(shared=True)))
    assert len(run(vault.secrets(EVE))) == 1
    for call in (
        vault.create(EVE, new()),
        vault.set(EVE, "openai", content("x")),
        vault.delete(EVE, "openai"),
        vault.destroy(EVE, "openai", 1),
        vault.reveal(EVE, "openai"),
        vault.lease(EVE, LeaseRequest(secret="openai", purpose="p")),
        vault.revoke(EVE, "lease"),
        vault.leases(EVE),
        vault.put(EVE, new()),
    ):
        before = len(state.actions())
        with pytest.raises(PermissionDenied, match="needs the permission"):
            run(call)
        assert [outcome for _, outcome in state.actions()[before:]] == ["refused"]


def test_secrets_outlive_the_process(state: State) -> None:
    run(state.vault.create(ADA, new()))
    with opened(state.folder) as again:
        assert run(again.vault.reveal(ADA, "openai")).value == CANARY
