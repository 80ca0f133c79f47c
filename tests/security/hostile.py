"""Hostile input for every field of every operation, made from the declarations themselves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from uait_server_ext.api.operation import Operation
from uait_server_ext.api.v1 import operations

Place = tuple[str | int, ...]

SQL = (
    "' OR 1=1--",
    '"; DROP TABLE users; --',
    "' UNION SELECT secret_sha256 FROM sessions--",
    "1); DELETE FROM audit_events; --",
    "\\'; --",
    "%00",
    "%27%20OR%201=1--",
    "* FROM users",
)
TEMPLATES = (
    "{{1337*7331}}",
    "{% for c in [].__class__.__base__ %}",
    "${1337*7331}",
    "#{1337*7331}",
    "<%= 1337*7331 %>",
)
PRODUCT = "9801547"
LINES = ("a\r\nSet-Cookie: evil=1", "a\nWARNING forged line", "a\u2028forged", "\x1b[2Jforged")
MARK = "PWNED"


def shell(folder: str) -> tuple[str, ...]:
    """Return commands that would leave a file behind if anything ran them."""
    touch = f"touch {folder}/{MARK}"
    return (f"; {touch}", f"$({touch})", f"`{touch}`", f"| {touch}", f"\n{touch}\n", f"-x {touch}")


def sample(schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    """Return a value that fits a JSON schema, as far as its shape goes."""
    if "$ref" in schema:
        return sample(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return sample(schema[choice][0], definitions)
    kind = schema.get("type")
    if kind == "object":
        fields = schema.get("properties")
        if fields is None:
            return {"x": "y"}
        return {name: sample(field, definitions) for name, field in fields.items()}
    if kind == "array":
        return [sample(schema.get("items", {}), definitions)]
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    if kind == "boolean":
        return True
    return "x" * max(1, schema.get("minLength", 1))


def body_of(op: Operation) -> Any:
    """Return a body of the operation's shape."""
    assert op.body
    schema = op.body.model_json_schema()
    return sample(schema, schema.get("$defs", {}))


def texts(value: Any, place: Place = ()) -> Iterator[Place]:
    """Yield where the strings are in a JSON value, and the names in objects without a schema."""
    if isinstance(value, str):
        yield place
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from texts(inner, (*place, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from texts(inner, (*place, index))


def put(value: Any, place: Place, text: Any) -> Any:
    """Return a copy of a JSON value with something else at one place."""
    if not place:
        return text
    changed = copy.deepcopy(value)
    inner = changed
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = text
    return changed


def path_of(op: Operation, **values: str) -> str:
    """Return the path of an operation with each parameter filled in."""
    path = op.path
    for name in op.path_parameters:
        path = path.replace(f"{{{name}}}", quote(values.get(name, "x"), safe=""))
    return f"~{path}"


def attacks(op: Operation, hostile: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield requests with one hostile string in one place: path, query, body."""
    body = body_of(op) if op.body else None
    for text in hostile:
        for name in op.path_parameters:
            yield {"path": path_of(op, **{name: text}), "body": body}
        for name in op.parameters.model_fields:
            if name not in op.path_parameters:
                yield {"path": path_of(op), "body": body, "query": {name: text}}
        yield {"path": path_of(op), "body": body, "query": {text: "x"}}
        if op.body:
            for place in texts(body):
                yield {"path": path_of(op), "body": put(body, place, text)}
            yield {"path": path_of(op), "body": text}


def with_input() -> list[Operation]:
    """Return the operations that take anything from outside."""
    return [op for op in operations() if op.body or op.parameters.model_fields]
