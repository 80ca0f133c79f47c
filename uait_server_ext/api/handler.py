"""The one tornado handler that runs an operation.

Authentication is Jupyter's (`prepare`), permission is asked of `identity`, validation is the
declaration's, and every error leaves as a problem document (RFC 9457).
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from http import HTTPStatus
from typing import Any, ClassVar

from jupyter_server.auth.decorator import allow_unauthenticated
from jupyter_server.base.handlers import APIHandler
from jupyter_server.extension.handler import ExtensionHandlerMixin
from pydantic import BaseModel
from tornado import web
from tornado.iostream import StreamClosedError

from uait_server_ext.errors import Busy, MethodNotAllowed, TooLarge, UaitError, problem
from uait_server_ext.identity.jupyter_provider import (
    UaitIdentityProvider,
    require,
    require_fresh,
)
from uait_server_ext.identity.principal import Principal
from uait_server_ext.services import Services

from .exchange import Reply, Request, label
from .idempotency import IdempotencyKeys, idempotency_key, request_digest
from .operation import PUBLIC, Call, Operation, adapter
from .origin import refuse_cross_site
from .parsing import check_content, check_path, parse_query
from .rate import rate_headers, rate_subjects, refusal_headers
from .security_headers import API_HEADERS
from .stream import error_frame, frame, frames, last

MAX_BODY_BYTES = 1 << 20
PROBLEM_JSON = "application/problem+json"


class OperationHandler(ExtensionHandlerMixin, APIHandler):
    """Run the operation declared for the request's method on this path."""

    max_body_bytes: ClassVar[int] = MAX_BODY_BYTES
    closing = ""
    """What ends a stream that went well."""

    def initialize(self, name: str, operations: dict[str, Operation], services: Services) -> None:
        super().initialize(name)
        self.operations = operations
        self.services = services
        self.running: asyncio.Task[None] | None = None
        self.client_gone = False

    @web.authenticated
    async def get(self, **path: str) -> None:
        await self.run(path)

    @web.authenticated
    async def post(self, **path: str) -> None:
        await self.run(path)

    @web.authenticated
    async def put(self, **path: str) -> None:
        await self.run(path)

    @web.authenticated
    async def patch(self, **path: str) -> None:
        await self.run(path)

    @web.authenticated
    async def delete(self, **path: str) -> None:
        await self.run(path)

    async def run(self, path: dict[str, str]) -> None:
        """Run the operation in a task that ends when the client goes away."""
        self.running = asyncio.ensure_future(self.answer(path))
        try:
            await self.running
        except UaitError as error:
            self.fail(error)
        except asyncio.CancelledError:
            if not self.client_gone:
                raise

    async def answer(self, path: dict[str, str]) -> None:
        """Authorise, validate, call, respond."""
        operation = self.operations.get(self.request.method or "")
        if operation is None:
            allowed = ", ".join(sorted(self.operations))
            self.set_header("Allow", allowed)
            raise MethodNotAllowed(f"This path takes {allowed}, not {self.request.method}.")
        request = self.described()
        if "Authorization" not in self.request.headers:
            refuse_cross_site(operation.method, self.request.headers, self.request.host)
        principal = None
        if operation.permission != PUBLIC:
            principal = await require(self, operation.permission)
        await self.count(operation, principal, request.address)
        if principal is not None and operation.sensitive:
            await self.require_proof(principal)
        if len(self.request.body) > self.max_body_bytes:
            raise TooLarge(
                f"The request body has {len(self.request.body):,} bytes; "
                f"the limit is {self.max_body_bytes:,}. Send less."
            )
        check_content(self.request.headers, self.request.body)
        check_path(path)
        query = {
            name: values
            for name, values in parse_query(self.request.query_arguments).items()
            # JupyterLab's time stamp against caches.
            if not name.isdecimal() and not (name == "token" and not self.services.has_identity)
        }
        arguments = operation.arguments(path, query, self.request.body)
        call = Call(principal, self.services, request)
        if operation.streams and self.wants_stream(arguments):
            await self.send_stream(operation.function(call, **arguments))
            return
        key = idempotency_key(operation.method, self.request.headers)
        if key is None or principal is None:
            await self.respond(operation, call, arguments)
        else:
            await self.respond_once(operation, call, arguments, key)

    async def respond_once(
        self, operation: Operation, call: Call, arguments: dict[str, Any], key: str
    ) -> None:
        """Run the operation unless a request with this key has; then answer as that did."""
        keys = IdempotencyKeys((await self.services.foundation()).database)
        principal = call.principal
        # A person's session or token may be renewed between a request and its repetition.
        by_key = principal.kind == "api-key" and principal.credential
        who = by_key or principal.id
        kept = await keys.begin(
            who, key, request_digest(operation.method, self.request.uri or "", self.request.body)
        )
        if kept:
            self.set_status(kept.status)
            self.set_header("Idempotency-Replayed", "true")
            if kept.status == HTTPStatus.NO_CONTENT:
                await self.finish()
            else:
                await self.finish(kept.body, set_content_type=kept.content_type)
            return
        try:
            content = await self.respond(operation, call, arguments)
        except BaseException:
            await asyncio.shield(keys.release(who, key))
            raise
        await keys.keep(
            who,
            key,
            self.get_status(),
            operation.content_type,
            None if operation.secret else content,
        )

    async def respond(self, operation: Operation, call: Call, arguments: dict[str, Any]) -> bytes:
        """Run the operation, send its result and return what was sent."""
        outcome = operation.function(call, **arguments)
        result = await (last(outcome) if operation.streams else outcome)
        self.apply(call.reply)
        if result is None:
            if self.get_status() == HTTPStatus.OK:
                self.set_status(HTTPStatus.NO_CONTENT)
            await self.finish()
            return b""
        if isinstance(result, str):
            content = result.encode()
        elif isinstance(result, bytes):
            content = result
        else:
            content = self.dump(operation, result)
        await self.finish(content, set_content_type=operation.content_type)
        return content

    def set_default_headers(self) -> None:
        """Answers of the API are never a page and never kept by a cache."""
        super().set_default_headers()
        for name, value in API_HEADERS.items():
            self.set_header(name, value)

    async def count(self, operation: Operation, principal: Principal | None, address: str) -> None:
        """Count the request against its user, key and address.

        Raises:
            Busy: one of them is over its limit.
        """
        if self.services.limits is None:
            return
        allowance = await self.services.limits.hit(
            operation.rate, rate_subjects(principal, address)
        )
        for name, value in rate_headers(operation.rate, allowance).items():
            self.set_header(name, value)

    async def require_proof(self, principal: Principal) -> None:
        """Let a sensitive operation pass with a fresh login, or with a signature of an API key."""
        require_fresh(principal)
        if principal.kind == "api-key" and principal.credential:
            from uait_server_ext.identity.signatures import SignedRequest

            request = self.request
            await self.services.identity.signatures.require(
                principal.credential,
                SignedRequest(
                    method=request.method or "",
                    url=request.full_url(),
                    headers=list(request.headers.get_all()),
                    body=request.body,
                ),
            )

    def described(self) -> Request:
        """Return the facts of this request that operations may see."""
        request = self.request
        facts = Request(
            address=request.remote_ip or "",
            user_agent=request.headers.get("User-Agent", "")[:200],
            secure=request.protocol == "https",
            origin=f"{request.protocol}://{request.host}",
            base_url=self.base_url,
            method=request.method or "",
            path=request.path,
            notebook=label(request.headers.get("UAIT-Notebook")),
            run=label(request.headers.get("UAIT-Run")),
        )
        provider = self.identity_provider
        if not isinstance(provider, UaitIdentityProvider):
            return facts
        return replace(
            facts,
            address=provider.address(self),
            origin=provider.origin(self),
            secure=provider.is_secure(self),
            session_secret=provider.session_secret(self),
            binding=provider.binding(self),
        )

    def apply(self, reply: Reply) -> None:
        """Set what the operation asked for besides its content."""
        provider = self.identity_provider
        if isinstance(provider, UaitIdentityProvider):
            if reply.session_secret:
                provider.set_session_cookie(self, reply.session_secret)
            elif reply.session_cleared:
                provider.clear_session_cookie(self)
            if reply.binding:
                provider.set_binding_cookie(self, reply.binding)
        for name, value in reply.headers.items():
            self.set_header(name, value)
        if reply.location:
            self.set_status(HTTPStatus.FOUND)
            self.set_header("Location", reply.location)

    def wants_stream(self, arguments: dict[str, Any]) -> bool:
        """Tell whether a streaming operation is answered as a stream or as its last event."""
        accept = self.request.headers.get("Accept", "*/*")
        return "text/event-stream" in accept or "application/json" not in accept

    async def send_stream(self, events: Any) -> None:
        """Write events as they come; an error after the first bytes becomes the last event."""
        stream = frames(events, self.frame)
        started = False
        self.hold()
        try:
            async for text in stream:
                if not started:
                    self.set_header("Content-Type", "text/event-stream")
                    self.set_header("Cache-Control", "no-store")
                    self.set_header("X-Accel-Buffering", "no")
                    started = True
                self.write(text)
                await self.flush()
        except StreamClosedError:
            return
        except UaitError as error:
            if not started:
                raise
            self.write(self.error_frame(error.problem()))
        except Exception:
            if not started:
                raise
            self.log.exception("%s failed in the middle of its stream", self.request.path)
            self.write(self.error_frame(internal_problem()))
        finally:
            self.release()
            await stream.aclose()  # type: ignore[attr-defined]
        await self.finish(self.closing, set_content_type="text/event-stream")

    def frame(self, event: BaseModel) -> str:
        """Return one event of a stream as text; an empty one is not sent."""
        return frame(event)

    def error_frame(self, problem: dict[str, Any]) -> str:
        """Return a problem document as the last event of a stream that had begun."""
        return error_frame(problem)

    def dump(self, operation: Operation, result: Any) -> bytes:
        """Return an operation's result as JSON."""
        return adapter(operation.response).dump_json(result)

    def hold(self) -> None:
        """Let the stream end when the login that opened it does."""
        provider = self.identity_provider
        if isinstance(provider, UaitIdentityProvider) and self.running:
            provider.hold(self, self.running.cancel)

    def release(self) -> None:
        """Watch the stream's login no longer."""
        provider = self.identity_provider
        if isinstance(provider, UaitIdentityProvider):
            provider.connections.release(self)

    def on_connection_close(self) -> None:
        """Cancel the operation: the client that asked for it has gone."""
        super().on_connection_close()
        self.client_gone = True
        if self.running and not self.running.done():
            self.running.cancel()

    def check_xsrf_cookie(self) -> None:
        """Answer 401 before 403: who is not logged in has no XSRF cookie to be wrong about."""
        # Tornado calls this once before Jupyter has looked for a user: there is nothing to say yet.
        looked = hasattr(self, "_jupyter_current_user")
        if looked and not self.current_user and not self.is_public():
            raise web.HTTPError(HTTPStatus.UNAUTHORIZED)
        super().check_xsrf_cookie()

    def get_login_url(self) -> str:
        """Answer 401 where tornado would redirect a browser to the login page."""
        raise web.HTTPError(HTTPStatus.UNAUTHORIZED)

    def is_public(self) -> bool:
        """Tell whether this handler serves a public operation."""
        return False

    def fail(self, error: UaitError) -> None:
        """Answer with the error's problem document."""
        self.set_status(error.status)
        if error.status == HTTPStatus.UNAUTHORIZED:
            self.set_header("WWW-Authenticate", "Bearer")
        if retry_after := error.extensions.get("retry_after"):
            self.set_header("Retry-After", str(retry_after))
        operation = self.operations.get(self.request.method or "")
        if operation and isinstance(error, Busy):
            for name, value in refusal_headers(operation.rate, error).items():
                self.set_header(name, value)
        self.finish_problem(error.problem())

    def finish_problem(self, document: dict[str, Any]) -> None:
        """Send a problem document; a person whose browser was sent here gets it as a page."""
        mode = self.request.headers.get("Sec-Fetch-Mode")
        if mode is None:  # browsers send it to this machine and over https only
            navigates = self.request.headers.get("Accept", "").startswith("text/html")
        else:
            navigates = mode == "navigate"
        if not (navigates and self.services.has_identity):
            self.finish(json.dumps(document), set_content_type=PROBLEM_JSON)
            return
        from uait_server_ext.identity.jupyter_pages import POLICY, problem_page

        self.set_header("Content-Security-Policy", POLICY)
        page = problem_page(document, self.base_url)
        self.finish(page, set_content_type="text/html; charset=utf-8")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Turn what Jupyter or tornado raised into a problem document."""
        error = (kwargs.get("exc_info") or (None, None, None))[1]
        if status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.set_header("Allow", ", ".join(sorted(self.operations)))
        if status_code == HTTPStatus.UNAUTHORIZED:
            self.set_header("WWW-Authenticate", "Bearer")
            body = problem(
                status_code,
                "unauthenticated",
                "This operation needs a login. Send `Authorization: token …` or log in to "
                "JupyterLab.",
            )
        elif isinstance(error, web.HTTPError) and isinstance(error.__cause__, UaitError):
            body = error.__cause__.problem()
            if retry_after := error.__cause__.extensions.get("retry_after"):
                self.set_header("Retry-After", str(retry_after))
        elif isinstance(error, web.HTTPError) and status_code < 500:
            detail = error.log_message % error.args if error.log_message else ""
            code = "permission-denied" if status_code == HTTPStatus.FORBIDDEN else "bad-request"
            body = problem(status_code, code, detail or HTTPStatus(status_code).description)
        else:
            body = internal_problem()
        self.finish_problem(body)


class PublicOperationHandler(OperationHandler):
    """Run operations of the written public list, which need no login."""

    @allow_unauthenticated
    async def get(self, **path: str) -> None:
        await self.run(path)

    @allow_unauthenticated
    async def post(self, **path: str) -> None:
        await self.run(path)

    def is_public(self) -> bool:
        return True

    def check_xsrf_cookie(self) -> None:
        """Ask for no XSRF token: programs have none, and `refuse_cross_site` keeps sites out."""


def internal_problem() -> dict[str, Any]:
    """Describe an error that is ours, without its text: that is in the server's log."""
    return problem(
        500,
        "internal",
        "The server failed at this request; its log has the reason. Try again, and report it if "
        "it happens again.",
    )
