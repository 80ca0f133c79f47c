"""Cases 18 to 31: login through identity providers, against one that does everything wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import select

from tests.security.evil_idp import (
    CLIENT_ID,
    CLIENT_SECRET,
    OTHER_TENANT,
    TENANT,
    EvilProvider,
    Json,
    jwk,
)
from tests.security.oidc_logins import BASE_URL, Browser, World, world
from uait_server_ext.errors import (
    Conflict,
    FlowInvalid,
    LoginFailed,
    PermissionDenied,
    ProviderUnavailable,
    UaitError,
)
from uait_server_ext.identity.oidc import outgoing
from uait_server_ext.identity.tables import external_accounts, users


@pytest.fixture(scope="module")
def running() -> Iterator[EvilProvider]:
    provider = EvilProvider().start()
    yield provider
    provider.stop()


@pytest.fixture
def evil(running: EvilProvider) -> EvilProvider:
    running.reset()
    return running


@pytest.fixture
def there(evil: EvilProvider, tmp_path: Path) -> Iterator[World]:
    common = {"client_id": CLIENT_ID, "client_secret_ref": "env:X", "allow_insecure": True}
    providers = [
        common | {"id": "evil", "name": "Evil", "issuer": evil.url, "auto_create": "viewer"},
        common
        | {"id": "closed", "name": "Closed", "issuer": evil.url.replace("127.0.0.1", "localhost")},
        common
        | {
            "id": "github",
            "name": "GitHub",
            "kind": "github",
            "issuer": f"{evil.url}/login/oauth",
            "auto_create": "viewer",
            "email_domains": ["example.org"],
        },
        common
        | {
            "id": "entra",
            "name": "Entra",
            "kind": "entra",
            "issuer": f"{evil.url}/{{tenantid}}/v2.0",
            "tenants": [TENANT, "22222222-2222-3333-4444-555555555555"],
            "auto_create": "viewer",
        },
    ]
    secrets = dict.fromkeys(("evil", "closed", "github", "entra"), CLIENT_SECRET)
    with world(tmp_path, providers, secrets) as made:
        yield made


def log_in(there: World, evil: EvilProvider, provider: str = "evil") -> str:
    """Log in through a provider and return the user's name."""
    return there.who(there.finish(provider, evil.authorize(there.begin(provider))))


def refused(there: World, evil: EvilProvider, provider: str = "evil") -> UaitError:
    """Try to log in; return the refusal, which must leave nothing behind but an audit event."""
    before = there.usernames()
    query = evil.authorize(there.begin(provider))
    with pytest.raises(UaitError) as caught:
        there.finish(provider, query)
    assert there.usernames() == before
    assert there.events.all[-1].outcome in ("refused", "failed")
    for secret in (CLIENT_SECRET, query["code"], query["state"]):
        assert secret not in caught.value.detail
        assert secret not in there.events.all[-1].model_dump_json()
    return caught.value


def reason(error: UaitError) -> tuple[int, str]:
    return error.status, error.extensions["reason"]


def test_018_callback_with_unknown_state_is_refused(there: World, evil: EvilProvider) -> None:
    there.begin("evil")
    for state in (None, "", "st_unknown", "x" * 5000):
        with pytest.raises(FlowInvalid) as caught:
            there.finish("evil", {"code": "c", **({} if state is None else {"state": state})})
        assert caught.value.status == 400
    assert evil.token_requests == []


def test_018_state_older_than_ten_minutes_is_refused(there: World, evil: EvilProvider) -> None:
    query = evil.authorize(there.begin("evil"))
    there.late = 601
    with pytest.raises(FlowInvalid):
        there.finish("evil", query)


def test_019_callback_replayed_is_refused(there: World, evil: EvilProvider) -> None:
    query = evil.authorize(there.begin("evil"))
    there.finish("evil", query)
    with pytest.raises(FlowInvalid) as caught:
        there.finish("evil", query)
    assert caught.value.status == 400
    assert len(evil.token_requests) == 1


