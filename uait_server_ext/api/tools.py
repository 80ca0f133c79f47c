"""UAIT's own operations as tools for a model: called as the person who asks.

A model has no rights of its own. A call that it wants made is an ordinary call of the operation by
the principal of the conversation: the same validation, the same permission, the same answer for
what belongs to somebody else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from uait_server_ext.errors import InvalidInput, NotFound, PermissionDenied, UaitError
from uait_server_ext.inference.models import ToolCall, ToolDefinition

from .operation import Call, Operation, adapter

MOST_CHARACTERS = 16_000


class ToolAnswer(NamedTuple):
    """What came of a call: an HTTP status and the text that the model reads."""

    status: int
    content: str


class Toolbox:
    """The operations that are tools, for one caller.

    Args:
        names: the tools to offer; none: all that the caller may use.

    Raises:
        InvalidInput: a name is no tool, or one that the caller may not use.
    """

    def __init__(
        self, call: Call, operations: Iterable[Operation], names: Iterable[str] | None = None
    ) -> None:
        allowed = {
            operation.name: operation
            for operation in operations
            if operation.tool and operation.permission in call.principal.permissions
        }
        if unknown := sorted(set(names or ()) - set(allowed)):
            raise InvalidInput(
                f"There is no tool {', '.join(unknown)} for you. There are: "
                f"{', '.join(sorted(allowed))}."
            )
        wanted = allowed if names is None else set(names)
        self._call = call
        self._operations = {name: allowed[name] for name in allowed if name in wanted}

    def definitions(self) -> list[ToolDefinition]:
        """Return the tools as a model is told of them."""
        return [
            ToolDefinition(
                name=operation.name,
                description=operation.summary,
                parameters=parameters(operation),
            )
            for operation in self._operations.values()
        ]

    async def run(self, wanted: ToolCall) -> ToolAnswer:
        """Make the call that a model wants; what goes wrong is an answer, which the model reads."""
        try:
            return ToolAnswer(200, shortened(await self._answer(wanted)))
        except UaitError as error:
            return ToolAnswer(error.status, json.dumps(error.problem()))

    async def _answer(self, wanted: ToolCall) -> str:
        operation = self._operations.get(wanted.name)
        if operation is None:
            raise NotFound(f"There is no tool {wanted.name!r} here.")
        if operation.permission not in self._call.principal.permissions:
            raise PermissionDenied(f"Using {operation.name} needs {operation.permission}.")
        given = self._given(wanted.arguments)
        path = {name: str(given.pop(name, "")) for name in operation.path_parameters}
        query = {
            name: [str(given.pop(name))]
            for name in operation.parameters.model_fields
            if name in given
        }
        body = json.dumps(given).encode() if operation.body or given else b""
        arguments = operation.arguments(path, query, body)
        result = await operation.function(self._call, **arguments)
        return adapter(operation.response).dump_json(result).decode()

    @staticmethod
    def _given(arguments: str) -> dict[str, Any]:
        try:
            given = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise InvalidInput("The arguments of a tool are a JSON object.") from None
        if not isinstance(given, dict):
            raise InvalidInput("The arguments of a tool are a JSON object.")
        return given


def parameters(operation: Operation) -> dict[str, Any]:
    """Return the JSON schema of a tool's arguments: those of path, query and body in one object."""
    parts = [model for model in (operation.parameters, operation.body) if model is not None]
    schema: dict[str, Any] = {"type": "object", "properties": {}, "required": [], "$defs": {}}
    for part in (model.model_json_schema() for model in parts):
        schema["properties"] |= part.get("properties", {})
        schema["required"] += part.get("required", [])
        schema["$defs"] |= part.get("$defs", {})
    if not schema["$defs"]:
        del schema["$defs"]
    return schema | {"additionalProperties": False}


def shortened(text: str) -> str:
    """Return as much of a text as a model should read at once."""
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]}\n[cut: {len(text) - MOST_CHARACTERS:,} more characters]"
