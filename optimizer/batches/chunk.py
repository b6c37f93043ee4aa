"""A chunk of a batch: some whole portfolios, solved in one process by one call.

Everything that runs chunks in parallel, stores or streams them meets the solvers here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from equipoise.optimizer.batches.inputs import keyed
from equipoise.optimizer.batches.plain_tables import Message, compact, encode, joined, listed, typed
from equipoise.optimizer.batches.solve import RESULT_COLUMNS, Plans, solve_batch
from equipoise.optimizer.plans.plan import ORDER_COLUMNS, Plan
from equipoise.optimizer.problem.effort import Effort
from equipoise.optimizer.problem.solution import Status

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.optimizer.problem.policy import Policy

__all__ = ["Chunk", "empty", "flat", "from_messages", "keyed", "solve_chunk", "to_messages", "without_plans"]

_DEFAULT = Effort()
#: The columns that are not text, and their types.
RESULT_TYPES = {
    "verified": "bool",
    **dict.fromkeys(("nav", "objective", "bound", "gap", "tracking_error_before", "tracking_error"), "float64"),
    **dict.fromkeys(("turnover", "cost"), "float64"),
    "orders": "int64",
}
ORDER_TYPES = {**dict.fromkeys(("quantity", "price", "notional", "cost"), "float64"), "lots": "Int64"}


class Chunk(NamedTuple):
    """Some portfolios of a batch, in the order of their first rows.

    results: exactly one row a portfolio, indexed by portfolio_id; see `Plans.results`.
    orders: those of the verified plans, indexed by (portfolio_id, asset); see `Plans.orders`.
    """

    results: pd.DataFrame
    orders: pd.DataFrame


def solve_chunk(
    policy: Policy,
    table: pd.DataFrame,
    universe: frozenset[str],
    spent: Effort = _DEFAULT,
    begun: Callable[[], None] | None = None,
) -> Chunk:
    """The portfolios of a table. `universe`: the labels that rules may name beyond a portfolio's own; `begun`: see
    `solve_batch`.

    What a portfolio gets does not depend, in any bit, on the others in the table.
    """
    plans = solve_batch(policy, table, universe, spent, begun=begun)
    return Chunk(plans.results, plans.orders)


def without_plans(names: Sequence[Any], status: Status, message: str) -> Chunk:
    """The chunk of portfolios for which there is nothing but a reason."""
    plans = Plans.of([Plan(status, name, message) for name in names])
    return Chunk(plans.results, plans.orders)


def to_messages(chunk: Chunk) -> list[Message]:
    """Results and orders as plain arrays, with their keys as columns."""
    return [[*_keys(table.index), *encode(table)] for table in chunk]


def _keys(index: pd.Index) -> Message:
    import pandas as pd

    if isinstance(index, pd.MultiIndex):  # of orders, whose keys are text: its codes are there already
        return [
            (str(name), (np.asarray(codes, dtype=np.int32), level.tolist()))
            for name, codes, level in zip(index.names, index.codes, index.levels, strict=True)
        ]
    return encode(pd.DataFrame({index.name: pd.Series(list(index), dtype=object)}))


def flat(table: pd.DataFrame) -> pd.DataFrame:
    """Results or orders with their keys as columns. (reset_index would make numbers of ids such as 7 and None.)"""
    import pandas as pd

    keys = {
        name: pd.Series(list(table.index.get_level_values(i)), dtype=object) for i, name in enumerate(table.index.names)
    }
    return pd.concat([pd.DataFrame(keys), table.reset_index(drop=True)], axis=1)


def from_messages(parts: Sequence[Sequence[Message]]) -> Chunk:
    """One chunk of the results and orders of its parts, in their order; the same types whatever is in them."""
    results, orders = (joined(messages) for messages in zip(*parts, strict=True))
    return Chunk(frame(results, "results"), frame(orders, "orders"))


def frame(table: Message, what: Literal["results", "orders"]) -> pd.DataFrame:
    """Results or orders as a table with its keys as index; the same types whatever is in it."""
    if what == "results":
        return _frame(table, ["portfolio_id"], RESULT_COLUMNS, RESULT_TYPES)
    return _frame(table, ["portfolio_id", "asset"], ORDER_COLUMNS, ORDER_TYPES)


def _frame(table: Message, keys: list[str], columns: Sequence[str], types: Mapping[str, str]) -> pd.DataFrame:
    import pandas as pd

    given = dict(table)
    frame = pd.DataFrame({name: typed(given[name], types.get(name, "str")) for name in columns})
    if len(keys) == 1:
        return frame.set_axis(pd.Index(listed(given[keys[0]]), dtype=object, name=keys[0]), axis=0)
    texts: Any = [compact([(key, given[key])])[0][1] for key in keys]
    levels: Any = [pd.Index(cells, dtype=object) for _, cells in texts]
    return frame.set_axis(pd.MultiIndex(levels, [codes for codes, _ in texts], names=keys), axis=0)


def empty() -> Chunk:
    """No portfolios: what every chunk's columns and types are."""
    tables = ("portfolio_id", *RESULT_COLUMNS), ("portfolio_id", "asset", *ORDER_COLUMNS)
    return from_messages([[[(name, (np.empty(0, dtype=np.int32), [])) for name in names] for names in tables]])
