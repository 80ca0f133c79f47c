"""The declaration: what it accepts, what it refuses, how it validates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from uait_server_ext.api.operation import Call, Operation, operation
from uait_server_ext.errors import InvalidInput


class Body(BaseModel):
    size: int


class Optional(BaseModel):
    size: int = 3


def declare(path: str = "/things/{thing}") -> Operation:
    @operation("POST", path, permission="knowledge:read", rate="read")
    async def change(
        call: Call, thing: str, body: Body, limit: Annotated[int, Field(ge=1)] = 10
    ) -> Body:
        """Change a thing.

        More about it.
        """
        return body

    return change


def test_declaration_carries_everything() -> None:
    op = declare()
    assert op.key == "POST /things/{thing}"
    assert op.summary == "Change a thing."
    assert op.pattern == "/things/(?P<thing>[^/]+)"
    assert op.body is Body
    assert not op.streams


def test_arguments_come_typed_from_path_query_and_body() -> None:
    arguments = declare().arguments({"thing": "a"}, {"limit": ["5"]}, b'{"size": 2}')
    assert arguments == {"thing": "a", "limit": 5, "body": Body(size=2)}


@pytest.mark.parametrize(
    ("query", "body", "location"),
    [
        ({"limit": ["0"]}, b'{"size": 2}', "limit"),
        ({"limit": ["x"]}, b'{"size": 2}', "limit"),
        ({"unknown": ["1"]}, b'{"size": 2}', "unknown"),
        ({}, b'{"size": "big"}', "size"),
        ({}, b"{}", "size"),
        ({}, b"not json", "body"),
        ({}, b"", "body"),
        ({}, b"\xff\xfe", "body"),
    ],
)
def test_bad_input_names_its_place_and_not_its_content(
    query: dict[str, list[str]], body: bytes, location: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        declare().arguments({"thing": "a"}, query, body)
    assert caught.value.extensions["errors"][0]["location"] == location
    assert caught.value.detail.startswith(location)
    assert "big" not in caught.value.detail


def test_path_wins_over_query_of_the_same_name() -> None:
    arguments = declare().arguments({"thing": "a"}, {"thing": ["b"]}, b'{"size": 2}')
    assert arguments["thing"] == "a"


def test_body_with_defaults_may_be_left_out() -> None:
    @operation("POST", "/x", permission="knowledge:read", rate="read")
    async def run(call: Call, body: Optional) -> None:
        """Run."""

    assert run.arguments({}, {}, b"")["body"] == Optional()


def test_unwanted_body_is_refused() -> None:
    @operation("GET", "/x", permission="knowledge:read", rate="read")
    async def read(call: Call) -> None:
        """Read."""

    with pytest.raises(InvalidInput, match="takes no request body"):
        read.arguments({}, {}, b"{}")


def test_async_iterator_is_a_stream() -> None:
    @operation("GET", "/x", permission="knowledge:read", rate="read")
    async def stream(call: Call) -> AsyncIterator[Body]:
        """Stream."""
        yield Body(size=1)

    assert stream.streams
    assert stream.response is Body


async def nothing(call: Call) -> None:
    """Do nothing."""


def test_unknown_permission_cannot_be_declared() -> None:
    with pytest.raises(ValueError, match="unknown permission"):
        operation("GET", "/x", permission="knowledge:everything", rate="read")


def test_public_needs_the_written_list() -> None:
    with pytest.raises(ValueError, match="not on the list"):
        operation("GET", "/secrets", permission="public", rate="read")


def test_path_parameter_without_function_parameter_cannot_be_declared() -> None:
    with pytest.raises(ValueError, match="has no parameter"):
        operation("GET", "/x/{y}", permission="knowledge:read", rate="read")(nothing)
