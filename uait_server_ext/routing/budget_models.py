"""What a budget is: whose, for how long, how much. Amounts are whole numbers of `tables.UNITS`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, NamedTuple

from pydantic import ConfigDict, Field, model_validator

from uait_server_ext.inference.models import ChatRequest
from uait_server_ext.schema import Schema

from .models import Amount, Caller, Price

BudgetKind = Literal["server", "principal", "notebook", "run"]
Period = Literal["day", "month", "total"]
EACH = "*"
"""The subject of a budget that each of its kind has for itself."""

MAX_SUBJECT = 300
IMAGE_TOKENS = 4096
"""More than the vision models of today make of one image."""

USUAL_SECONDS = 60.0
MESSAGE_TOKENS = 32
"""More than a chat template adds to a message."""


class Units(NamedTuple):
    """An amount in whole numbers, in the order of `tables.UNITS`."""

    calls: int = 0
    tokens: int = 0
    micro_usd: int = 0
    milliseconds: int = 0


class Quantity(Schema):
    """How much of each: limits (none: no limit), or what is used."""

    model_config = ConfigDict(extra="forbid")

    calls: int | None = Field(None, ge=0, le=10**15, description="Calls of models.")
    tokens: int | None = Field(None, ge=0, le=10**15, description="Of prompts and answers.")
    usd: Annotated[float, Field(ge=0, le=10**9, allow_inf_nan=False)] | None = None
    seconds: Annotated[float, Field(ge=0, le=10**9, allow_inf_nan=False)] | None = Field(
        None, description="Of models at work."
    )


class BudgetContent(Schema):
    """A budget to be set: whose, for how long, how much."""

    model_config = ConfigDict(extra="forbid")

    kind: BudgetKind = Field(description="`server`: everybody together.")
    subject: str = Field(
        "",
        max_length=MAX_SUBJECT,
        description="A user's id, a notebook's path, a run's id; `*`: each of them its own, where "
        "none is set for it by name. Empty for the server.",
    )
    period: Period = Field(description="`day` and `month` of the calendar in UTC.")
    limits: Quantity

    @model_validator(mode="after")
    def check(self) -> BudgetContent:
        """Refuse a budget of nobody, and one that limits nothing."""
        if (self.kind == "server") != (not self.subject):
            raise ValueError("subject: empty for the server, else an id or `*`")
        if all(value is None for value in self.limits.model_dump().values()):
            raise ValueError("limits: set at least one of calls, tokens, usd, seconds")
        return self


class BudgetUse(Schema):
    """What one subject has used of a budget in the present period."""

    subject: str
    used: Quantity
    held: Quantity = Field(description="Set aside for calls under way.")
    resets_at: float | None = Field(description="Seconds since the epoch; null: never.")


class BudgetInfo(BudgetContent):
    """A budget and what is used of it, most first."""

    id: str
    use: list[BudgetUse] = Field(description="At most 100.")


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget as it is enforced; `limits` in the order of `tables.UNITS`."""

    id: str
    kind: BudgetKind
    subject: str
    period: Period
    limits: tuple[int | None, ...]


class Line(NamedTuple):
    """One counter that a call goes against."""

    budget: Budget
    subject: str
    period_start: int

    @property
    def key(self) -> tuple[str, str, int]:
        """The primary key of its row."""
        return self.budget.id, self.subject, self.period_start


def units(amount: Amount) -> Units:
    """Round an amount up to whole numbers."""
    return Units(
        amount.calls,
        amount.tokens,
        math.ceil(amount.usd * 1e6 - 1e-6),
        math.ceil(amount.seconds * 1e3 - 1e-6),
    )


def limits_of(quantity: Quantity) -> tuple[int | None, ...]:
    """Return limits in whole numbers, rounded down."""
    usd, seconds = quantity.usd, quantity.seconds
    return (
        quantity.calls,
        quantity.tokens,
        None if usd is None else math.floor(usd * 1e6 + 1e-6),
        None if seconds is None else math.floor(seconds * 1e3 + 1e-6),
    )


def quantity(values: Iterable[int | None]) -> Quantity:
    """Return whole numbers as people read them; none stays none."""
    calls, tokens, micro_usd, milliseconds = values
    return Quantity(
        calls=calls,
        tokens=tokens,
        usd=None if micro_usd is None else micro_usd / 1e6,
        seconds=None if milliseconds is None else milliseconds / 1e3,
    )


def period_start(period: Period, at: float) -> int:
    """Return when the period in which a moment lies began, 0 for `total`."""
    if period == "total":
        return 0
    if period == "day":
        return int(at) // 86_400 * 86_400
    moment = datetime.fromtimestamp(at, UTC)
    return int(datetime(moment.year, moment.month, 1, tzinfo=UTC).timestamp())


def period_end(period: Period, start: int) -> int | None:
    """Return when a period ends, none where it never does."""
    if period == "total":
        return None
    if period == "day":
        return start + 86_400
    later = datetime.fromtimestamp(start, UTC) + timedelta(days=31)
    return int(datetime(later.year, later.month, 1, tzinfo=UTC).timestamp())


def lines(budgets: Iterable[Budget], caller: Caller, at: float) -> list[Line]:
    """Return what a caller's call goes against now, in an order that all calls keep."""
    named: dict[str, str | None] = {
        "server": "",
        "principal": caller.principal,
        "notebook": caller.notebook,
        "run": caller.run,
    }
    found: dict[tuple[str, str], Line] = {}
    for budget in budgets:
        name = named[budget.kind]
        if name is None or budget.subject not in (EACH, name):
            continue
        # Two people may each have a notebook of that name.
        own = budget.kind == "notebook" and budget.subject == EACH
        subject = shortened(f"{caller.principal}/{name}" if own else name)
        place = (budget.kind, budget.period)
        if place not in found or budget.subject != EACH:
            found[place] = Line(budget, subject, period_start(budget.period, at))
    return sorted(found.values(), key=lambda line: line.key)


def shortened(subject: str) -> str:
    """Return a subject that fits into its column."""
    if len(subject) <= MAX_SUBJECT:
        return subject
    return f"sha256:{hashlib.sha256(subject.encode()).hexdigest()}"


def worst_case(request: ChatRequest, price: Price) -> Amount:
    """Return the most that one call can take.

    A byte-level tokenizer makes at most one token of a byte, so that the prompt's bytes bound its
    tokens: some four times what English takes. What is not used comes back when the call ends.
    A call without a deadline is taken to last a minute.

    Args:
        price: of the dearest target that may answer.
    """
    prompt = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts(request))
    prompt += MESSAGE_TOKENS * (len(request.messages) + 1)
    prompt += IMAGE_TOKENS * sum(len(message.images) for message in request.messages)
    usd = (prompt * price.input + request.max_tokens * price.output) / 1e6
    seconds = request.deadline_seconds or USUAL_SECONDS
    return Amount(1, prompt + request.max_tokens, usd, seconds)


def texts(request: ChatRequest) -> Iterator[str]:
    """Yield all text of a request that a model reads."""
    for message in request.messages:
        yield message.content
        for call in message.tool_calls:
            yield call.name + call.arguments
    for tool in request.tools:
        yield tool.model_dump_json()
    if request.response_format.type != "text":
        yield request.response_format.model_dump_json()
