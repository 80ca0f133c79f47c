"""`uait budgets`: limits of calls, tokens, money and time, from the shell."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from uait_server_ext.errors import InvalidInput

from .state import DatabaseUrl, DataDir, MasterKeyUrl, Place, operator

if TYPE_CHECKING:
    from uait_server_ext.routing.budget import Budgets
    from uait_server_ext.routing.budget_models import Quantity
    from uait_server_ext.services import Foundation

COLUMNS = ("kind", "subject", "period", "limit", "used by", "used", "set aside")

app = typer.Typer(help="Limits of calls, tokens, money and time.", no_args_is_help=True)


@app.callback()
def place(
    context: typer.Context,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = "",
    master_key: MasterKeyUrl = "file:",
) -> None:
    """Limits of calls, tokens, money and time."""
    context.obj = Place(data_dir, database_url, master_key)


@app.command("list")
def list_budgets(context: typer.Context) -> None:
    """List the budgets and what is used of them in the present period."""
    from rich.console import Console
    from rich.table import Column, Table

    from uait_server_ext.routing.budget_models import Quantity

    with context.obj.opened() as foundation:
        found = asyncio.run(budgets_of(foundation).info())
    table = Table(Column("id", no_wrap=True), *COLUMNS)
    for budget in found:
        head = [budget.id, str(budget.kind), budget.subject, str(budget.period)]
        head.append(written(budget.limits))
        nothing = [("", Quantity(), Quantity())]
        for who, used, held in [(u.subject, u.used, u.held) for u in budget.use] or nothing:
            table.add_row(*head, who, written(used), written(held))
            head = [""] * 5
    Console().print(table)


@app.command("set")
def set_budget(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(help="server, principal, notebook or run.")],
    subject: Annotated[
        str, typer.Argument(help="A user's id, a path, a run's id; `*`: each its own.")
    ] = "",
    period: Annotated[str, typer.Option(help="day, month or total.")] = "month",
    calls: Annotated[int | None, typer.Option(help="Most calls of models.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Most tokens, prompts and answers.")] = None,
    usd: Annotated[float | None, typer.Option(help="Most US dollars.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Most seconds of models.")] = None,
) -> None:
    """Set a budget, or change the limits of the one of the same kind, subject and period."""
    from pydantic import ValidationError

    from uait_server_ext.routing.budget_models import BudgetContent

    limits = {"calls": calls, "tokens": tokens, "usd": usd, "seconds": seconds}
    try:
        content = BudgetContent.model_validate(
            {"kind": kind, "subject": subject, "period": period, "limits": limits}
        )
    except ValidationError as error:
        reasons = "; ".join(e["msg"] for e in error.errors(include_input=False))
        raise InvalidInput(f"{reasons}.") from None
    with context.obj.opened() as foundation:
        print(asyncio.run(budgets_of(foundation).put(operator(), content)).id)


@app.command("delete")
def delete_budget(
    context: typer.Context, budget: Annotated[str, typer.Argument(help="Its id.")]
) -> None:
    """Delete a budget with what was counted against it."""
    with context.obj.opened() as foundation:
        asyncio.run(budgets_of(foundation).remove(operator(), budget))
    print(f"{budget}: deleted")


def budgets_of(foundation: Foundation) -> Budgets:
    """Return the budgets on this state."""
    from uait_server_ext.routing.budget import Budgets

    return Budgets(foundation.database, audit=foundation.audit)


def written(quantity: Quantity) -> str:
    """Write what is limited or used in one line."""
    parts = (
        (quantity.calls, "{:,} calls"),
        (quantity.tokens, "{:,} tokens"),
        (quantity.usd, "${:,.2f}"),
        (quantity.seconds, "{:,.0f} s"),
    )
    return ", ".join(form.format(value) for value, form in parts if value is not None)
