"""Operations on budgets: read what is left, set limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from uait_server_ext.api.operation import Call, operation
from uait_server_ext.routing.budget_models import BudgetContent, BudgetInfo
from uait_server_ext.schema import Schema

BudgetId = Annotated[str, Field(min_length=1, max_length=40)]


class BudgetList(Schema):
    """Budgets and what is used of them."""

    budgets: list[BudgetInfo]


@operation("GET", "/budgets", permission="budgets:read", rate="read")
async def list_budgets(call: Call) -> BudgetList:
    """List the budgets that your calls go against; all budgets for who may set them."""
    budgets = await call.services.budgets()
    everything = call.principal.may("budgets:write")
    return BudgetList(budgets=await budgets.info(None if everything else call.principal.id))


@operation("PUT", "/budgets", permission="budgets:write", rate="write")
async def set_budget(call: Call, body: BudgetContent) -> BudgetInfo:
    """Set a budget, or change the limits of the one of the same kind, subject and period."""
    budgets = await call.services.budgets()
    return await budgets.put(call.principal, body, address=call.request.address)


@operation("DELETE", "/budgets/{budget}", permission="budgets:write", rate="write")
async def delete_budget(call: Call, budget: BudgetId) -> None:
    """Delete a budget with what was counted against it."""
    budgets = await call.services.budgets()
    await budgets.remove(call.principal, budget, address=call.request.address)