def test_019_callback_of_a_failed_login_is_used_up_too(there: World, evil: EvilProvider) -> None:
    query = evil.authorize(there.begin("evil"))
    with pytest.raises(LoginFailed):
        there.finish("evil", query | {"error": "access_denied"})
    with pytest.raises(FlowInvalid):
        there.finish("evil", query)


def test_020_state_of_another_browser_is_refused(there: World, evil: EvilProvider) -> None:
    ada, eve = Browser(), Browser()
    query = evil.authorize(there.begin("evil", eve))
    there.begin("evil", ada)
    for other in (ada, Browser()):
        with pytest.raises(FlowInvalid) as caught:
            there.finish("evil", query, other)
        assert caught.value.status == 400
    assert evil.token_requests == []


def test_020_two_tabs_of_one_browser_can_log_in(there: World, evil: EvilProvider) -> None:
    first, second = there.begin("evil"), there.begin("evil")
    assert there.who(there.finish("evil", evil.authorize(second))) == "grace"
    assert there.who(there.finish("evil", evil.authorize(first))) == "grace"


def test_020_flow_is_not_finished_at_another_provider(there: World, evil: EvilProvider) -> None:
    query = evil.authorize(there.begin("evil"))
    with pytest.raises(FlowInvalid):
        there.finish("github", query)


def test_021_issuer_of_another_provider_is_refused(there: World, evil: EvilProvider) -> None:
    evil.does.callback = lambda query: query | {"iss": "https://accounts.example.net"}
    assert reason(refused(there, evil)) == (400, "issuer")
    assert evil.token_requests == []


def test_021_missing_issuer_is_refused_where_the_provider_sends_one(
    there: World, evil: EvilProvider
) -> None:
    evil.does.discovery = lambda d: d | {"authorization_response_iss_parameter_supported": True}
    assert reason(refused(there, evil)) == (400, "issuer")
    evil.does.callback = lambda query: query | {"iss": evil.url}
    assert log_in(there, evil) == "grace"


def unsigned(claims: Json, headers: Json) -> str:
    return jwt.encode(claims, "", algorithm="none", headers=headers)


SIGNATURES: dict[str, Callable[[EvilProvider], Callable[[Json, Json], str]]] = {
    "none": lambda evil: unsigned,
    "client-secret": lambda evil: (
        lambda claims, headers: jwt.encode(claims, CLIENT_SECRET, algorithm="HS256")
    ),
    "public-key-as-secret": lambda evil: (
        lambda claims, headers: hs256_with_public_key(evil, claims)
    ),
    "unknown-kid": lambda evil: lambda claims, headers: evil.sign(claims, {"kid": "other"}),
    "foreign-key": lambda evil: (
        lambda claims, headers: jwt.encode(
            claims, evil.other_rsa, algorithm="RS256", headers={"kid": "rsa"}
        )
    ),
    "own-jwk": lambda evil: (
        lambda claims, headers: jwt.encode(
            claims,
            evil.other_rsa,
            algorithm="RS256",
            headers={"kid": "rsa", "jwk": jwk(evil.other_rsa.public_key(), "rsa")},
        )
    ),
    "algorithm-not-listed": lambda evil: (
        lambda claims, headers: evil.sign(claims, {"alg": "RS512"})
    ),
    "access-token": lambda evil: lambda claims, headers: evil.sign(claims, {"typ": "at+jwt"}),
    "crit": lambda evil: lambda claims, headers: evil.sign(claims, {"crit": ["x"], "x": 1}),
    "ambiguous-kid": lambda evil: lambda claims, headers: evil.sign(claims, {"kid": "twice"}),
    "garbage": lambda evil: lambda claims, headers: "a.b.c",
    "huge": lambda evil: lambda claims, headers: evil.sign(claims | {"x": "y" * 70_000}, headers),
}


