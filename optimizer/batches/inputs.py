"""How the table of a batch is read: as stacks of portfolios, and one by one what no stack takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from equipoise.constraints.errors import InputError, NotStackable
from equipoise.optimizer.portfolio.columns import coded
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.portfolio.stack import Odd, Stack
from equipoise.optimizer.portfolio.stack import stacks as stacked_and_odd
from equipoise.optimizer.problem.solution import Status
from equipoise.optimizer.risk.models import SquaredDistance, stacks

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.optimizer.problem.policy import Policy


def keyed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with portfolio_id and asset as columns, each there once."""
    if not (hasattr(table, "columns") and hasattr(table, "index")):
        raise InputError("a batch is a DataFrame with the columns portfolio_id and asset", value=type(table))
    for key in ("portfolio_id", "asset"):
        places = [*table.columns, *(table.index.names or ())].count(key)
        if places != 1:
            what = "needs a column" if not places else "has more than one column or index level"
            raise InputError(f"a batch {what} {key}", column=key)
    levels = [key for key in ("portfolio_id", "asset") if key in table.index.names]
    return table.reset_index(level=levels).reset_index(drop=True) if levels else table.reset_index(drop=True)


def labels(table: pd.DataFrame) -> set[str]:
    """The text labels among a batch's assets: what its rules may name."""
    labels = set(coded(table["asset"]).names)
    if "account" in table.columns:  # with several accounts, a row's label is that of both
        labels |= {f"{account}/{asset}" for account, asset in zip(table["account"], table["asset"], strict=True)}
    return labels


def known(policy: Policy, table: pd.DataFrame, universe: Iterable[str] | None = None) -> frozenset[str]:
    """What rules may name: the assets of the risk model, and the universe, by default the labels of the table."""
    return frozenset({*getattr(policy.risk, "assets", ()), *(labels(table) if universe is None else universe)})


def stacked(policy: Policy, table: pd.DataFrame, known: frozenset[str]) -> tuple[list[Stack], list[Odd]]:
    """The portfolios of a table with the columns portfolio_id and asset, and those that no stack takes."""
    # Portfolios in several accounts are read one by one: without quantities nothing is stacked.
    return stacked_and_odd(
        table[["portfolio_id", "asset"]] if policy.accounts else table,
        policy.settlement,
        known=known,
        label_columns=policy.label_columns,
        same_assets=not stacks(policy.risk or SquaredDistance()),
    )


def portfolio(policy: Policy, table: pd.DataFrame, odd: Odd, known: frozenset[str]) -> Portfolio:
    """A portfolio that no stack takes. Raises InputError."""
    if not isinstance(odd.name, str):
        raise InputError(
            "a portfolio_id must be text; read ids as text (equipoise.read_table, or dtype=str)",
            column="portfolio_id",
            value=odd.name,
        )
    if not odd.name or odd.name != odd.name.strip():
        raise InputError(
            "a portfolio_id must not be empty or have white space around it", column="portfolio_id", value=odd.name
        )
    rows = table.drop(columns="portfolio_id").iloc[odd.rows]
    return policy.portfolio(rows, name=odd.name, universe=known)


def unreadable(policy: Policy, table: pd.DataFrame, refused: Mapping[object, str]) -> list[str]:
    """What is wrong with each portfolio that `solve_batch` would not read, in the order of their first rows."""
    table = keyed(table)
    names = known(policy, table)
    found, alone = stacked(policy, table, names)
    for stack in found:
        alone += _not_taken(policy, stack, refused)
    wrong = []
    for one in sorted(alone, key=lambda odd: odd.place):
        try:
            if one.name in refused:
                raise InputError(refused[one.name], portfolio=one.name)
            policy.problem(portfolio(policy, table, one, names))
        except InputError as error:
            wrong.append(str(error))
    return wrong


def _not_taken(policy: Policy, stack: Stack, refused: Mapping[object, str]) -> list[Odd]:
    """Those of a stack to which the rules do not apply as they stand, or which are refused."""
    out = np.array([name in refused for name in stack.names], dtype=bool)
    try:
        policy.stacked(stack)
    except NotStackable as turn:
        out |= True if turn.portfolios is None else turn.portfolios
    except InputError:
        out[:] = True
    odd = [Odd(int(stack.places[i]), stack.names[i], stack.rows[i]) for i in np.flatnonzero(out)]
    again = not out.all() and out.any()  # others may stand in the way next
    return odd + (_not_taken(policy, stack.take(~out), {}) if again else [])


def check_readable(statuses: Mapping[str, int], first: str) -> None:
    """Raises InputError if no portfolio of a batch could be read: that is a bad table, and replaces no file.

    statuses: how many portfolios ended how. first: what is said of the first.
    """
    if statuses and set(statuses) == {Status.INVALID_INPUT.name}:
        raise InputError(f"none of {sum(statuses.values()):,} portfolios can be read, nothing is written; {first}")
