"""What the wire may carry: bounds and refusals before any operation sees the input.

JSON (RFC 8259) in UTF-8 only, no deeper than `MAX_DEPTH`, each name once in an object, finite
numbers, text that can be stored (no NUL, no lone surrogate). Query and path likewise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from uait_server_ext.errors import InvalidInput, UnsupportedMediaType

MAX_DEPTH = 64
MAX_QUERY_PARAMETERS = 50


def check_content(headers: Mapping[str, str], body: bytes) -> None:
    """Refuse a body that is not plain JSON, by its headers.

    Raises:
        UnsupportedMediaType: another type, another charset or a content coding.
    """
    coding = headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise UnsupportedMediaType(
            f"The body is encoded as {coding[:40]!r}, which is not accepted. Send plain JSON."
        )
    if not body:
        return
    kind, _, parameters = headers.get("Content-Type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        raise UnsupportedMediaType(
            "The body must be JSON in UTF-8. Send it with `Content-Type: application/json`."
        )


def parse_json(body: bytes) -> Any:
    """Read a JSON document within the bounds.

    Raises:
        InvalidInput: it is not JSON, or is beyond one of them.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refused("body", f"not UTF-8 (byte {error.start}).") from None
    try:
        value = json.loads(
            text, object_pairs_hook=once, parse_constant=refuse_constant, parse_float=finite
        )
    except RecursionError:
        raise too_deep() from None
    except ValueError as error:
        # The text of a JSONDecodeError names a position, never the input.
        detail = str(error) if isinstance(error, json.JSONDecodeError) else "a number is too long"
        raise refused("body", f"not valid JSON: {detail}.") from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH or b"\\u" in body:
        check_value(value)
    return value


def check_value(value: Any) -> None:
    """Refuse what is nested too deep and text that cannot be stored; does not recurse."""
    level, depth = [value], 0
    while level:
        depth += 1
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                check_text(item, "body")
            elif isinstance(item, (dict, list)):
                if depth > MAX_DEPTH:
                    raise too_deep()
                below.extend(item)
                if isinstance(item, dict):
                    below.extend(item.values())
        level = below


def check_text(text: str, where: str) -> str:
    """Return text that holds no NUL and no lone surrogate.

    Raises:
        InvalidInput: it does; `where` names the parameter.
    """
    if "\0" in text:
        raise refused(where, "the character NUL is not accepted.")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise refused(where, "half of a surrogate pair is no character.") from None
    return text


def parse_query(arguments: Mapping[str, Sequence[bytes]]) -> dict[str, list[str]]:
    """Read query parameters.

    Raises:
        InvalidInput: too many, one given twice, not UTF-8, or with NUL.
    """
    if len(arguments) > MAX_QUERY_PARAMETERS:
        raise refused("query", f"more than {MAX_QUERY_PARAMETERS} parameters. Send fewer.")
    query = {}
    for name, values in arguments.items():
        where = check_text(name, "query")[:64]
        if len(values) > 1:
            raise refused(where, f"given {len(values)} times. Send it once.")
        try:
            query[name] = [check_text(value.decode("utf-8"), where) for value in values]
        except UnicodeDecodeError:
            raise refused(where, "not UTF-8.") from None
    return query


def check_path(path: Mapping[str, str]) -> None:
    """Refuse path parameters with NUL."""
    for name, value in path.items():
        check_text(value, name)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object whose names are all different (RFC 8259 section 4)."""
    built = dict(pairs)
    if len(built) != len(pairs):
        raise refused("body", "an object has one name twice. Send each name once.")
    return built


def finite(text: str) -> float:
    """Read a number that is not infinite."""
    number = float(text)
    if not math.isfinite(number):
        raise refused("body", "a number is out of range. Send a smaller one.")
    return number


def refuse_constant(name: str) -> NoReturn:
    """Refuse `NaN` and `Infinity`, which are not JSON."""
    raise refused("body", f"{name} is not JSON. Send a number or null.")


def too_deep() -> InvalidInput:
    """Build the error of a body that is nested too deep."""
    return refused("body", f"nested deeper than {MAX_DEPTH} levels. Send it flatter.")


def refused(where: str, message: str) -> InvalidInput:
    """Build the error of one place, in the form of all invalid input."""
    errors = [{"location": where, "message": message}]
    return InvalidInput(f"{where}: {message}", errors=errors)
