"""The one file of routing: providers, their models, tiers, cache and failover, as TOML.

::

    [providers.team]                       # any server that speaks the OpenAI protocol
    url = "https://models.example.org/v1"
    key = "vault:team-models"              # a shared secret's name; never the key itself
    privacy = "private"
    [providers.team.models.large]
    name = "qwen3-32b"                     # its name there
    price = { input = 0.4, output = 1.2 }  # US dollars per million tokens
    context_tokens = 32768
    capabilities = ["tools", "json_schema", "seed"]

    [[tiers]]                              # the weakest first
    name = "small"
    models = ["local/smollm2-135m-instruct"]
    [[tiers]]
    name = "large"
    models = ["team/large"]

`[policy]` is read by `policy.py`; budgets are set while the server runs, and kept in the database.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, ValidationError, model_validator

from uait_server_ext.errors import InvalidInput
from uait_server_ext.schema import Schema

from .models import LOCAL, Capability, Limits, Price, PrivacyClass, Target, Tier

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
TargetId = Annotated[
    str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}/[A-Za-z0-9][A-Za-z0-9._+@-]{0,99}$")
]
KeyReference = Annotated[str, Field(pattern=r"^vault:[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]

OPENAI_CAPABILITIES: tuple[Capability, ...] = (
    "tools",
    "json_object",
    "json_schema",
    "seed",
    "penalties",
)
"""What a model at an OpenAI-compatible server is taken to honour where the file does not say."""

LOCAL_CAPABILITIES: frozenset[Capability] = frozenset(
    (*OPENAI_CAPABILITIES, "regex", "logprobs", "top_k", "min_p", "vision")
)
"""A local model refuses by itself what its backend cannot do."""


class Entry(Schema):
    """A table of the file: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PriceEntry(Entry):
    """US dollars per million tokens."""

    input: float = Field(0.0, ge=0)
    output: float = Field(0.0, ge=0)


class ModelEntry(Entry):
    """One model at a provider."""

    name: str = Field("", max_length=200, description="Its name there; default: the same.")
    price: PriceEntry = PriceEntry()
    context_tokens: int | None = Field(None, ge=1)
    capabilities: list[Capability] | None = None
    concurrent: int | None = Field(None, ge=1, description="Requests at once.")
    requests_per_minute: int | None = Field(None, ge=1)


class BreakerEntry(Entry):
    """When calls to a provider's model stop for a while; on for every one."""

    window_seconds: float = Field(60.0, gt=0)
    least_calls: int = Field(4, ge=1)
    failure_rate: float = Field(0.7, gt=0, le=1)
    slow_seconds: float = Field(20.0, gt=0, description="To the first token.")
    slow_rate: float = Field(0.8, gt=0, le=1)
    open_seconds: float = Field(5.0, gt=0, description="Doubled by each failed probe, up to 60.")


class ProviderEntry(Entry):
    """Where models run."""

    kind: Literal["local", "openai", "litellm"] = "openai"
    url: str = Field("", description="Base of the API, with its `/v1`.")
    key: KeyReference | None = None
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    privacy: PrivacyClass = "public"
    guarded: bool = Field(
        False, description="Connect to public addresses only: for a URL that a user has set."
    )
    connect_seconds: float = Field(5.0, gt=0)
    first_token_seconds: float = Field(60.0, gt=0)
    idle_seconds: float = Field(30.0, gt=0, description="Between two pieces of an answer.")
    attempts: int = Field(3, ge=1, le=10, description="At one request, before its first token.")
    breaker: BreakerEntry = BreakerEntry()
    models: dict[str, ModelEntry] = Field(default_factory=dict)

    @model_validator(mode="after")
    def complete(self) -> ProviderEntry:
        """Refuse what cannot work, or would tell a secret."""
        if self.kind == "openai":
            check_address(self)
            if any("regex" in (model.capabilities or ()) for model in self.models.values()):
                raise ValueError("the OpenAI protocol has no answers by `regex`")
        elif self.url:
            raise ValueError(f"a provider of kind `{self.kind}` has no `url`")
        if self.kind == "local" and (self.key or self.privacy != LOCAL):
            raise ValueError('the local provider has no `key`, and `privacy = "local"`')
        if self.kind == "litellm" and self.privacy == LOCAL:
            raise ValueError("LiteLLM sends prompts away: `privacy` cannot be `local`")
        return self


