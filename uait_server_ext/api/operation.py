"""`@operation`: one declaration = route + models + permission + rate class + documentation.

An operation is an async function. Its parameters say where they come from:

- the first, `call: Call`, is who calls and the services;
- a name in the path template is a path parameter;
- `body` is the JSON body, a pydantic model;
- every other parameter is a query parameter.

Its return annotation says what comes back: a pydantic model (JSON), `None` (204), or
`AsyncIterator[Event]` (server-sent events, the last of which is the result).
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model

from uait_server_ext.errors import InvalidInput
from uait_server_ext.identity.principal import PERMISSIONS, Principal

if TYPE_CHECKING:
    from uait_server_ext.services import Services

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
RateClass = Literal["read", "write", "inference", "ingest", "probe"]

PUBLIC = "public"
"""The permission of an operation that needs no login."""

PUBLIC_OPERATIONS = frozenset({"GET /health/live"})
"""The written list: an operation not named here cannot be declared public."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operation: who calls, and the services that answer."""

    principal: Principal | None
    services: Services


@dataclass(frozen=True, slots=True)
class Operation:
    """A declared operation; built by `operation`, run by the handler, described by OpenAPI."""

    method: Method
    path: str
    permission: str
    rate: RateClass
    name: str
    doc: str
    function: Callable[..., Any]
    path_parameters: tuple[str, ...]
    parameters: type[BaseModel]
    body: type[BaseModel] | None
    body_optional: bool
    response: Any
    streams: bool

    @property
    def key(self) -> str:
        """Return `METHOD /path`, the operation's identity in tests, logs and docs."""
        return f"{self.method} {self.path}"

    @property
    def summary(self) -> str:
        """Return the first line of the docstring."""
        return self.doc.partition("\n")[0]

    @property
    def pattern(self) -> str:
        """Return the path as a regular expression with named groups."""
        return re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.path)

    def arguments(
        self, path: dict[str, str], query: dict[str, list[str]], body: bytes
    ) -> dict[str, Any]:
        """Validate what came over the wire into the function's keyword arguments.

        Raises:
            InvalidInput: with `errors`, a list of {location, message}.
        """
        flat = {name: values[-1] for name, values in query.items()}
        arguments: dict[str, Any] = {}
        try:
            validated = self.parameters.model_validate(flat | path)
            arguments = {name: getattr(validated, name) for name in self.parameters.model_fields}
            if self.body:
                content = body or (b"{}" if self.body_optional else b"")
                arguments["body"] = self.body.model_validate_json(content)
            elif body.strip():
                raise InvalidInput(f"{self.key} takes no request body. Send none.")
        except ValidationError as error:
            raise invalid(error) from None
        return arguments


def operation(
    method: Method, path: str, *, permission: str, rate: RateClass
) -> Callable[[Callable[..., Any]], Operation]:
    """Declare an operation on an async function (or async generator function).

    Raises:
        ValueError: unknown permission, a public operation that is not on the written list, or a
            function whose parameters do not fit the path. Raised at import, so it cannot ship.
    """
    key = f"{method} {path}"
    if permission == PUBLIC:
        if key not in PUBLIC_OPERATIONS:
            raise ValueError(f"{key} is not on the list of public operations")
    elif permission not in PERMISSIONS:
        raise ValueError(f"{key} names the unknown permission {permission}")

    def declare(function: Callable[..., Any]) -> Operation:
        hints = typing.get_type_hints(function, include_extras=True)
        declared = inspect.signature(function).parameters
        in_path = tuple(re.findall(r"\{(\w+)\}", path))
        if missing := set(in_path) - set(declared):
            raise ValueError(f"{key}: the function has no parameter {missing}")
        fields: dict[str, Any] = {
            name: (hints[name], ... if p.default is p.empty else p.default)
            for name, p in declared.items()
            if name not in ("call", "body")
        }
        body = hints.get("body")
        response = hints["return"]
        streams = typing.get_origin(response) is AsyncIterator
        return Operation(
            method=method,
            path=path,
            permission=permission,
            rate=rate,
            name=function.__name__,
            doc=inspect.cleandoc(function.__doc__ or ""),
            function=function,
            path_parameters=in_path,
            parameters=create_model(
                f"{function.__name__}_parameters", __config__=ConfigDict(extra="forbid"), **fields
            ),
            body=body,
            body_optional=body is not None and accepts_empty(body),
            response=typing.get_args(response)[0] if streams else response,
            streams=streams,
        )

    return declare


def accepts_empty(model: type[BaseModel]) -> bool:
    """Tell whether every field of a model has a default, so that a body may be left out."""
    return not any(field.is_required() for field in model.model_fields.values())


def invalid(error: ValidationError) -> InvalidInput:
    """Turn pydantic's report into one sentence and a list, without echoing the input."""
    errors = [
        {"location": ".".join(str(part) for part in e["loc"]) or "body", "message": e["msg"]}
        for e in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    first = errors[0]
    more = f" ({len(errors) - 1} more in `errors`)" if len(errors) > 1 else ""
    return InvalidInput(f"{first['location']}: {first['message']}{more}.", errors=errors)


def adapter(annotation: Any) -> TypeAdapter[Any]:
    """Return the (de)serialiser of a response or event annotation."""
    return TypeAdapter(annotation)