def hs256_with_public_key(evil: EvilProvider, claims: Json) -> str:
    """Sign with the published key as if it were a shared secret; PyJWT itself would refuse."""
    import hmac
    from base64 import urlsafe_b64encode

    def segment(data: bytes) -> str:
        return urlsafe_b64encode(data).rstrip(b"=").decode()

    pem = evil.rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head = segment(json.dumps({"alg": "HS256", "kid": "rsa"}).encode())
    body = f"{head}.{segment(json.dumps(claims).encode())}"
    return f"{body}.{segment(hmac.digest(pem, body.encode(), 'sha256'))}"


@pytest.mark.parametrize("case", SIGNATURES)
def test_022_id_token_with_a_bad_signature_is_refused(
    there: World, evil: EvilProvider, case: str
) -> None:
    twice = jwk(evil.rsa.public_key(), "twice")
    evil.does.keys = lambda keys: [*keys, twice, twice]
    evil.does.sign = SIGNATURES[case](evil)
    error = refused(there, evil)
    assert error.status == 400
    assert error.extensions["reason"] in ("algorithm", "key", "signature", "token", "type")


def test_022_shared_keys_of_the_key_set_never_count(there: World, evil: EvilProvider) -> None:
    shared = {"kty": "oct", "kid": "rsa", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTMy"}
    evil.does.keys = lambda keys: [shared]
    assert reason(refused(there, evil)) == (400, "keys")


CLAIMS: dict[str, Callable[[Json], Json]] = {
    "expired": lambda c: c | {"exp": time.time() - 61},
    "no-exp": lambda c: without(c, "exp"),
    "exp-string": lambda c: c | {"exp": "9999999999"},
    "exp-infinite": lambda c: c | {"exp": float("inf")},
    "exp-bool": lambda c: c | {"exp": True},
    "not-yet": lambda c: c | {"nbf": time.time() + 3600},
    "nbf-string": lambda c: c | {"nbf": "1"},
    "issued-later": lambda c: c | {"iat": time.time() + 3600},
    "issued-long-ago": lambda c: c | {"iat": time.time() - 3600},
    "no-iat": lambda c: without(c, "iat"),
    "no-sub": lambda c: without(c, "sub"),
    "empty-sub": lambda c: c | {"sub": ""},
    "other-issuer": lambda c: c | {"iss": "https://accounts.example.net"},
    "issuer-slash": lambda c: c | {"iss": c["iss"] + "/"},
    "no-issuer": lambda c: without(c, "iss"),
}


def without(claims: Json, name: str) -> Json:
    return {key: value for key, value in claims.items() if key != name}


@pytest.mark.parametrize("case", CLAIMS)
def test_022_id_token_with_bad_claims_is_refused(
    there: World, evil: EvilProvider, case: str
) -> None:
    evil.does.claims = CLAIMS[case]
    assert refused(there, evil).status == 400


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
def test_022_good_id_tokens_are_taken(there: World, evil: EvilProvider, algorithm: str) -> None:
    kid = {"ES256": "ec", "EdDSA": "ed"}.get(algorithm, "rsa")
    evil.does.headers = {"alg": algorithm, "kid": kid}
    assert log_in(there, evil) == "grace"


def test_022_unknown_kid_fetches_the_keys_at_most_once_a_minute(
    there: World, evil: EvilProvider
) -> None:
    log_in(there, evil)
    for _ in range(3):
        evil.does.headers = {"kid": "new"}
        assert reason(refused(there, evil)) == (400, "key")
    assert evil.seen.count("/keys") == 1
    there.late = 61
    evil.does.keys = lambda keys: [*keys, jwk(evil.rsa.public_key(), "new")]
    evil.does.claims = lambda c: c | {"iat": time.time() + 61}
    assert log_in(there, evil) == "grace"
    assert evil.seen.count("/keys") == 2


@pytest.mark.parametrize(
    "change",
    [
        {"aud": "other-client"},
        {"aud": ["other-client"]},
        {"aud": []},
        {"aud": None},
        {"aud": [CLIENT_ID, "other-client"]},
        {"aud": [CLIENT_ID, "other-client"], "azp": "other-client"},
        {"aud": CLIENT_ID, "azp": "other-client"},
    ],
)
def test_023_id_token_of_another_client_is_refused(
    there: World, evil: EvilProvider, change: Json
) -> None:
    evil.does.claims = lambda claims: claims | change
    assert reason(refused(there, evil)) == (400, "audience")


@pytest.mark.parametrize("nonce", [None, "", "wrong", 5])
def test_024_nonce_missing_or_wrong_is_refused(
    there: World, evil: EvilProvider, nonce: Any
) -> None:
    evil.does.claims = lambda c: without(c, "nonce") if nonce is None else c | {"nonce": nonce}
    assert reason(refused(there, evil)) == (400, "nonce")


def test_024_id_token_of_another_login_is_refused(there: World, evil: EvilProvider) -> None:
    stolen: list[Json] = []

    def keep(claims: Json) -> Json:
        stolen.append(claims)
        return stolen[0]

    evil.does.claims = keep
    log_in(there, evil)
    assert reason(refused(there, evil)) == (400, "nonce")


@pytest.mark.parametrize("issuer", ["https://accounts.example.net", "", None, ["x"]])
def test_025_discovery_document_of_another_issuer_is_refused(
    there: World, evil: EvilProvider, issuer: Any
) -> None:
    evil.does.discovery = lambda document: document | {"issuer": issuer}
    with pytest.raises(LoginFailed) as caught:
        there.begin("evil")
    assert reason(caught.value) == (400, "issuer")


@pytest.mark.parametrize(
    "change",
    [
        {"token_endpoint": "http://169.254.169.254/token"},
        {"jwks_uri": "file:///etc/passwd"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"token_endpoint": None},
        {"userinfo_endpoint": "http://user@127.0.0.1/"},
        {"code_challenge_methods_supported": ["plain"]},
    ],
)
def test_025_discovery_document_with_unsafe_addresses_is_refused(
    there: World, evil: EvilProvider, change: Json
) -> None:
    evil.does.discovery = lambda document: document | change
    with pytest.raises(LoginFailed):
        there.begin("evil")


def test_026_equal_email_never_links(there: World, evil: EvilProvider) -> None:
    there.user("grace", "admin", email="Grace@example.org")
    assert reason(refused(there, evil)) == (403, "email-in-use")
    evil.does.claims = lambda claims: claims | {"email_verified": False}
    assert log_in(there, evil) == "grace2"
    assert there.linked() == [("subject-1", "grace2")]
    emails = there.database.read_now(
        lambda c: c.scalars(users.select().with_only_columns(users.c.email)).all()
    )
    assert sorted(filter(None, emails)) == ["Grace@example.org"]


@pytest.mark.parametrize("verified", ["true", 1, None, False])
def test_026_email_counts_only_where_it_is_verified(
    there: World, evil: EvilProvider, verified: Any
) -> None:
    evil.does.claims = lambda claims: claims | {"email_verified": verified}
    log_in(there, evil)
    emails = there.database.read_now(
        lambda c: c.scalars(users.select().with_only_columns(users.c.email)).all()
    )
    assert [email for email in emails if email] == []


def test_026_unknown_account_is_refused_where_no_users_are_made(
    there: World, evil: EvilProvider
) -> None:
    evil.does.discovery = lambda d: json.loads(json.dumps(d).replace("127.0.0.1", "localhost"))
    evil.does.claims = lambda c: c | {"iss": evil.url.replace("127.0.0.1", "localhost")}
    assert reason(refused(there, evil, "closed")) == (403, "unknown-account")


def test_026_user_information_of_another_subject_is_refused(
    there: World, evil: EvilProvider
) -> None:
    evil.does.claims = lambda claims: without(without(claims, "email"), "email_verified")
    evil.does.userinfo = lambda document: document | {"sub": "victim"}
    assert reason(refused(there, evil)) == (400, "userinfo")


def begin_link(there: World, user: str, provider: str = "evil") -> tuple[str, Any]:
    """Let a user, logged in with a password, begin to link an account."""
    _, session = there.session(user)
    begun = there.run(
        there.logins.begin_link(provider, there.browser.place(), there.principal(user, session))
    )
    there.browser.binding = begun.binding
    return begun.url, session


def test_026_account_is_linked_by_proof_of_both(there: World, evil: EvilProvider) -> None:
    ada = there.user("ada")
    url, _ = begin_link(there, ada)
    finished = there.finish("evil", evil.authorize(url))
    assert finished.purpose == "link"
    assert finished.location == f"{BASE_URL}uait/account"
    assert there.linked() == [("subject-1", "ada")]
    assert log_in(there, evil) == "ada"


def test_026_account_of_another_user_is_not_linked(there: World, evil: EvilProvider) -> None:
    log_in(there, evil)
    url, _ = begin_link(there, there.user("ada"))
    with pytest.raises(Conflict):
        there.finish("evil", evil.authorize(url))
    assert there.linked() == [("subject-1", "grace")]


def test_026_link_needs_the_session_that_began_it(there: World, evil: EvilProvider) -> None:
    ada = there.user("ada")
    url, session = begin_link(there, ada)
    there.run(there.identity.sessions.end(ada, session.id))
    with pytest.raises(PermissionDenied):
        there.finish("evil", evil.authorize(url))
    assert there.linked() == []


def test_026_account_of_a_provider_that_is_gone_is_no_way_to_log_in(
    there: World, evil: EvilProvider
) -> None:
    log_in(there, evil)
    grace = there.database.read_now(lambda c: c.scalar(select(external_accounts.c.user_id)))
    assert isinstance(grace, str)
    there.database.write_now(
        lambda c: c.execute(
            external_accounts.insert().values(
                issuer="https://gone.example", subject="1", user_id=grace, label="x", linked_at=1
            )
        )
    )
    _, session = there.session(grace)
    principal = there.principal(grace, session)
    with pytest.raises(Conflict):
        there.run(there.logins.unlink(principal, "evil", "203.0.113.7"))
    assert len(there.linked()) == 2


def test_027_github_account_is_its_number_and_not_its_name(
    there: World, evil: EvilProvider
) -> None:
    evil.does.github_emails = [
        {"email": "root@example.org", "verified": False, "primary": True},
        {"email": "mallory@example.org", "verified": True, "primary": False},
    ]
    assert log_in_github(there, evil) == "mallory"
    evil.does.github_user = {"id": 4711, "login": "root", "name": "root"}
    assert log_in_github(there, evil) == "mallory"
    evil.does.github_user = {"id": 4712, "login": "mallory"}
    evil.does.github_emails = [{"email": "m2@example.org", "verified": True, "primary": True}]
    assert log_in_github(there, evil) == "mallory2"
    assert sorted(there.linked()) == [("4711", "mallory"), ("4712", "mallory2")]


def log_in_github(there: World, evil: EvilProvider) -> str:
    return log_in(there, evil, "github")


@pytest.mark.parametrize("user", [{}, {"id": "4711"}, {"id": True}, {"id": None}, [], {"id": -1}])
def test_027_github_answer_without_a_number_is_refused(
    there: World, evil: EvilProvider, user: Any
) -> None:
    evil.does.github_user = user
    assert reason(refused(there, evil, "github")) == (400, "subject")


@pytest.mark.parametrize(
    "emails",
    [
        [],
        {"message": "Not Found"},
        [{"email": "m@example.org", "verified": False}],
        [{"email": "m@example.org.evil.net", "verified": True}],
        [{"email": "m@example.org@evil.net", "verified": True}],
        [{"email": "m@sub.example.org", "verified": True}],
        [{"email": "example.org", "verified": True}],
    ],
)
def test_027_new_github_user_needs_a_verified_email_of_the_domain(
    there: World, evil: EvilProvider, emails: Any
) -> None:
    evil.does.github_emails = emails
    assert reason(refused(there, evil, "github")) == (403, "unknown-account")


def entra_claims(claims: Json) -> Json:
    return without(claims, "email") | {"tid": TENANT, "oid": "object-1", "email": "x@y.z"}


def test_028_entra_token_of_another_tenant_is_refused(there: World, evil: EvilProvider) -> None:
    evil.tenant_template = True
    for tenant in (OTHER_TENANT, None, ["x"]):
        evil.does.claims = lambda claims, tenant=tenant: entra_claims(claims) | {"tid": tenant}  # type: ignore[misc]
        assert reason(refused(there, evil, "entra")) == (403, "tenant")
    evil.does.claims = lambda claims: (
        entra_claims(claims) | {"iss": claims["iss"].replace(TENANT, OTHER_TENANT)}
    )
    assert reason(refused(there, evil, "entra")) == (400, "issuer")


def test_028_entra_account_is_tenant_and_object(there: World, evil: EvilProvider) -> None:
    evil.tenant_template = True
    evil.does.claims = entra_claims
    there.user("victim", email="x@y.z")
    assert log_in(there, evil, "entra") == "grace"
    assert there.linked() == [(f"{TENANT}/object-1", "grace")]
    evil.does.claims = lambda claims: without(entra_claims(claims), "oid")
    assert reason(refused(there, evil, "entra")) == (400, "subject")


def test_029_code_is_exchanged_with_the_verifier_only(there: World, evil: EvilProvider) -> None:
    url = there.begin("evil")
    asked = parse_qs(urlsplit(url).query)
    assert asked["code_challenge_method"] == ["S256"]
    assert asked["response_type"] == ["code"]
    assert len(asked["code_challenge"][0]) == 43
    query = evil.authorize(url)
    evil.codes[query["code"]]["code_challenge"] = "A" * 43
    with pytest.raises(LoginFailed) as caught:
        there.finish("evil", query)
    assert reason(caught.value) == (400, "code")
    assert len(evil.token_requests[0]["code_verifier"]) == 43


def test_029_verifier_and_nonce_are_not_at_rest(there: World, evil: EvilProvider) -> None:
    query = evil.authorize(there.begin("evil"))
    content = b"".join(path.read_bytes() for path in there_files(there))
    nonce = evil.codes[query["code"]]["nonce"]
    there.finish("evil", query)
    verifier = evil.token_requests[0]["code_verifier"]
    for secret in (nonce, verifier, query["state"], there.browser.binding or "-"):
        assert secret.encode() not in content


def there_files(there: World) -> list[Path]:
    database = there.database.url.database
    assert database
    return [path for path in Path(database).parent.iterdir() if path.is_file()]


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "/\\evil.example",
        "https:evil.example",
        "https://evil.example/",
        "///evil.example",
        "%2f%2fevil.example",
        "javascript:alert(1)",
        "/lab7//evil.example/../..",
        "/elsewhere",
        "\t//evil.example",
        None,
    ],
)
def test_030_browser_is_sent_to_this_server_only(
    there: World, evil: EvilProvider, target: str | None
) -> None:
    finished = there.finish("evil", evil.authorize(there.begin("evil", next_url=target)))
    assert urlsplit(finished.location).netloc == ""
    assert finished.location.startswith(BASE_URL)
    assert "evil" not in finished.location or finished.location.startswith("/lab7/")