class TierEntry(Entry):
    """Models of one strength, in the order in which they are tried."""

    name: Name
    models: list[TargetId] = Field(min_length=1)
    hedge_seconds: float | None = Field(
        None, gt=0, description="Ask the next model, too, where no token came for so long."
    )


class CacheEntry(Entry):
    """The cache of answers; off unless switched on."""

    exact: bool = False
    semantic: bool = False
    threshold: float = Field(0.97, gt=0, le=1, description="Least cosine similarity.")
    entries: int = Field(1000, ge=1)
    megabytes: float = Field(64.0, gt=0)
    seconds: float = Field(86_400.0, gt=0, description="How long an answer is kept.")
    on_disk: bool = Field(False, description="Keep exact answers over a restart (SQLite).")


class FailoverEntry(Entry):
    """What happens when a model fails."""

    mid_stream: Literal["event", "error"] = Field(
        "event", description="After the first token: begin anew elsewhere and say so, or end."
    )
    local: bool = Field(
        True, description="Answer with the local model, and a note, where `auto` finds no other."
    )


class RoutingFile(Entry):
    """The whole file."""

    providers: dict[Name, ProviderEntry] = Field(default_factory=dict)
    tiers: list[TierEntry] = Field(default_factory=list)
    cache: CacheEntry = CacheEntry()
    failover: FailoverEntry = FailoverEntry()
    policy: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def known(self) -> RoutingFile:
        """Refuse tiers that name what there is not."""
        if LOCAL in self.providers and self.providers[LOCAL].kind != "local":
            raise ValueError("providers.local: the name belongs to the models of this machine")
        seen: set[str] = set()
        for number, tier in enumerate(self.tiers):
            if tier.name in seen:
                raise ValueError(f"tiers.{number}.name: there are two tiers {tier.name!r}")
            seen.add(tier.name)
            for place, named in enumerate(tier.models):
                provider, _, model = named.partition("/")
                where = f"tiers.{number}.models.{place}"
                if provider == LOCAL:
                    continue
                if provider not in self.providers:
                    raise ValueError(f"{where}: there is no provider {provider!r}")
                if model not in self.providers[provider].models:
                    raise ValueError(f"{where}: the provider {provider!r} has no model {model!r}")
        return self


@dataclass(frozen=True, slots=True)
class Routing:
    """The file, read: what the router works with."""

    file: RoutingFile
    tiers: tuple[Tier, ...]
    targets: dict[str, Target]
    """By their id, remote ones and the local ones that the file names."""

    def provider(self, name: str) -> ProviderEntry:
        """Return a provider's settings; the local one's are the defaults where it has none."""
        return self.file.providers.get(name) or LOCAL_PROVIDER

    def hedge_seconds(self, tier: str) -> float | None:
        """Return after how long a tier's next model is asked, too."""
        return next((t.hedge_seconds for t in self.file.tiers if t.name == tier), None)


LOCAL_PROVIDER = ProviderEntry(
    # A first request loads the model: minutes. What died with its worker is tried once more.
    kind="local",
    privacy="local",
    first_token_seconds=600.0,
    idle_seconds=120.0,
    attempts=2,
    breaker=BreakerEntry(slow_seconds=300.0),
)


def read_routing(path: Path | None) -> Routing:
    """Read the file; without one there are the models of this machine.

    Raises:
        InvalidInput: it cannot be read; the message names line and field.
    """
    if path is None or not path.exists():
        return routing_of(RoutingFile())
    try:
        text = path.read_text("utf-8")
        return routing_of(parse(text))
    except OSError as error:
        reason = error.strerror or type(error).__name__
    except (ValueError, ValidationError) as error:  # also TOMLDecodeError, UnicodeDecodeError
        reason = explain(error, text if "text" in locals() else "")
    raise InvalidInput(f"{path.name} cannot be used: {reason}. Correct it and start again.")


