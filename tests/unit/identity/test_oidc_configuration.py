"""What an administrator writes about identity providers, and where client secrets are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from uait_server_ext.errors import InvalidInput
from uait_server_ext.identity.oidc.configuration import (
    ProviderConfig,
    read_client_secrets,
    read_providers,
)

TENANT = "11111111-2222-3333-4444-555555555555"
OTHER = "22222222-2222-3333-4444-555555555555"
OIDC = {"id": "corp", "name": "Corp", "issuer": "https://id.example.org", "client_id": "c"}
ENTRA = {"id": "ms", "name": "MS", "kind": "entra", "client_id": "c", "tenants": [TENANT]}


def read(entry: dict[str, Any]) -> ProviderConfig:
    return read_providers([entry])[0]


def test_presets() -> None:
    google = read({"id": "g", "name": "Google", "kind": "google", "client_id": "c"})
    assert google.issuer == "https://accounts.google.com"
    github = read({"id": "gh", "name": "GitHub", "kind": "github", "client_id": "c"})
    assert github.scopes == ("read:user", "user:email")
    one = read(ENTRA)
    assert one.issuer == f"https://login.microsoftonline.com/{TENANT}/v2.0"
    assert one.owns(one.issuer)
    two = read(ENTRA | {"tenants": [TENANT, OTHER]})
    assert two.owns(f"https://login.microsoftonline.com/{OTHER}/v2.0")
    assert not two.owns("https://login.microsoftonline.com/x/v2.0")


@pytest.mark.parametrize(
    "entry",
    [
        OIDC | {"issuer": "http://id.example.org"},
        OIDC | {"issuer": "http://id.example.org", "allow_insecure": True},
        OIDC | {"issuer": "http://127.0.0.1:1"},
        OIDC | {"issuer": "https://user@id.example.org"},
        OIDC | {"issuer": "https://id.example.org\\@evil.example"},
        OIDC | {"issuer": ""},
        OIDC | {"issuer": "https://x/{tenantid}"},
        OIDC | {"id": "../x"},
        OIDC | {"client_secret": "in plain text"},
        OIDC | {"client_secret_ref": "in plain text"},
        OIDC | {"scopes": ["email"]},
        OIDC | {"scopes": ["openid email"]},
        OIDC | {"algorithms": ["HS256"]},
        OIDC | {"algorithms": ["none"]},
        OIDC | {"auto_create": "admin"},
        OIDC | {"auto_create": "emperor"},
        OIDC | {"tenants": [TENANT]},
        OIDC | {"email_domains": ["@example.org"]},
        OIDC | {"kind": "google", "issuer": "", "auto_create": "viewer"},
        ENTRA | {"tenants": []},
        ENTRA | {"tenants": ["common"]},
    ],
)
def test_unsafe_configuration_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="oidc_providers") as caught:
        read(entry)
    assert "in plain text" not in caught.value.detail


def test_two_of_the_same_are_refused() -> None:
    for twice in (OIDC | {"issuer": "https://other.example.org"}, OIDC | {"id": "other"}):
        with pytest.raises(InvalidInput, match="Two identity providers"):
            read_providers([OIDC, twice])


def test_secrets_are_read_once_and_scrubbed(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("from a file\n")
    providers = read_providers(
        [
            OIDC | {"client_secret_ref": "env:CORP_SECRET"},
            OIDC | {"id": "b", "issuer": "https://b.example", "client_secret_ref": f"file:{file}"},
            OIDC | {"id": "c", "issuer": "https://c.example", "client_secret_ref": "sealed"},
            OIDC | {"id": "d", "issuer": "https://d.example"},
        ]
    )
    environment = {"CORP_SECRET": "from the environment", "PATH": "/bin"}
    secrets = read_client_secrets(providers, environment)
    assert secrets == {"corp": "from the environment", "b": "from a file"}
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize("reference", ["env:NOT_THERE", "file:/not/there", "env:EMPTY"])
def test_missing_secret_is_named(reference: str) -> None:
    with pytest.raises(InvalidInput, match="corp"):
        read_client_secrets(
            read_providers([OIDC | {"client_secret_ref": reference}]), {"EMPTY": " "}
        )
