"""`[policy]` of the routing file: strategy, limits, privacy pins, rules.

::

    [policy]
    strategy = "cascade"            # or difficulty, learned, smallest, largest
    dearest = "large"               # no stronger tier than this, whatever happens
    max_usd = 0.05                  # no call that may cost more
    target_seconds = 10             # wished, not enforced
    [policy.pins]
    everything = "private"          # no words leave the organisation
    notebooks = { "payroll/*" = "local" }
    collections = { "contracts" = "local" }
    [[policy.rules]]                # the first that fits decides; pins of all that fit add up
    when = { task = ["code"], min_difficulty = 0.6 }
    use = "large"
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from uait_server_ext.errors import InvalidInput
from uait_server_ext.inference.models import ChatRequest
from uait_server_ext.schema import Schema

from .difficulty import TaskClass
from .models import REACH, Caller, PrivacyClass

Strategy = Literal["cascade", "difficulty", "learned", "smallest", "largest"]
VerifierName = Literal["schema", "tests", "citations", "agreement", "logprob"]


class Entry(Schema):
    """A table of the file: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Pins(Entry):
    """How far words may travel, by whose they are; keys may hold `*`. The nearest bound counts."""

    everything: PrivacyClass = "public"
    principals: dict[str, PrivacyClass] = Field(default_factory=dict)
    notebooks: dict[str, PrivacyClass] = Field(default_factory=dict)
    runs: dict[str, PrivacyClass] = Field(default_factory=dict)
    collections: dict[str, PrivacyClass] = Field(default_factory=dict)

    def reaches(self, caller: Caller) -> Iterator[PrivacyClass]:
        """Yield every bound that holds for a caller."""
        yield self.everything
        yield caller.reach
        for name, pins in (
            (caller.principal, self.principals),
            (caller.notebook, self.notebooks),
            (caller.run, self.runs),
            (caller.collection, self.collections),
        ):
            if name is not None:
                yield from (bound for key, bound in pins.items() if fnmatchcase(name, key))


class When(Entry):
    """What a rule is about; everything that is given must hold."""

    task: list[TaskClass] = Field(default_factory=list)
    words: list[str] = Field(
        default_factory=list, description="One of them stands in the messages, in any case."
    )
    principals: list[str] = Field(default_factory=list, description="Ids; may hold `*`.")
    notebooks: list[str] = Field(default_factory=list, description="Paths; may hold `*`.")
    min_difficulty: float = Field(0.0, ge=0, le=1)
    max_difficulty: float = Field(1.0, ge=0, le=1)
    min_characters: int = Field(0, ge=0, description="Of all messages.")
    max_characters: int | None = Field(None, ge=0)

    def holds(
        self, request: ChatRequest, caller: Caller, task: TaskClass, difficulty: float
    ) -> bool:
        """Tell whether a request is what the rule is about."""
        if self.task and task not in self.task:
            return False
        if not self.min_difficulty <= difficulty <= self.max_difficulty:
            return False
        if self.principals and not fits(caller.principal, self.principals):
            return False
        if self.notebooks and not fits(caller.notebook, self.notebooks):
            return False
        length = sum(len(message.content) for message in request.messages)
        if length < self.min_characters:
            return False
        if self.max_characters is not None and length > self.max_characters:
            return False
        if not self.words:
            return True
        text = "\n".join(message.content for message in request.messages).casefold()
        return any(word.casefold() in text for word in self.words)


class Rule(Entry):
    """What to do with certain requests."""

    name: str = Field("", max_length=100)
    when: When = Field(default_factory=When)
    use: str | None = Field(None, description="This tier, and none that is dearer.")
    strategy: Strategy | None = None
    dearest: str | None = None
    max_usd: float | None = Field(None, ge=0)
    reach: PrivacyClass | None = Field(None, description="How far the words may travel.")

    @property
    def decides(self) -> bool:
        """Whether it says more than how far words may travel."""
        return any(x is not None for x in (self.use, self.strategy, self.dearest, self.max_usd))


class AgreementEntry(Entry):
    """When answers are verified by asking again."""

    tasks: list[TaskClass] = ["math"]  # noqa: RUF012  pydantic copies it
    samples: int = Field(2, ge=2, le=16)
    share: float = Field(1.0, gt=0, le=1)
    temperature: float = Field(0.7, gt=0, le=2)


class LogprobEntry(Entry):
    """Of how much a model must be sure."""

    least: float = Field(0.7, ge=0, le=1)
    margin: float = Field(0.8, ge=0, le=1)


class PolicySettings(Entry):
    """The whole table."""

    strategy: Strategy = "cascade"
    threshold: float = Field(
        0.5, ge=0, le=1, description="A request this hard goes to a stronger tier."
    )
    skip: float = Field(
        0.95, ge=0, le=1, description="A cascade leaves tiers out that a request this hard beats."
    )
    least_accepted: float = Field(
        0.1, ge=0, le=1, description="A cascade leaves a tier out of which less is accepted."
    )
    quality: float = Field(
        0.8, ge=0, le=1, description="`learned` takes the cheapest tier this good."
    )
    dearest: str | None = None
    max_usd: float | None = Field(None, ge=0)
    target_usd: float | None = Field(None, ge=0)
    target_seconds: float | None = Field(None, gt=0)
    verifiers: list[VerifierName] = ["schema", "tests", "citations", "agreement"]  # noqa: RUF012
    agreement: AgreementEntry = Field(default_factory=AgreementEntry)
    logprob: LogprobEntry = Field(default_factory=LogprobEntry)
    citation_share: float = Field(0.6, gt=0, le=1)
    learn: bool = True
    pins: Pins = Field(default_factory=Pins)
    rules: list[Rule] = Field(default_factory=list)

    @model_validator(mode="after")
    def check(self) -> PolicySettings:
        """Refuse a rule that says nothing."""
        for number, rule in enumerate(self.rules):
            if not rule.decides and rule.reach is None:
                raise ValueError(
                    f"rules.{number}: say what to do: use, strategy, dearest, max_usd or reach"
                )
        return self

    @cached_property
    def pinning_rules(self) -> tuple[Rule, ...]:
        """The rules that say how far words may travel."""
        return tuple(rule for rule in self.rules if rule.reach is not None)

    @cached_property
    def deciding_rules(self) -> tuple[Rule, ...]:
        """The rules that say more."""
        return tuple(rule for rule in self.rules if rule.decides)


def read_policy(entries: Mapping[str, Any], tiers: Collection[str]) -> PolicySettings:
    """Read the table.

    Args:
        tiers: the names of those there are.

    Raises:
        InvalidInput: it is not of this form, or names a tier that there is not.
    """
    try:
        settings = PolicySettings.model_validate(entries)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in ("policy", *first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"The routing file cannot be used: {where}: {message}.") from None
    named = {"policy.dearest": settings.dearest}
    for number, rule in enumerate(settings.rules):
        named[f"policy.rules.{number}.use"] = rule.use
        named[f"policy.rules.{number}.dearest"] = rule.dearest
    for where, name in named.items():
        if name is not None and name not in tiers:
            raise InvalidInput(
                f"The routing file cannot be used: {where}: there is no tier {name!r}."
            )
    return settings


def nearest(reaches: Iterator[PrivacyClass]) -> PrivacyClass:
    """Return the bound that is nearest to this machine."""
    return min(reaches, key=REACH.__getitem__)


def fits(name: str | None, patterns: list[str]) -> bool:
    """Tell whether one of the patterns holds for a name."""
    return name is not None and any(fnmatchcase(name, pattern) for pattern in patterns)