def test_030_local_next_is_followed(there: World, evil: EvilProvider) -> None:
    url = there.begin("evil", next_url="/lab7/lab/tree/a.ipynb?x=1")
    finished = there.finish("evil", evil.authorize(url))
    assert finished.location == "/lab7/lab/tree/a.ipynb?x=1"


FAULTS: dict[str, Callable[[EvilProvider, str], None]] = {
    "error": lambda evil, path: evil.does.status.update({path: 503}),
    "missing": lambda evil, path: evil.does.status.update({path: 404}),
    "huge": lambda evil, path: evil.does.raw.update({path: b'"' + b"x" * (30 << 20) + b'"'}),
    "not-json": lambda evil, path: evil.does.raw.update({path: b"<html>"}),
    "deep": lambda evil, path: evil.does.raw.update({path: b"[" * 500_000}),
    "not-utf8": lambda evil, path: evil.does.raw.update({path: b'{"a": "\xff\xfe"}'}),
    "compressed": lambda evil, path: (
        evil.does.headers_of.update({path: {"Content-Encoding": "gzip"}}),
        evil.does.raw.update({path: b"\x1f\x8b"}),
    )[0],
    "elsewhere": lambda evil, path: (
        evil.does.status.update({path: 302}),
        evil.does.headers_of.update({path: {"Location": "http://169.254.169.254/"}}),
    )[0],
}


