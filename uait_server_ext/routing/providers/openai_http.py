"""Models at a server that speaks the OpenAI protocol: vLLM, llama.cpp, Ollama, hosted ones.

An address from the operator's file is connected to as it is; one that a user has set goes through
the guard of `resilience/connector.py`. Redirects are not followed: the key would go with them.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import NoReturn

import aiohttp
import httpx2

from uait_server_ext.errors import (
    Busy,
    ContextTooLong,
    DeadlineExceeded,
    InvalidInput,
    StreamCut,
    UpstreamFailed,
    UpstreamRefused,
)
from uait_server_ext.inference.models import ChatDone, ChatEvent, ChatRequest
from uait_server_ext.resilience.addresses import check_url
from uait_server_ext.resilience.connector import guarded_connections, kept_connections
from uait_server_ext.routing.config import ProviderEntry
from uait_server_ext.routing.models import Caller, Target

from .keys import LeasedKey
from .openai_wire import DONE, Answer, body_of, joined, plain

MOST_LINE_BYTES = 4 << 20
MOST_ANSWER_BYTES = 64 << 20
MOST_ERROR_BYTES = 64 << 10
MOST_SECONDS = 3600.0  # of a guarded answer
DRAIN_SECONDS = 0.05


class OpenAIProvider:
    """Calls of one server."""

    def __init__(self, name: str, settings: ProviderEntry, key: LeasedKey | None = None) -> None:
        self._name = name
        self._settings = settings
        self._key = key
        self._url = settings.url.rstrip("/") + "/chat/completions"
        # The certificates that the rest of UAIT trusts; aiohttp's own are the system's alone.
        self._certificates = httpx2.create_ssl_context(trust_env=not settings.guarded)
        self._session: aiohttp.ClientSession | None = None

    async def chat(
        self, target: Target, request: ChatRequest, caller: Caller
    ) -> AsyncGenerator[ChatEvent, None]:
        """Make one call; see `Provider.chat`."""
        began = time.monotonic()
        first: float | None = None
        answer = Answer(target.id, request)
        body = body_of(request, target.name, self._settings.max_tokens_name)
        response = await self._send(target, body)
        try:
            async with aclosing(events(target.id, response.content.iter_any())) as arrivals:
                async for arrived in arrivals:
                    deltas, failure = answer.take_all(arrived)
                    if deltas:
                        first = first if first is not None else time.monotonic() - began
                        yield joined(deltas)
                    if failure is not None:
                        raise failure
                    if arrived[-1] == DONE:
                        await drained(response.content)
                        break
        except aiohttp.ClientError as error:
            raise StreamCut(
                f"{target.id} broke off in the middle of its answer ({kind(error)}). Ask again."
            ) from None
        except TimeoutError:
            raise DeadlineExceeded(
                f"{target.id} did not end its answer within {MOST_SECONDS:g} s. Ask for less."
            ) from None
        finally:
            response.close()  # of no effect where it was read to its end
        answer.check()
        seconds = time.monotonic() - began
        yield ChatDone(
            text="".join(answer.text),
            model=target.id,
            backend="openai",
            finish_reason=answer.finish_reason or "stop",
            usage=answer.counted(),
            tool_calls=answer.tool_calls(),
            first_token_seconds=first if first is not None else seconds,
            seconds=seconds,
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _send(self, target: Target, body: bytes) -> aiohttp.ClientResponse:
        """Send a request; return the answer whose body is a stream of events."""
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
        }
        if self._key is not None:
            headers["Authorization"] = f"Bearer {(await self._key.value()).get_secret_value()}"
        if self._settings.guarded:
            await check_url(self._url)
        try:
            response = await self._open().post(
                self._url, data=body, headers=headers, allow_redirects=False
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamFailed(
                f"{target.id} cannot be reached ({kind(error)}). Try again later."
            ) from None
        if response.status == 200:
            if response.content_type == "text/event-stream":
                return response
            response.close()
            raise UpstreamFailed(
                f"{target.id} answered what is no stream of events. Its address is wrong, or its "
                "server does not stream."
            )
        try:
            said = await head(response.content)
        except aiohttp.ClientError:
            said = b""
        finally:
            response.close()
        await self._refused(target, response, said)

    def _open(self) -> aiohttp.ClientSession:
        """Return the connections; made at the first call, in the loop that uses them."""
        if self._session is None:
            connect = self._settings.connect_seconds
            guarded = self._settings.guarded
            connections = guarded_connections if guarded else kept_connections
            total = MOST_SECONDS if guarded else None
            self._session = aiohttp.ClientSession(
                connector=connections(self._certificates),
                cookie_jar=aiohttp.DummyCookieJar(),
                # How long an answer may take is seen to by the channel: this knows no tokens.
                timeout=aiohttp.ClientTimeout(total, connect=connect, sock_connect=connect),
                auto_decompress=False,  # an answer must not grow when unpacked
                trust_env=False,
            )
        return self._session

    async def _refused(
        self, target: Target, response: aiohttp.ClientResponse, said: bytes
    ) -> NoReturn:
        """Raise what a status other than 200 means."""
        status = response.status
        if status in (401, 403):
            if self._key is not None:
                self._key.forget()
            raise UpstreamRefused(
                f"{target.id} does not let us in ({status}). An administrator can check its key."
            )
        if status == 404 or 300 <= status < 400:
            raise UpstreamRefused(
                f"{target.id} is not there ({status}). An administrator can check its address and "
                "the model's name."
            )
        message = await self._message(said)
        if status in (429, 503, 529):
            wait = retry_after(response.headers.get("Retry-After"))
            kept = {} if wait is None else {"retry_after": wait}
            if status == 503:
                raise UpstreamFailed(f"{target.id} is not available now: {message}", **kept)
            raise Busy(f"{target.id} has too much to do: {message}", **kept)
        if 400 <= status < 500 and status not in (408, 409, 425):
            if "context" in message.lower() and status in (400, 413, 422):
                raise ContextTooLong(f"{target.id} cannot take so much: {message}")
            raise InvalidInput(f"{target.id} does not take this request: {message}")
        raise UpstreamFailed(f"{target.id} failed ({status}): {message}")

    async def _message(self, said: bytes) -> str:
        """Return what the other server said was wrong, without our key."""
        text = said.decode("utf-8", "replace")
        try:
            error = json.loads(text)
            error = error.get("error", error)
            text = error.get("message", "") if isinstance(error, dict) else str(error)
        except (ValueError, AttributeError):
            pass
        if self._key is not None:
            text = text.replace((await self._key.value()).get_secret_value(), "…")
        return plain(text) or "it did not say why."


async def events(who: str, chunks: AsyncIterator[bytes]) -> AsyncGenerator[list[str], None]:
    """Yield the data of server-sent events, those that came together in one list, `DONE` the last.

    Raises:
        UpstreamFailed: a line or the whole is longer than any answer.
        StreamCut: the stream ended within an event.
    """
    rest = b""
    total = 0
    async for chunk in chunks:
        total += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MOST_LINE_BYTES or total > MOST_ANSWER_BYTES:
            raise UpstreamFailed(f"{who} sent more than any answer has.")
        # Each event of this protocol is one line of data; other fields say nothing here.
        found = [
            line[5:].strip().decode("utf-8", "replace")
            for line in lines
            if line.startswith(b"data:")
        ]
        if DONE in found:
            del found[found.index(DONE) + 1 :]
        if found:
            yield found
    if rest.startswith(b"data:") and rest[5:].strip() != DONE.encode():
        raise StreamCut(f"{who} broke off in the middle of its answer. Ask again.")


async def drained(content: aiohttp.StreamReader) -> None:
    """Read on to the end of the answer, which is there: then its connection can be used again."""
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while not content.at_eof():
                await content.readany()


async def head(content: aiohttp.StreamReader) -> bytes:
    """Return the beginning of an answer's body."""
    said = b""
    while len(said) <= MOST_ERROR_BYTES and (chunk := await content.readany()):
        said += chunk
    return said


def retry_after(header: str | None) -> int | None:
    """Read `Retry-After` (RFC 9110 section 10.2.3) as whole seconds."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return int(header)
    try:
        moment = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0, round(moment.timestamp() - time.time()))


def kind(error: Exception) -> str:
    """Say in a word what went wrong below HTTP."""
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        # The system's own words: a name that is not known, a port that refuses.
        return plain(error.os_error.strerror or error.os_error) or "no connection"
    return type(error).__name__
