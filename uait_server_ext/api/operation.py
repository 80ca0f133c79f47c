"""`@operation`: one declaration = route + models + permission + rate class + documentation.

An operation is an async function. Its parameters say where they come from:

- the first, `call: Call`, is who calls and the services;
- a name in the path template is a path parameter;
- `body` is the JSON body, a pydantic model;
- every other parameter is a query parameter.

Its return annotation says what comes back: a pydantic model (JSON), `None` (204), `str` or `bytes`
(text of the declared content type), or `AsyncIterator[Event]` (server-sent events, the last of
which is the result).
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model

from uait_server_ext.errors import InvalidInput, Unauthenticated
from uait_server_ext.identity.principal import PERMISSIONS, Principal
from uait_server_ext.resilience.limits import RateClass

from .exchange import Reply, Request
from .parsing import parse_json

if TYPE_CHECKING:
    from uait_server_ext.services import Services

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
PREFIX = "/uait/v1"
"""The path under which our own operations are."""

PUBLIC = "public"
"""The permission of an operation that needs no login."""

PUBLIC_OPERATIONS = frozenset(
    {
        "GET /health/live",
        "GET /jwks.json",
        "GET /login/methods",
        "GET /login/oidc/{provider}",
        "GET /login/oidc/{provider}/callback",
        "POST /device",
        "POST /invitation",
        "POST /kernel-token",
        "POST /login",
        "POST /login/passkey",
        "POST /login/passkey/options",
        "POST /login/recovery",
        "POST /login/totp",
        "POST /password-reset",
        "POST /setup",
        "POST /token",
        "POST /token/revoke",
    }
)
"""The written list: an operation not named here cannot be declared public."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operation: who calls, how, and the services that answer."""

    caller: Principal | None
    services: Services
    request: Request = field(default_factory=Request)
    reply: Reply = field(default_factory=Reply)

    @property
    def principal(self) -> Principal:
        """Return who calls.

        Raises:
            Unauthenticated: nobody: only a public operation may be called so.
        """
        if self.caller is None:
            raise Unauthenticated("This operation needs a login.")
        return self.caller


@dataclass(frozen=True)
class Operation:
    """A declared operation; built by `operation`, run by the handler, described by OpenAPI.

    What its annotations say is worked out when it is first called: a start declares some seventy
    operations and calls few.
    """

    method: Method
    path: str
    permission: str
    rate: RateClass
    name: str
    doc: str
    function: Callable[..., Any]
    path_parameters: tuple[str, ...]
    sensitive: bool = False
    secret: bool = False
    open_query: bool = False
    tool: bool = False
    content_type: str = "application/json"
    prefix: str = PREFIX

    @cached_property
    def hints(self) -> dict[str, Any]:
        """Return the function's annotations, resolved."""
        return typing.get_type_hints(self.function, include_extras=True)

    @cached_property
    def parameters(self) -> type[BaseModel]:
        """Return the model of path and query parameters."""
        fields: dict[str, Any] = {
            name: (self.hints[name], ... if p.default is p.empty else p.default)
            for name, p in inspect.signature(self.function).parameters.items()
            if name not in ("call", "body")
        }
        config = ConfigDict(extra="ignore" if self.open_query else "forbid")
        return create_model(f"{self.name}_parameters", __config__=config, **fields)

    @property
    def body(self) -> type[BaseModel] | None:
        """Return the model of the JSON body, none where there is no body."""
        return self.hints.get("body")

    @property
    def body_optional(self) -> bool:
        """Tell whether the body may be left out."""
        return self.body is not None and accepts_empty(self.body)

    @cached_property
    def streams(self) -> bool:
        """Tell whether the answer is a stream of events."""
        return typing.get_origin(self.hints["return"]) is AsyncIterator

    @property
    def response(self) -> Any:
        """Return the annotation of the answer, or of a stream's events."""
        response = self.hints["return"]
        return typing.get_args(response)[0] if self.streams else response

    @property
    def key(self) -> str:
        """Return `METHOD /path`, the operation's identity in tests, logs and docs."""
        return f"{self.method} {'' if self.prefix == PREFIX else self.prefix}{self.path}"

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
                check_json(content)
                # Strict: `true` is no number and `"7"` is none, as the description says.
                arguments["body"] = self.body.model_validate_json(content, strict=True)
            elif body.strip():
                raise InvalidInput(f"{self.key} takes no request body. Send none.")
        except ValidationError as error:
            raise invalid(error) from None
        return arguments


def operation(
    method: Method,
    path: str,
    *,
    permission: str,
    rate: RateClass,
    sensitive: bool = False,
    secret: bool = False,
    open_query: bool = False,
    tool: bool = False,
    content_type: str = "application/json",
    prefix: str = PREFIX,
) -> Callable[[Callable[..., Any]], Operation]:
    """Declare an operation on an async function (or async generator function).

    Args:
        sensitive: it needs a recent proof of who calls: a fresh login, or a signed request where
            an API key calls.
        secret: its answer holds a secret, which no store of answers may keep.
        open_query: query parameters that are not declared are ignored and not refused.
        tool: a model may be given it as a tool: it only reads, and its answer is short.
        content_type: of the answer, where that is text.
        prefix: the path that the operation's own is below.

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
        in_path = tuple(re.findall(r"\{(\w+)\}", path))
        if missing := set(in_path) - set(inspect.signature(function).parameters):
            raise ValueError(f"{key}: the function has no parameter {missing}")
        return Operation(
            method=method,
            path=path,
            permission=permission,
            rate=rate,
            name=function.__name__,
            doc=inspect.cleandoc(function.__doc__ or ""),
            function=function,
            path_parameters=in_path,
            sensitive=sensitive,
            secret=secret,
            open_query=open_query,
            tool=tool,
            content_type=content_type,
            prefix=prefix,
        )

    return declare


def check_json(content: bytes) -> None:
    """Refuse a body that is not JSON within the bounds, in the form of every bad input."""
    try:
        parse_json(content)
    except InvalidInput as error:
        error.extensions.setdefault("errors", [{"location": "body", "message": error.detail}])
        raise


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
