"""HTTP to one server with the standard library: a connection a request, no proxy, no redirect.

A connection a request costs under a millisecond on loopback and survives every restart of the
server. Redirects are not followed: none of UAIT's operations redirects, and a login page's would
carry the token elsewhere.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import quote

from .endpoint import Server
from .errors import NoAnswer, UaitClientError, Unauthenticated, UnexpectedAnswer, from_problem
from .event_stream import PIECE_BYTES, EventStream, Json, disconnect, read_object

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
# The server sends a keep-alive comment every 10 s while it has nothing to say.
SILENCE_SECONDS = 60.0
LARGEST_ANSWER = 64 << 20
LONGEST_PLACE = 2000
# What a Jupyter server without UAIT, or a proxy before it, says without a problem document.
FOREIGN_REFUSALS = {
    401: "refused the login.",
    403: "refused the login.",
    429: "is asked too often. Try again later.",
    502: "is not reached by the proxy before it. See whether the server still runs.",
    503: "is not ready, says the proxy before it. Try again later.",
    504: "did not answer the proxy before it in time. Try again later.",
}
START_HINT = "Start one with `uait lab`, or set UAIT_URL and UAIT_TOKEN."


class Transport:
    """Sends requests to one server and tells their failures apart."""

    def __init__(self, server: Server, *, timeout: float = ANSWER_SECONDS) -> None:
        self.server = server
        self.timeout = timeout

    def call(self, method: str, *segments: str, body: Json | None = None) -> Json:
        """Send one request and return its JSON answer; an empty one is {}.

        Raises:
            NoAnswer, UnexpectedAnswer, ServerError: see `errors.py`.
        """
        connection, response = self._open(method, segments, body, "application/json", self.timeout)
        try:
            with self._explained():
                content = response.read(LARGEST_ANSWER + 1)
                if response.length and len(content) <= LARGEST_ANSWER:
                    raise http.client.IncompleteRead(content, response.length)
        finally:
            disconnect(connection, response)
        if response.status == HTTPStatus.NO_CONTENT:
            return {}
        return self._json(response, content)

    def stream(self, method: str, *segments: str, body: Json | None = None) -> EventStream:
        """Send one request and return its events as they come.

        Raises:
            NoAnswer, UnexpectedAnswer, ServerError: see `errors.py`.
        """
        connection, response = self._open(
            method, segments, body, "text/event-stream", SILENCE_SECONDS
        )
        if response.headers.get_content_type() != "text/event-stream":
            disconnect(connection, response)
            raise self._unexpected(response)
        return EventStream(self.server, connection, response)

    def _open(
        self,
        method: str,
        segments: tuple[str, ...],
        body: Json | None,
        accept: str,
        timeout: float,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send a request and return the response after its headers; an error status is raised.

        A kernel's token ends early when its owner's account changes: then once more with a new one.
        """
        try:
            return self._send(method, segments, body, accept, timeout)
        except Unauthenticated:
            if not self.server.token.refused():
                raise
        return self._send(method, segments, body, accept, timeout)

    def _send(
        self,
        method: str,
        segments: tuple[str, ...],
        body: Json | None,
        accept: str,
        timeout: float,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send a request once."""
        path = self.server.endpoint.path("uait", "v1", *segments)
        headers = {
            "Accept": accept,
            "Connection": "close",
            **place_headers(),
            **self.server.token.headers(),
        }
        payload = None
        if body is not None:
            payload = json.dumps(body).encode("ascii")
            headers["Content-Type"] = "application/json"
        connection = self._connection(timeout)
        try:
            with self._explained():
                connection.connect()
                connection.sock.settimeout(timeout)
                connection.request(method, path, payload, headers)
                response = connection.getresponse()
                if response.status >= HTTPStatus.MULTIPLE_CHOICES:
                    raise self._refusal(response, response.read(PIECE_BYTES))
        except BaseException:
            connection.close()
            raise
        return connection, response

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        """Return an unconnected connection; connecting has a shorter time limit of its own."""
        endpoint = self.server.endpoint
        limit = min(CONNECT_SECONDS, timeout)
        if endpoint.scheme == "https":
            return http.client.HTTPSConnection(
                endpoint.host, endpoint.port, timeout=limit, context=ssl.create_default_context()
            )
        return http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=limit)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what sockets and HTTP raise into an error that says what to do."""
        try:
            yield
        except UaitClientError:
            raise
        except ssl.SSLCertVerificationError as error:
            raise NoAnswer(
                f"The certificate of {self.server} is not trusted here: {error.verify_message}. "
                "Set SSL_CERT_FILE to the file of the authority that signed it."
            ) from error
        except ssl.SSLError as error:
            raise NoAnswer(
                f"{self.server} does not speak TLS. Is the address http:// rather than https://?"
            ) from error
        except TimeoutError as error:
            raise NoAnswer(f"{self.server} did not answer in time. Try again later.") from error
        except ConnectionRefusedError as error:
            raise NoAnswer(f"No server answers at {self.server}. {START_HINT}") from error
        except socket.gaierror as error:
            raise NoAnswer(
                f"The host name in {self.server} is not known here. Check the address."
            ) from error
        except (ConnectionError, http.client.IncompleteRead) as error:
            raise NoAnswer(
                f"{self.server} closed the connection without an answer. "
                "See whether the server still runs, then try again."
            ) from error
        except http.client.HTTPException as error:
            raise UnexpectedAnswer(
                f"What answers at {self.server} does not speak HTTP. Check the address."
            ) from error
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise NoAnswer(f"{self.server} cannot be reached: {reason}.") from error

    def _json(self, response: http.client.HTTPResponse, content: bytes) -> Json:
        """Return the JSON object of an answer."""
        try:
            return read_object(content)
        except ValueError as error:
            raise self._unexpected(response) from error

    def _unexpected(self, response: http.client.HTTPResponse) -> UnexpectedAnswer:
        """Describe an answer that is none of UAIT's."""
        return UnexpectedAnswer(
            f"{self.server} answered {response.status} with {response.headers.get_content_type()}, "
            "which is not UAIT's: a proxy or a login page may answer in its place. "
            "Check the address."
        )

    def _refusal(self, response: http.client.HTTPResponse, content: bytes) -> UaitClientError:
        """Describe an error status: in the server's words where there are any."""
        status = response.status
        hint = self._login_hint() if status in (401, 403) else ""
        try:
            answer = read_object(content)
        except ValueError:
            answer = {}
        if isinstance(answer.get("code"), str):
            return from_problem({**answer, "status": status}, hint=hint)
        if status in FOREIGN_REFUSALS:
            detail = f"{self.server} {FOREIGN_REFUSALS[status]}"
            return from_problem({"status": status, "code": "refused", "detail": detail}, hint=hint)
        if status == HTTPStatus.NOT_FOUND:
            return UnexpectedAnswer(
                f"{self.server} answers, but UAIT is not part of it. Enable it there with "
                "`jupyter server extension enable uait_server_ext`, or check the address."
            )
        return self._unexpected(response)

    def _login_hint(self) -> str:
        """Say what to do about a refused login."""
        if self.server.token:
            return f"The token was the one of {self.server}; set UAIT_TOKEN if it is another."
        return f"No token is known for {self.server}: run `uait login`, or set UAIT_TOKEN."


def place_headers() -> dict[str, str]:
    """Return the headers that say for which notebook and run a kernel asks: budgets go by them."""
    run = os.environ.get("UAIT_RUN_DIR", "").rstrip("/").rpartition("/")[2]
    places = {"UAIT-Notebook": os.environ.get("JPY_SESSION_NAME", ""), "UAIT-Run": run}
    return {name: quote(place)[:LONGEST_PLACE] for name, place in places.items() if place}
