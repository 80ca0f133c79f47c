"""The one tornado handler that runs an operation.

Authentication is Jupyter's (`prepare`), permission is asked of `identity`, validation is the
declaration's, and every error leaves as a problem document (RFC 9457).
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

from jupyter_server.auth.decorator import allow_unauthenticated
from jupyter_server.base.handlers import APIHandler
from jupyter_server.extension.handler import ExtensionHandlerMixin
from tornado import web
from tornado.iostream import StreamClosedError

from uait_server_ext.errors import MethodNotAllowed, TooLarge, UaitError, problem
from uait_server_ext.identity.jupyter_provider import require
from uait_server_ext.services import Services

from .operation import PUBLIC, Call, Operation, adapter
from .stream import error_frame, frames, last

MAX_BODY_BYTES = 1 << 20
PROBLEM_JSON = "application/problem+json"


class OperationHandler(ExtensionHandlerMixin, APIHandler):
    """Run the operation declared for the request's method on this path."""

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
        principal = None
        if operation.permission != PUBLIC:
            principal = await require(self, operation.permission)
        if len(self.request.body) > MAX_BODY_BYTES:
            raise TooLarge(
                f"The request body has {len(self.request.body):,} bytes; "
                f"the limit is {MAX_BODY_BYTES:,}. Send less."
            )
        query = {
            name: [value.decode("utf-8", "replace") for value in values]
            for name, values in self.request.query_arguments.items()
            # Jupyter's own: a way to log in, and JupyterLab's time stamp against caches.
            if name != "token" and not name.isdecimal()
        }
        arguments = operation.arguments(path, query, self.request.body)
        outcome = operation.function(Call(principal, self.services), **arguments)
        if operation.streams and self.wants_stream():
            await self.send_stream(outcome)
            return
        result = await (last(outcome) if operation.streams else outcome)
        if result is None:
            self.set_status(HTTPStatus.NO_CONTENT)
            await self.finish()
            return
        self.set_header("Content-Type", "application/json")
        await self.finish(
            adapter(operation.response).dump_json(result), set_content_type="application/json"
        )

    def wants_stream(self) -> bool:
        """Tell whether a streaming operation is answered as a stream or as its last event."""
        accept = self.request.headers.get("Accept", "*/*")
        return "text/event-stream" in accept or "application/json" not in accept

    async def send_stream(self, events: Any) -> None:
        """Write events as they come; an error after the first bytes becomes the last event."""
        stream = frames(events)
        started = False
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
            self.write(error_frame(error.problem()))
        except Exception:
            if not started:
                raise
            self.log.exception("%s failed in the middle of its stream", self.request.path)
            self.write(error_frame(internal_problem()))
        finally:
            await stream.aclose()  # type: ignore[attr-defined]
        await self.finish(set_content_type="text/event-stream")

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
        self.finish(json.dumps(error.problem()), set_content_type=PROBLEM_JSON)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Turn what Jupyter or tornado raised into a problem document."""
        error = (kwargs.get("exc_info") or (None, None, None))[1]
        if status_code == HTTPStatus.UNAUTHORIZED:
            self.set_header("WWW-Authenticate", "Bearer")
            body = problem(
                status_code,
                "unauthenticated",
                "This operation needs a login. Send `Authorization: token …` or log in to "
                "JupyterLab.",
            )
        elif isinstance(error, web.HTTPError) and status_code < 500:
            detail = error.log_message % error.args if error.log_message else ""
            code = "permission-denied" if status_code == HTTPStatus.FORBIDDEN else "bad-request"
            body = problem(status_code, code, detail or HTTPStatus(status_code).description)
        else:
            body = internal_problem()
        self.finish(json.dumps(body), set_content_type=PROBLEM_JSON)


class PublicOperationHandler(OperationHandler):
    """Run operations of the written public list, which need no login."""

    @allow_unauthenticated
    async def get(self, **path: str) -> None:
        await self.run(path)

    def is_public(self) -> bool:
        return True


def internal_problem() -> dict[str, Any]:
    """Describe an error that is ours, without its text: that is in the server's log."""
    return problem(
        500,
        "internal",
        "The server failed at this request; its log has the reason. Try again, and report it if "
        "it happens again.",
    )
