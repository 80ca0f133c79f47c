"""Three tiers: on this machine, in the organisation, anywhere."""

from __future__ import annotations

from typing import Any, get_args

from uait_server_ext.inference.models import ChatRequest
from uait_server_ext.routing.models import Capability, Price, PrivacyClass, Target, Tier

ALL: frozenset[Capability] = frozenset(get_args(Capability))


def tier(
    name: str, rank: int, privacy: PrivacyClass, price: float, able: frozenset[Capability] = ALL
) -> Tier:
    target = Target(
        "local" if privacy == "local" else "far",
        name,
        name,
        Price(price, 2 * price),
        privacy,
        able,
    )
    return Tier(name, rank, (target,))


SMALL = tier("small", 0, "local", 0.0)
MIDDLE = tier("middle", 1, "private", 1.0)
LARGE = tier("large", 2, "public", 10.0)
TIERS = (SMALL, MIDDLE, LARGE)
SUM = "Ann has 3 apples and buys 4 more. How many apples are there in total?"


def request(text: str = SUM, **options: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": text}], **options})
