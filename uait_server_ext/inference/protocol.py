"""Frames between a model worker and its parent.

A frame is two little-endian lengths, a JSON object and a body of raw bytes (vectors; often empty)::

    | u32 length of JSON | u32 length of body | JSON | body |

=========== ============= ==========================================================================
to worker   ``load``      first frame: entry, backend, where the cache is, threads
            ``chat``      id, request (a ``ChatRequest``), adapter (a folder)
            ``complete``  id, request (a ``CompletionRequest``), adapter
            ``embed``     id, texts
            ``rank``      id, query, texts
            ``cancel``    id
            ``stop``      end by itself
from worker ``ready``     loaded: context_tokens, dimension, note, streams, memory_bytes
            ``failed``    not loaded: code, detail; the worker ends
            ``delta``     id, text, logprobs
            ``done``      id, finish_reason, tool_calls, prompt_tokens, completion_tokens,
                          cached_tokens
            ``vectors``   id, shape, tokens of each text; body float32 (vectors, or scores)
            ``error``     id, code, detail, extensions
            ``cancelled`` id
            ``alive``     a sign, while requests are under way and nothing else is to be said
=========== ============= ==========================================================================

Several requests may be under way; each ends with one ``done``, ``vectors``, ``error`` or
``cancelled``.
"""

from __future__ import annotations

import asyncio
import json
import struct
from typing import IO, Any, NamedTuple

LENGTHS = struct.Struct("<II")


class Frame(NamedTuple):
    """One message with its raw bytes."""

    message: dict[str, Any]
    body: bytes


def encode(message: dict[str, Any], body: bytes = b"") -> bytes:
    """Return the bytes of one frame."""
    text = json.dumps(message, separators=(",", ":")).encode("ascii")
    return LENGTHS.pack(len(text), len(body)) + text + body


def read(stream: IO[bytes]) -> Frame | None:
    """Read the next frame, waiting for it; None at the end of the stream."""
    head = stream.read(LENGTHS.size)
    if len(head) < LENGTHS.size:
        return None
    text, body = LENGTHS.unpack(head)
    data = stream.read(text + body)
    return _frame(data, text) if len(data) == text + body else None


async def read_async(stream: asyncio.StreamReader) -> Frame | None:
    """Read the next frame; None at the end of the stream."""
    try:
        text, body = LENGTHS.unpack(await stream.readexactly(LENGTHS.size))
        return _frame(await stream.readexactly(text + body), text)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _frame(data: bytes, text: int) -> Frame:
    return Frame(json.loads(data[:text]), data[text:])
