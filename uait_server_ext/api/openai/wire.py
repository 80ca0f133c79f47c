"""What the answers of OpenAI's wire format have in common."""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any, ClassVar

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from uait_server_ext.inference.models import TokenLogprob, Usage
from uait_server_ext.schema import Schema


class Wire(Schema):
    """Part of an answer; what is null is left out, but for the fields named in `nulls`."""

    nulls: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def without_nulls(self, serialize: SerializerFunctionWrapHandler) -> Any:
        """Return the fields that say something."""
        fields: dict[str, Any] = serialize(self)
        return {
            key: value for key, value in fields.items() if value is not None or key in self.nulls
        }

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe the fields, which a serialiser of one's own would hide."""
        described: Any = {key: value for key, value in schema.items() if key != "serialization"}
        return handler(described)


class Whole(Wire):
    """A whole answer: what is sent where no stream is asked for."""


class Harmless(Schema):
    """Parameters that change nothing in an answer; they are accepted and not kept."""

    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None


class PromptDetails(Wire):
    """Of the prompt's tokens."""

    cached_tokens: int = 0


class CompletionUsage(Wire):
    """Tokens that an answer took."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None

    @classmethod
    def of(cls, *usages: Usage) -> CompletionUsage:
        """Return the sum for answers to one prompt, which is counted once."""
        prompt = max((usage.prompt_tokens for usage in usages), default=0)
        made = sum(usage.completion_tokens for usage in usages)
        cached = max((usage.cached_tokens for usage in usages), default=0)
        return cls(
            prompt_tokens=prompt,
            completion_tokens=made,
            total_tokens=prompt + made,
            prompt_tokens_details=PromptDetails(cached_tokens=cached),
        )


class TopToken(Wire):
    """A token that might have come."""

    token: str
    logprob: float
    bytes: list[int]


class TokenInfo(TopToken):
    """A token that came."""

    top_logprobs: list[TopToken] = Field(default_factory=list)


class Logprobs(Wire):
    """The logprobs of an answer's tokens."""

    content: list[TokenInfo]


def logprobs_of(tokens: list[TokenLogprob] | None) -> Logprobs | None:
    """Return logprobs in OpenAI's form."""
    if tokens is None:
        return None
    return Logprobs(
        content=[
            TokenInfo(
                token=one.token,
                logprob=one.logprob,
                bytes=list(one.token.encode()),
                top_logprobs=[
                    TopToken(token=top.token, logprob=top.logprob, bytes=list(top.token.encode()))
                    for top in one.top
                ],
            )
            for one in tokens
        ]
    )


Stops = Annotated[list[str] | str | None, Field(description="Up to eight texts.")]


def stops_of(stop: list[str] | str | None) -> list[str]:
    """Return stop strings as a list."""
    return [stop] if isinstance(stop, str) else stop or []


def new_id(kind: str) -> str:
    """Return an id of an answer."""
    return f"{kind}{secrets.token_hex(12)}"


def now() -> int:
    """Return the time, in whole seconds of the epoch."""
    return int(time.time())
