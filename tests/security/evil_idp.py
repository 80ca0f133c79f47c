"""An identity provider that can be told to do anything wrong, and the same for GitHub.

A good answer is the default; a test changes one thing. Codes are handed out without a browser by
`authorize`, which reads the address that a login sends the browser to, as a real provider would.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from tornado import httpserver, netutil, web
from tornado.iostream import StreamClosedError

Json = dict[str, Any]
CLIENT_ID = "uait-test"
CLIENT_SECRET = "the client secret of the tests, long enough for HS256"
TENANT = "11111111-2222-3333-4444-555555555555"
OTHER_TENANT = "99999999-2222-3333-4444-555555555555"


@dataclass
class Behaviour:
    """What the provider does; each field is a good answer until a test changes it."""

    discovery: Callable[[Json], Any] = lambda document: document
    keys: Callable[[list[Json]], list[Json]] = lambda keys: keys
    claims: Callable[[Json], Json] = lambda claims: claims
    headers: Json = field(default_factory=dict)
    sign: Callable[[Json, Json], str] | None = None
    userinfo: Callable[[Json], Any] = lambda document: document
    token: Callable[[Json], Any] = lambda answer: answer
    callback: Callable[[Json], Json] = lambda query: query
    github_user: Json = field(default_factory=lambda: {"id": 4711, "login": "mallory"})
    github_emails: Any = field(default_factory=list)
    # Part of a path -> what to do instead of answering: a status, raw bytes, seconds to wait
    # before the answer, or seconds between each of 100 bytes of it.
    status: dict[str, int] = field(default_factory=dict)
    raw: dict[str, bytes] = field(default_factory=dict)
    headers_of: dict[str, dict[str, str]] = field(default_factory=dict)
    wait: dict[str, float] = field(default_factory=dict)
    drip: dict[str, float] = field(default_factory=dict)


class EvilProvider:
    """The provider, in a thread with a loop of its own, on a free port of 127.0.0.1."""

    def __init__(self) -> None:
        self.does = Behaviour()
        self.seen: list[str] = []
        self.token_requests: list[Json] = []
        self.codes: dict[str, Json] = {}
        self.rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.other_rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.ed = ed25519.Ed25519PrivateKey.generate()
        self.tenant_template = False
        self._started: Future[None] = Future()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def start(self) -> EvilProvider:
        self._thread.start()
        self._started.result(10)
        return self

    def stop(self) -> None:
        assert self._loop
        assert self._stop
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def reset(self) -> None:
        """Be good again."""
        self.does = Behaviour()
        self.seen.clear()
        self.token_requests.clear()
        self.codes.clear()
        self.tenant_template = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def issuer(self) -> str:
        return f"{self.url}/{{tenantid}}/v2.0" if self.tenant_template else self.url

    def good_claims(self, request: Json) -> Json:
        """Return the claims of an id_token as they should be."""
        at = int(time.time())
        return {
            "iss": self.issuer.replace("{tenantid}", TENANT),
            "sub": "subject-1",
            "aud": request["client_id"],
            "iat": at,
            "exp": at + 300,
            **({"nonce": request["nonce"]} if "nonce" in request else {}),
            "email": "grace@example.org",
            "email_verified": True,
            "preferred_username": "grace",
            "name": "Grace Hopper",
        }

    def sign(self, claims: Json, headers: Json) -> str:
        """Sign as the header says; by default RS256 with the published key."""
        headers = {"kid": "rsa", "alg": "RS256"} | headers
        algorithm = headers["alg"]
        key: Any = {"ES256": self.ec, "EdDSA": self.ed}.get(algorithm, self.rsa)
        return jwt.encode(claims, key, algorithm=algorithm, headers=headers)

    def jwks(self) -> list[Json]:
        """Return the public keys."""
        return [
            jwk(self.rsa.public_key(), "rsa"),
            jwk(self.ec.public_key(), "ec"),
            jwk(self.ed.public_key(), "ed"),
        ]

    def authorize(self, url: str) -> Json:
        """Do what the provider's page and a willing person do; return the callback's query."""
        parts = urlsplit(url)
        request = dict(parse_qsl(parts.query))
        request["endpoint"] = f"{parts.scheme}://{parts.netloc}{parts.path}"
        code = f"code-{len(self.codes)}"
        self.codes[code] = request
        return self.does.callback({"code": code, "state": request["state"]})

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        routes = [
            (r"(?:/[\w-]+/v2.0)?/.well-known/openid-configuration", Discovery),
            (r"(?:/login/oauth)?/authorize", Authorize),
            (r"/keys", Keys),
            (r"/token|/login/oauth/access_token", Token),
            (r"/userinfo", Userinfo),
            (r"/api/v3/user", GithubUser),
            (r"/api/v3/user/emails", GithubEmails),
        ]
        application = web.Application(
            [(path, handler, {"provider": self}) for path, handler in routes],
            log_function=lambda handler: None,
        )
        server = httpserver.HTTPServer(application)
        sockets = netutil.bind_sockets(0, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        server.add_sockets(sockets)
        self._started.set_result(None)
        await self._stop.wait()
        server.stop()
        await server.close_all_connections()


class Answer(web.RequestHandler):
    """A request, answered well or as the behaviour says."""

    def initialize(self, provider: EvilProvider) -> None:
        self.provider = provider

    async def prepare(self) -> None:
        provider, path = self.provider, self.request.path
        provider.seen.append(path)
        for part, seconds in provider.does.wait.items():
            if part in path:
                await asyncio.sleep(seconds)
        for part, headers in provider.does.headers_of.items():
            if part in path:
                for name, value in headers.items():
                    self.set_header(name, value)
        for part, status in provider.does.status.items():
            if part in path:
                self.set_status(status)
                await self.finish("<html>the provider is not well</html>")
                return
        for part, seconds in provider.does.drip.items():
            if part in path:
                for _ in range(100):
                    self.write(" ")
                    await self.flush()
                    await asyncio.sleep(seconds)
        for part, content in provider.does.raw.items():
            if part in path:
                self.set_header("Content-Type", "application/json")
                with contextlib.suppress(StreamClosedError):
                    await self.finish(content)
                return

    def send(self, document: Any, status: int = 200) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(document))


class Discovery(Answer):
    def get(self) -> None:
        url = self.provider.url
        self.send(
            self.provider.does.discovery(
                {
                    "issuer": self.provider.issuer,
                    "authorization_endpoint": f"{url}/authorize",
                    "token_endpoint": f"{url}/token",
                    "jwks_uri": f"{url}/keys",
                    "userinfo_endpoint": f"{url}/userinfo",
                    "code_challenge_methods_supported": ["S256"],
                }
            )
        )


class Authorize(Answer):
    """The page that a real browser comes to: it consents at once."""

    def get(self) -> None:
        query = self.provider.authorize(self.request.full_url())
        self.redirect(f"{self.get_query_argument('redirect_uri')}?{urlencode(query)}")


class Keys(Answer):
    def get(self) -> None:
        self.send({"keys": self.provider.does.keys(self.provider.jwks())})


class Token(Answer):
    def post(self) -> None:
        sent = {name: self.get_body_argument(name) for name in self.request.body_arguments}
        self.provider.token_requests.append(sent)
        asked = self.provider.codes.pop(sent.get("code", ""), None)
        if asked is None or asked["redirect_uri"] != sent.get("redirect_uri"):
            return self.send({"error": "invalid_grant"}, 400)
        if (
            "code_challenge" in asked
            and challenge(sent.get("code_verifier", "")) != (asked["code_challenge"])
        ):
            return self.send({"error": "invalid_grant", "error_description": "PKCE"}, 400)
        does = self.provider.does
        answer = {"access_token": f"at-{sent['code']}", "token_type": "Bearer", "expires_in": 300}
        if "openid" in asked.get("scope", ""):
            claims = does.claims(self.provider.good_claims(asked))
            answer["id_token"] = (does.sign or self.provider.sign)(claims, dict(does.headers))
        return self.send(does.token(answer))


class Userinfo(Answer):
    def get(self) -> None:
        self.send(
            self.provider.does.userinfo(
                {"sub": "subject-1", "email": "grace@example.org", "email_verified": True}
            )
        )


class GithubUser(Answer):
    def get(self) -> None:
        self.send(self.provider.does.github_user)


class GithubEmails(Answer):
    def get(self) -> None:
        self.send(self.provider.does.github_emails)


def challenge(verifier: str) -> str:
    """Return the S256 challenge of a verifier (RFC 7636)."""
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def jwk(key: Any, kid: str) -> Json:
    """Return a public key as a JWK."""
    kinds: dict[Any, Any] = {
        rsa.RSAPublicKey: jwt.algorithms.RSAAlgorithm,
        ec.EllipticCurvePublicKey: jwt.algorithms.ECAlgorithm,
        ed25519.Ed25519PublicKey: jwt.algorithms.OKPAlgorithm,
    }
    algorithm = next(a for kind, a in kinds.items() if isinstance(key, kind))
    return {**json.loads(algorithm.to_jwk(key)), "kid": kid, "use": "sig"}
