"""`uait users` on a database, as whoever operates the machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyotp
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from tests.unit.identity.people import PASSWORD, migrated, opened, run
from uait_server_ext.commands.users import app
from uait_server_ext.errors import Conflict, InvalidInput, NotFound, UaitError
from uait_server_ext.identity import enrolment, login
from uait_server_ext.identity.principal import ROLES, Principal
from uait_server_ext.identity.service import Identity, IdentitySettings
from uait_server_ext.services import Foundation
from uait_server_ext.vault.models import NewSecret
from uait_server_ext.vault.service import Vault

CLIENT = login.Client("192.0.2.1")
Users = Callable[..., Result]


@pytest.fixture
def users(tmp_path: Path) -> Users:
    shutil.copytree(migrated(), tmp_path / "state")

    def invoke(*words: str, input: str | None = None) -> Result:
        options = ["--data-dir", str(tmp_path / "state")]
        return CliRunner().invoke(app, [*options, *words], input=input, env={"COLUMNS": "200"})

    return invoke


def secret_of(result: Result, page: str) -> str:
    assert result.exit_code == 0, result.output
    start, _, secret = result.output.strip().partition("#secret=")
    assert start == f"http://localhost:8888/uait/{page}"
    return secret


def identity_on(foundation: Foundation) -> Identity:
    return Identity(
        IdentitySettings(),
        database=foundation.database,
        sealer=foundation.sealer,
        audit=foundation.audit,
    )


def enter(folder: Path, secret: str, name: str | None = None) -> login.LoggedIn:
    foundation = opened(folder / "state")
    identity = identity_on(foundation)
    try:
        if name:
            return run(enrolment.accept(identity, secret, name, None, PASSWORD, CLIENT))
        return run(enrolment.reset(identity, secret, PASSWORD, CLIENT))
    finally:
        identity.passwords.close()
        foundation.close()


def test_a_person_is_added_and_chooses_a_password(users: Users, tmp_path: Path) -> None:
    added = users("add", "ada", "--role", "admin", "--display-name", "Ada [bold]L")
    assert enter(tmp_path, secret_of(added, "password-reset")).state.state == "logged-in"
    listed = users("list").output
    assert "ada" in listed
    assert "Ada [bold]L" in listed
    assert enter(tmp_path, secret_of(users("reset", "ADA"), "password-reset"))


def test_an_invitation_is_taken_up(users: Users, tmp_path: Path) -> None:
    invited = users("invite", "--role", "analyst")
    enter(tmp_path, secret_of(invited, "invitation"), name="ben")
    assert "analyst" in users("list").output


def test_people_are_changed_and_deleted(users: Users) -> None:
    users("add", "ada", "--role", "admin")
    users("add", "ben")
    assert users("role", "ben", "analyst", "developer").exit_code == 0
    assert "analyst developer" in users("list").output
    assert users("disable", "ben").output == "ben is disabled\n"
    assert "disabled" in users("list").output
    assert users("enable", "ben").exit_code == 0
    assert users("delete", "ben").exit_code == 1  # not confirmed
    assert users("delete", "ben", "--yes").exit_code == 0
    assert "ben" not in users("list").output


def test_lost_factors_are_removed(users: Users, tmp_path: Path) -> None:
    users("add", "ada", "--role", "admin")
    foundation = opened(tmp_path / "state")
    try:
        factors = identity_on(foundation).factors
        ada = run(identity_on(foundation).directory.user_named("ada")).id
        begun = run(factors.begin_totp(ada, "ada", "phone"))
        run(factors.confirm_totp(ada, begun.id, pyotp.TOTP(begun.secret).now()))
        assert run(factors.methods(ada)) == ("totp", "recovery")
        assert users("remove-factors", "ada").output == "ada has no second factor\n"
        assert run(factors.methods(ada)) == ()
    finally:
        foundation.close()
    assert isinstance(users("remove-factors", "nobody").exception, NotFound)


def test_a_deleted_persons_own_secrets_go_with_them(users: Users, tmp_path: Path) -> None:
    users("add", "ada", "--role", "admin")
    users("add", "ben", "--role", "admin")
    foundation = opened(tmp_path / "state")
    try:
        ben = run(identity_on(foundation).directory.user_named("ben")).id
        vault = Vault(foundation.database, foundation.sealer, foundation.audit)
        holder = Principal(ben, "ben", permissions=ROLES["admin"])
        run(vault.create(holder, NewSecret(name="mine", value=SecretStr("s3cret"))))
        assert users("delete", "ben", "--yes").exit_code == 0
        assert run(vault.secrets(holder)) == []
    finally:
        foundation.close()


def test_a_providers_client_secret_is_sealed(users: Users, tmp_path: Path) -> None:
    done = users("provider-secret", "corp", input="the client's secret\n")
    assert done.exit_code == 0, done.output
    assert "the client's secret" not in done.output
    foundation = opened(tmp_path / "state")
    try:
        sealed = foundation.database.read_now(lambda c: foundation.sealer.get(c, "oidc:corp"))
    finally:
        foundation.close()
    assert sealed == b"the client's secret"


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("disable", "ada"), Conflict),
        (("role", "ada", "viewer"), Conflict),
        (("delete", "ada", "--yes"), Conflict),
        (("disable", "nobody"), NotFound),
        (("add", "ADA"), Conflict),
        (("add", "no name"), InvalidInput),
        (("invite", "--role", "root"), InvalidInput),
    ],
)
def test_what_cannot_be_is_refused(
    users: Users, words: tuple[str, ...], kind: type[UaitError]
) -> None:
    users("add", "ada", "--role", "admin")
    assert isinstance(users(*words).exception, kind)