@pytest.mark.parametrize("path", ["openid-configuration", "keys", "token", "userinfo"])
@pytest.mark.parametrize("fault", FAULTS)
def test_031_failing_provider_is_a_clear_error_in_time(
    there: World, evil: EvilProvider, fault: str, path: str
) -> None:
    evil.does.claims = lambda claims: without(claims, "email")
    FAULTS[fault](evil, path)
    before = time.monotonic()
    with pytest.raises(ProviderUnavailable) as caught:
        there.finish("evil", evil.authorize(there.begin("evil")))
    assert time.monotonic() - before < 10
    assert caught.value.status == 503
    assert caught.value.detail.startswith("Evil ")
    evil.reset()
    assert log_in(there, evil, "evil") == "grace"


def test_031_silent_provider_is_a_clear_error_in_time(there: World, evil: EvilProvider) -> None:
    evil.does.wait = {"token": 30}
    before = time.monotonic()
    assert refused(there, evil).status == 503
    assert time.monotonic() - before < 10


def test_031_dripping_provider_is_a_clear_error_in_time(
    there: World, evil: EvilProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outgoing.TOTAL_SECONDS < 10
    monkeypatch.setattr(outgoing, "TOTAL_SECONDS", 1.0)
    evil.does.drip = {"token": 0.2}
    before = time.monotonic()
    assert refused(there, evil).status == 503
    assert time.monotonic() - before < 4


def test_031_provider_that_is_down_is_left_alone_and_tried_again(
    there: World, evil: EvilProvider
) -> None:
    evil.does.status = {"openid-configuration": 500}
    for _ in range(5):
        with pytest.raises(ProviderUnavailable):
            there.begin("evil")
    assert len(evil.seen) == 3
    # Another provider is not touched by that.
    evil.does.github_emails = [{"email": "m@example.org", "verified": True}]
    assert log_in_github(there, evil) == "mallory"
    evil.reset()
    there.late = 31
    evil.does.claims = lambda c: c | {"iat": time.time() + 31}
    assert log_in(there, evil) == "grace"


def test_031_provider_that_does_not_know_our_secret_is_a_clear_error(
    there: World, evil: EvilProvider
) -> None:
    evil.does.token = lambda answer: {"error": "invalid_client"}
    assert reason(refused(there, evil)) == (503, "client")


def test_031_nothing_listens(there: World, evil: EvilProvider, tmp_path: Path) -> None:
    entry = {
        "id": "gone",
        "name": "Gone",
        "issuer": "http://127.0.0.1:9",
        "client_id": CLIENT_ID,
        "allow_insecure": True,
    }
    folder = tmp_path / "gone"
    folder.mkdir()
    with world(folder, [entry], {}) as other, pytest.raises(ProviderUnavailable):
        other.begin("gone")


def test_049_disabled_user_is_refused(there: World, evil: EvilProvider) -> None:
    log_in(there, evil)
    there.database.write_now(
        lambda c: c.execute(users.update().where(users.c.username == "grace").values(disabled_at=1))
    )
    assert reason(refused(there, evil)) == (403, "disabled")
