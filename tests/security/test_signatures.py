"""Case 91: an API key alone does nothing sensitive; a request that it has signed does, once."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from uait_server_ext.identity.signatures import sign

from .conftest import Api, IdentityServer, Person


@dataclass
class Signer:
    """A program with an API key that signs."""

    client: Api
    key_id: str
    secret: bytes = field(repr=False)

    def send(
        self,
        method: str = "PUT",
        path: str = "groups/signed",
        body: Any = None,
        headers: dict[str, str] | None = None,
        **signing: Any,
    ) -> httpx.Response:
        """Send a request; what is signed is the same unless `signing` says otherwise."""
        content = json.dumps(body if body is not None else {"roles": [], "members": []}).encode()
        url = f"{self.client.server.url}uait/v1/{path}"
        if headers is None:
            facts: dict[str, Any] = {"method": method, "url": url, "body": content}
            key = {"key_id": self.key_id, "secret": self.secret}
            headers = sign(**facts | key | signing)
        return self.client.request(
            method,
            f"~/{path}",
            content=content,
            headers={"Content-Type": "application/json", **headers},
        )


@pytest.fixture(scope="module")
def admin(server: IdentityServer, people: dict[str, Person]) -> Api:
    return server.login(people["admin"])


def make(server: IdentityServer, admin: Api, signing: bool = True) -> Signer:
    wish = {
        "name": "automation",
        "permissions": ["users:read", "users:write"],
        "signing": signing,
    }
    made = admin.post("~/me/keys", wish)
    assert made.status_code == 200, made.text
    key = made.json()
    return Signer(
        server.program(key["key"]),
        key["info"]["id"],
        (key.get("signing_secret") or "none").encode(),
    )


@pytest.fixture(scope="module")
def signer(server: IdentityServer, admin: Api) -> Signer:
    return make(server, admin)


def refused(answer: httpx.Response) -> None:
    assert answer.status_code == 401, (answer.status_code, answer.text)
    assert answer.json()["code"] == "signature-refused"


def test_091_a_signed_request_is_carried_out(signer: Signer) -> None:
    assert signer.send().status_code in (200, 204)
    # What is not sensitive needs no signature.
    assert signer.client.get("~/groups").status_code == 200


def test_091_no_signature(signer: Signer) -> None:
    refused(signer.send(headers={}))
    for method, path in (("POST", "users"), ("DELETE", "groups/signed")):
        refused(signer.send(method, path, headers={}))


def test_091_changed_method(signer: Signer) -> None:
    url = f"{signer.client.server.url}uait/v1/groups/signed"
    headers = sign("GET", url, b"{}", key_id=signer.key_id, secret=signer.secret)
    refused(signer.send("DELETE", body={}, headers=headers))


def test_091_changed_url(signer: Signer) -> None:
    other = f"{signer.client.server.url}uait/v1/groups/other"
    refused(signer.send(url=other))
    refused(signer.send(url="https://elsewhere.example/uait/v1/groups/signed"))
    refused(signer.send(path="groups/signed?x=1", url=f"{other.replace('other', 'signed')}"))


def test_091_changed_body(signer: Signer) -> None:
    url = f"{signer.client.server.url}uait/v1/groups/signed"
    harmless = b'{"roles": [], "members": []}'
    headers = sign("PUT", url, harmless, key_id=signer.key_id, secret=signer.secret)
    promoted = {"roles": ["admin"], "members": []}
    refused(signer.send(body=promoted, headers=headers))
    # With a digest of the new body, which the signature does not cover.
    digest = sign("PUT", url, json.dumps(promoted).encode(), key_id="x", secret=b"x" * 32)
    headers["Content-Digest"] = digest["Content-Digest"]
    refused(signer.send(body=promoted, headers=headers))


def test_091_older_than_a_minute_or_from_the_future(signer: Signer) -> None:
    refused(signer.send(clock=lambda: time.time() - 70))
    refused(signer.send(clock=lambda: time.time() + 70))
    assert signer.send(clock=lambda: time.time() - 30).status_code in (200, 204)


def test_091_a_nonce_used_twice(signer: Signer) -> None:
    url = f"{signer.client.server.url}uait/v1/groups/signed"
    body: dict[str, list[str]] = {"roles": [], "members": []}
    headers = sign(
        "PUT", url, json.dumps(body).encode(), key_id=signer.key_id, secret=signer.secret
    )
    assert signer.send(body=body, headers=headers).status_code in (200, 204)
    refused(signer.send(body=body, headers=headers))
    # The same nonce in a request that was signed anew.
    nonce = "n" * 32
    assert signer.send(nonce=nonce).status_code in (200, 204)
    refused(signer.send(nonce=nonce))


def test_091_another_keys_signature(server: IdentityServer, admin: Api, signer: Signer) -> None:
    other = make(server, admin)
    refused(signer.send(key_id=other.key_id, secret=other.secret))
    refused(signer.send(secret=other.secret))
    refused(signer.send(key_id=other.key_id))


@pytest.mark.parametrize(
    "components",
    [
        ("@method", "content-digest"),
        ("@target-uri", "content-digest"),
        ("@method", "@path", "content-digest"),
        ("@method", "@authority", "@query", "content-digest"),
    ],
    ids=str,
)
def test_091_fewer_covered_components(signer: Signer, components: tuple[str, ...]) -> None:
    refused(signer.send(components=components))


def test_091_a_key_without_a_signing_secret(server: IdentityServer, admin: Api) -> None:
    plain = make(server, admin, signing=False)
    refused(plain.send())
    refused(plain.send(headers={}))


def test_091_a_signature_does_not_make_up_for_a_permission(
    server: IdentityServer, people: dict[str, Person]
) -> None:
    viewer = server.login(people["viewer"])
    wish = {"name": "k", "permissions": ["account:read"], "signing": True}
    key = viewer.post("~/me/keys", wish).json()
    weak = Signer(server.program(key["key"]), key["info"]["id"], key["signing_secret"].encode())
    assert weak.send().status_code == 403


def test_091_a_revoked_key_signs_nothing(server: IdentityServer, admin: Api) -> None:
    short = make(server, admin)
    assert short.send().status_code in (200, 204)
    assert admin.delete(f"~/me/keys/{short.key_id}").status_code == 204
    assert short.send().status_code == 401


def test_091_a_refused_request_has_changed_nothing(signer: Signer) -> None:
    refused(signer.send("DELETE", "groups/signed", headers={}))
    assert "signed" in signer.client.get("~/groups").text