def parse(text: str) -> RoutingFile:
    """Read the text of the file.

    Raises:
        ValueError: it is no TOML, or not of this form (pydantic's `ValidationError`).
    """
    return RoutingFile.model_validate(tomllib.loads(text))


def routing_of(file: RoutingFile) -> Routing:
    """Build targets and tiers."""
    targets = {
        f"{provider}/{model}": target_of(provider, settings, model, entry)
        for provider, settings in file.providers.items()
        for model, entry in settings.models.items()
    }
    for named in (name for tier in file.tiers for name in tier.models):
        provider, _, model = named.partition("/")
        if provider == LOCAL:
            targets.setdefault(named, local_target(model))
    tiers = tuple(
        Tier(tier.name, rank, tuple(targets[name] for name in tier.models))
        for rank, tier in enumerate(file.tiers)
    )
    return Routing(file, tiers, targets)


def target_of(provider: str, settings: ProviderEntry, model: str, entry: ModelEntry) -> Target:
    """Build the target of one model."""
    assumed = LOCAL_CAPABILITIES if settings.kind == "local" else OPENAI_CAPABILITIES
    return Target(
        provider=provider,
        model=model,
        name=entry.name or model,
        price=Price(entry.price.input, entry.price.output),
        privacy=settings.privacy,
        capabilities=frozenset(assumed if entry.capabilities is None else entry.capabilities),
        context_tokens=entry.context_tokens,
        limits=Limits(entry.concurrent, entry.requests_per_minute),
    )


def local_target(model: str) -> Target:
    """Return the target of a model of this machine, of which the file says nothing more."""
    return Target(
        provider=LOCAL,
        model=model,
        name=model,
        privacy=LOCAL,
        capabilities=LOCAL_CAPABILITIES,
    )


def check_address(provider: ProviderEntry) -> None:
    """Refuse an address that does not fit what is said of it."""
    parts = urlsplit(provider.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("`url` must begin with https:// or http:// and name a host")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("`url` holds a user, a query or a fragment: keys belong into the vault")
    loopback = is_loopback(parts.hostname)
    if provider.privacy == LOCAL and not loopback:
        raise ValueError("`privacy` is `local`, but the `url` leaves this machine")
    if parts.scheme == "http" and provider.key and provider.privacy == "public" and not loopback:
        raise ValueError("the key would travel in the clear: use https://")


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def explain(error: ValueError, text: str) -> str:
    """Say what is wrong and where: `line 4, providers.team.url: …`, never what the value is."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    where = ".".join(str(part) for part in first["loc"])
    if not where and (named := re.match(r"([\w.-]+\.[\w-]+): ", message)):
        where, message = named[1], message[named.end() :]
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    line = line_of(text, where.split("."))
    return f"{f'line {line}, ' if line else ''}{where}: {message}{more}"


def line_of(text: str, path: list[str]) -> int | None:
    """Return the line on which a field is written, or the nearest table around it."""
    best: tuple[int, int | None] = (0, None)
    table: list[str] = []
    arrays: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if header := re.match(r"\[\[\s*([^\]]+?)\s*\]\]", stripped):
            name = header[1]
            arrays[name] = arrays.get(name, -1) + 1
            table = here = [*parts(name), str(arrays[name])]
        elif header := re.match(r"\[\s*([^\]]+?)\s*\]", stripped):
            table = here = parts(header[1])
            if table and table[0] in arrays:
                table = here = [table[0], str(arrays[table[0]]), *table[1:]]
        elif key := re.match(r"""([\w."'-]+)\s*=""", stripped):
            here = [*table, *parts(key[1])]
        else:
            continue
        if len(here) > best[0] and here == path[: len(here)]:
            best = (len(here), number)
    return best[1]


def parts(dotted: str) -> list[str]:
    """Return the keys of a dotted TOML key; quoted ones without their quotes."""
    return [found.strip("\"'") for found in re.findall(r"\"[^\"]*\"|'[^']*'|[^.\s]+", dotted)]
