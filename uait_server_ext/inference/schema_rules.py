"""What JSON schemas mean for generation: which to narrow, how long they get, why one is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

UNIMPLEMENTED = re.compile(r"Unimplemented keys: \[(.*)\]")
PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
WORD_CHARACTERS = 3  # of text in a token, cautiously
ENVELOPE = 4
MOST = 10_000
CHILDREN = ("items", "additionalProperties", "not", "if", "then", "else", "contains")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
MAPS = ("properties", "patternProperties", "$defs", "definitions")

Schema = Mapping[str, Any]


def closed(schema: Schema) -> dict[str, Any]:
    """Return the schema without fields that it does not name.

    An object with `properties` and not a word of others may by the standard hold any other; a
    small model then invents them without end. What is left is always accepted by the schema
    itself. A schema that is put together with `allOf` stays as it is.
    """
    if any("allOf" in node for node in nodes(schema)):
        return dict(schema)
    return _closed(schema)


def _closed(schema: Schema) -> dict[str, Any]:
    narrowed: dict[str, Any] = {}
    for key, value in schema.items():
        if key in MAPS and isinstance(value, Mapping):
            narrowed[key] = {name: _child(sub) for name, sub in value.items()}
        elif key in LISTS and isinstance(value, list):
            narrowed[key] = [_child(sub) for sub in value]
        else:
            narrowed[key] = _child(value) if key in CHILDREN else value
    if "properties" in schema and not {"$ref", "patternProperties"} & set(schema):
        named = set(schema["properties"]) if isinstance(schema["properties"], Mapping) else set()
        required = schema.get("required", [])
        if isinstance(required, list) and named.issuperset(map(str, required)):
            narrowed.setdefault("additionalProperties", False)
    return narrowed


def _child(schema: Any) -> Any:
    return _closed(schema) if isinstance(schema, Mapping) else schema


def nodes(schema: Any) -> Iterator[Schema]:
    """Yield a schema and every schema in it."""
    if not isinstance(schema, Mapping):
        return
    yield schema
    for key, value in schema.items():
        below: Any = ()
        if key in CHILDREN:
            below = (value,)
        elif key in LISTS and isinstance(value, list):
            below = value
        elif key in MAPS and isinstance(value, Mapping):
            below = value.values()
        for sub in below:
            yield from nodes(sub)


def growth(schema: Schema) -> int:
    """Estimate how many tokens beginning one more item, field or branch commits an answer to."""
    shortest = _Shortest(schema)
    try:
        return max(shortest.of(node) for node in nodes(schema)) + ENVELOPE
    except RecursionError:  # a chain of references: no shorter than this
        return MOST


class _Shortest:
    """Estimates the tokens of the shortest value of schemas, from above; each is looked at once."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._known: dict[int, int] = {}

    def of(self, schema: Any) -> int:
        """Return the estimate; what recurs counts as nothing."""
        if not isinstance(schema, Mapping):
            return 1
        if id(schema) not in self._known:
            self._known[id(schema)] = 1
            self._known[id(schema)] = min(self._estimate(schema), MOST)
        return self._known[id(schema)]

    def _estimate(self, schema: Schema) -> int:
        reference = schema.get("$ref")
        if isinstance(reference, str):
            return self.of(_resolved(reference, self._root))
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list) and schema[key]:
                return max(self.of(sub) for sub in schema[key])
        if isinstance(schema.get("allOf"), list):
            return sum(self.of(sub) for sub in schema["allOf"])
        values = schema.get("enum", [schema["const"]] if "const" in schema else [])
        if isinstance(values, list) and values:
            return max(_tokens(value) for value in values)
        return self._inside(schema) + ENVELOPE

    def _inside(self, schema: Schema) -> int:
        fields = schema.get("properties")
        fields = fields if isinstance(fields, Mapping) else {}
        required = schema.get("required", [])
        size = sum(
            _tokens(name) + ENVELOPE + self.of(fields.get(name))
            for name in (required if isinstance(required, list) else [])
            if isinstance(name, str)
        )
        items = schema.get("prefixItems", [])
        least = _count(schema, "minItems")
        first = items[:least] if isinstance(items, list) else []
        size += sum(self.of(sub) + 2 for sub in first)
        size += (least - len(first)) * (self.of(schema.get("items")) + 2)
        size += _count(schema, "minLength") + _count(schema, "minProperties") * 8
        return size + len(str(schema.get("pattern", ""))) + 12 * ("format" in schema)


def _count(schema: Schema, key: str) -> int:
    value = schema.get(key, 0)
    return value if isinstance(value, int) and 0 < value < MOST else 0


def _tokens(value: Any) -> int:
    return len(str(value)) // WORD_CHARACTERS + 2


def _resolved(reference: str, root: Schema) -> Any:
    """Return what a `#/…` pointer (RFC 6901) leads to; None where it leads nowhere."""
    found: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def reason(message: str) -> str:
    """Say why a schema or pattern cannot be enforced, from what the engine said of it."""
    if found := UNIMPLEMENTED.search(message):
        names = ", ".join(f"`{name}`" for name in re.findall(r'"([^"]+)"', found.group(1)))
        return (
            f"the keyword {names} cannot be enforced while the model writes. Leave it out and "
            "check the answer yourself."
        )
    if "oneOf" in message:
        return "`oneOf` cannot be enforced where its branches overlap. Use `anyOf`."
    if "retrieving it failed" in message:
        return "`$ref` leads out of the schema. Only references within it (`#/$defs/…`) work."
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    text = PLACE.sub("", (errors or lines or ["it is not understood"])[0])
    return f"{text[:200].removeprefix('error: ').rstrip('.')}."
