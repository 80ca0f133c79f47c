"""The master key: its sources, and that a lost one is never replaced in silence."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import keyring as os_keyring
import keyring.backend
import keyring.backends.fail
import pytest

from tests.unit.vault.state import opened
from uait_server_ext.errors import InvalidInput, Unavailable
from uait_server_ext.storage.key_sources import FileSource, PassphraseSource, open_source
from uait_server_ext.storage.master_key import MasterKey

PASSPHRASE = "nine horses on the moon"


class InMemory(os_keyring.backend.KeyringBackend):
    """A keyring in a dictionary."""

    priority = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password


def seal_one(folder: Path, key: str) -> None:
    with opened(folder, key) as state:
        state.database.write_now(lambda c: state.sealer.put(c, "a", b"value"))


def read_one(folder: Path, key: str) -> bytes:
    with opened(folder, key) as state:
        return state.database.read_now(lambda c: state.sealer.get(c, "a"))


def test_the_file_is_private_and_is_found_again(tmp_path: Path) -> None:
    seal_one(tmp_path, "file:")
    key = tmp_path / "keys" / "master.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert read_one(tmp_path, "file:") == b"value"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    seal_one(tmp_path, "file:")
    (tmp_path / "keys" / "master.key").chmod(mode)
    with pytest.raises(Unavailable, match="chmod 600"):
        read_one(tmp_path, "file:")


def test_a_lost_key_is_not_made_anew(tmp_path: Path) -> None:
    seal_one(tmp_path, "file:")
    key = tmp_path / "keys" / "master.key"
    content = key.read_bytes()
    key.unlink()
    with pytest.raises(Unavailable, match="Restore the key"):
        read_one(tmp_path, "file:")
    assert not key.exists()
    FileSource(key).save(content)
    assert read_one(tmp_path, "file:") == b"value"


def test_another_key_is_not_taken_for_the_lost_one(tmp_path: Path) -> None:
    seal_one(tmp_path / "one", "file:")
    seal_one(tmp_path / "two", "file:")
    (tmp_path / "two/keys/master.key").replace(tmp_path / "one/keys/master.key")
    with pytest.raises(Unavailable, match="Restore the key"):
        read_one(tmp_path / "one", "file:")


@pytest.mark.parametrize("content", [b"", b"{", b'{"keys": ["AA=="]}', b'{"keys": 1}', b"[]"])
def test_a_damaged_file_is_said_to_be_so(tmp_path: Path, content: bytes) -> None:
    seal_one(tmp_path, "file:")
    (tmp_path / "keys" / "master.key").write_bytes(content)
    with pytest.raises(Unavailable):
        read_one(tmp_path, "file:")


def test_a_passphrase_from_the_environment_is_deleted_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UAIT_PASSPHRASE", PASSPHRASE)
    seal_one(tmp_path, "passphrase:")
    assert "UAIT_PASSPHRASE" not in os.environ
    assert PASSPHRASE.encode() not in (tmp_path / "keys" / "master.key").read_bytes()
    monkeypatch.setenv("UAIT_PASSPHRASE", PASSPHRASE)
    assert read_one(tmp_path, "passphrase:") == b"value"
    monkeypatch.setenv("UAIT_PASSPHRASE", "another one entirely")
    with pytest.raises(Unavailable, match="does not open"):
        read_one(tmp_path, "passphrase:")
    with pytest.raises(Unavailable, match="needs its passphrase"):
        read_one(tmp_path, "passphrase:")


def test_a_short_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="12 characters"):
        PassphraseSource(FileSource(tmp_path / "k"), "short").save(b"x")


def test_a_passphrase_file_cannot_ask_for_all_memory(tmp_path: Path) -> None:
    file = FileSource(tmp_path / "k")
    file.save(b'{"memory_kib": 99999999999, "passes": 1, "salt": "AAAA", "sealed": "AAAA"}')
    with pytest.raises(Unavailable, match="no key under a passphrase"):
        PassphraseSource(file, PASSPHRASE).load()


def test_the_os_keyring(tmp_path: Path) -> None:
    before = os_keyring.get_keyring()
    try:
        os_keyring.set_keyring(InMemory())
        seal_one(tmp_path, "keyring:")
        assert read_one(tmp_path, "keyring:") == b"value"
        assert not (tmp_path / "keys").exists() or not any((tmp_path / "keys").iterdir())
        os_keyring.set_keyring(keyring.backends.fail.Keyring())
        with pytest.raises(Unavailable, match="no keyring"):
            read_one(tmp_path, "keyring:")
    finally:
        os_keyring.set_keyring(before)


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "http://x", "vault://host", "vault://host/key", "vault://far/t/k?tls=off"],
)
def test_an_unknown_source_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises((InvalidInput, Unavailable)):
        open_source(url, tmp_path, environ={})


def test_derived_keys_differ_and_the_id_tells_nothing() -> None:
    key = MasterKey(b"k" * 32)
    assert key.derive("a") != key.derive("b")
    assert key.id == MasterKey(b"k" * 32).id != MasterKey(b"l" * 32).id
    assert key.id not in key.wrapping.hex()
