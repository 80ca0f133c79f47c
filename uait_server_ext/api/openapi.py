"""OpenAPI 3.1 from the declarations: nothing here is written by hand twice.

A streaming operation has a `text/event-stream` response; the schema of its events is under
`x-event-schema`, because OpenAPI 3.1 has no word for the items of a stream (3.2 has). Asked with
`Accept: application/json` it answers with its last event.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Literal

from pydantic import Field, TypeAdapter

from uait_server_ext.schema import Schema

from .openai.errors import OPENAI, ErrorBody
from .operation import PREFIX, PUBLIC, Operation

REFERENCE = "#/components/schemas/{model}"


class Problem(Schema):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="What happened and what to do.")
    code: str


def document(
    operations: Sequence[Operation], *, version: str, base_url: str = "/"
) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the operations."""
    keys: list[tuple[tuple[str, str], Literal["validation", "serialization"], TypeAdapter[Any]]] = [
        ((PREFIX, "error"), "serialization", TypeAdapter(Problem)),
        ((OPENAI, "error"), "serialization", TypeAdapter(ErrorBody)),
    ]
    for op in operations:
        if op.body:
            keys.append(((op.key, "in"), "validation", TypeAdapter(op.body)))
        if op.response is not type(None):
            keys.append(((op.key, "out"), "serialization", TypeAdapter(op.response)))
    schemas, definitions = TypeAdapter.json_schemas(keys, ref_template=REFERENCE)
    by_key = {key: schema for (key, _mode), schema in schemas.items()}
    paths: dict[str, dict[str, Any]] = {}
    for op in operations:
        paths.setdefault(op.prefix + op.path, {})[op.method.lower()] = describe(op, by_key)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "UAIT",
            "version": version,
            "description": "Universal AI Tools for Jupyter. Errors are problem documents "
            "(RFC 9457); below `/uait/openai/v1` they have OpenAI's form.",
            "license": {"name": "BSD-3-Clause", "identifier": "BSD-3-Clause"},
        },
        "servers": [{"url": base_url.rstrip("/") or "/"}],
        "security": [{"token": []}, {"session": []}],
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {
                "token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`Bearer <T>`: an access token or API key; under Jupyter's "
                    "own login `token <T>`",
                },
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "_xsrf",
                    "description": "Jupyter's login cookie, with the header `X-XSRFToken` on "
                    "requests that change something.",
                },
            },
        },
    }


def describe(op: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    """Return the operation object."""
    described: dict[str, Any] = {
        "operationId": op.name,
        "summary": op.summary,
        "description": op.doc,
        "tags": [tag_of(op)],
        "x-permission": op.permission,
        "x-rate-class": op.rate,
        "x-sensitive": op.sensitive,
        "responses": responses(op, schemas),
    }
    if op.permission == PUBLIC:
        described["security"] = []
    if parameters := describe_parameters(op):
        described["parameters"] = parameters
    if op.body:
        described["requestBody"] = {
            "required": not op.body_optional,
            "content": {"application/json": {"schema": schemas[(op.key, "in")]}},
        }
    return described


def tag_of(op: Operation) -> str:
    """Return the group of an operation: the first word of its path, or whose format it speaks."""
    return op.path.split("/")[1].partition(".")[0] if op.prefix == PREFIX else "openai"


def describe_parameters(op: Operation) -> list[dict[str, Any]]:
    """Return path and query parameters with their schemas."""
    schema = op.parameters.model_json_schema()
    required = set(schema.get("required", []))
    return [
        {
            "name": name,
            "in": "path" if name in op.path_parameters else "query",
            "required": name in op.path_parameters or name in required,
            "schema": {k: v for k, v in described.items() if k != "title"},
        }
        for name, described in schema.get("properties", {}).items()
    ]


def responses(op: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    """Return the success response, and the form that everything else has."""
    kind = "application/problem+json" if op.prefix == PREFIX else "application/json"
    failure = {
        "description": "What happened and what to do.",
        "content": {kind: {"schema": schemas[(op.prefix, "error")]}},
    }
    if op.response is type(None):
        return {
            str(HTTPStatus.NO_CONTENT.value): {"description": "Done."},
            "default": failure,
        }
    if op.content_type != "application/json":
        text = {op.content_type: {"schema": {"type": "string"}}}
        return {"200": {"description": op.summary, "content": text}, "default": failure}
    schema = schemas[(op.key, "out")]
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if op.streams:
        content = {
            "text/event-stream": {"x-event-schema": schema},
            "application/json": {"schema": schema},
        }
    return {"200": {"description": op.summary, "content": content}, "default": failure}


def main() -> None:
    """Print the API description: the source of the typed TypeScript client."""
    import json

    from uait_server_ext._version import __version__

    from .openai import operations as openai_operations
    from .v1 import operations

    everything = [*operations(), *openai_operations()]
    print(json.dumps(document(everything, version=__version__), indent=2, sort_keys=True))


if __name__ == "__main__":
    main()
