"""Plans as files: CSV tables for people and spreadsheets, JSON for machines and for the record.

The bytes depend on the inputs alone: no clock, no paths, no set order. Quantities, prices and notionals are
written as the exact decimal numbers that were verified.
Text is guarded in CSV files (see `csv_cells`); JSON has it as it is.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import exact
from equipoise.optimizer.batches import whole_files
from equipoise.optimizer.batches.csv_cells import SCHEMA_VERSION, csv_text, plain
from equipoise.optimizer.batches.solve import Plans
from equipoise.optimizer.command.policy_file import PolicyFile
from equipoise.optimizer.plans.plan import ORDER_COLUMNS, TRANSFER_COLUMNS, Plan
from equipoise.optimizer.sequence.listing import NONE, SLICES

if TYPE_CHECKING:
    import pandas as pd

#: What is written as JSON.
Document: TypeAlias = dict[str, Any]


def plan_json(plan: Plan, policy: PolicyFile, inputs: Mapping[str, str]) -> str:
    """The whole plan: orders, weights, checks, certificate, solver attempts, and what it was made from.

    `inputs`: the SHA-256 of each input file by its role. What is not a finite number is null: a bound that is
    not there, a health factor without a debt.
    """
    solution = plan.solution
    before, after = plan.tracking_error
    record = {
        "schema_version": SCHEMA_VERSION,
        "portfolio": plan.name,
        "status": plan.status.name,
        "sentence": plan.status.value,
        "verified": plan.status.ok,
        "message": plan.message,
        "cash": policy.rebalancer.cash,
        "orders": order_records(plan),
        "transfers": transfer_records(plan),
        "sequence": _sequence(plan),
        "positions": _positions(plan),
        "weights": _records(plan.weights),
        "figures": {
            "nav": plan.problem.portfolio.nav if plan.problem else None,
            "tracking_error_before": before,
            "tracking_error": after,
            "turnover": plan.turnover,
            "cost": plan.cost,
        },
        "certificate": {
            "unit": "fractions of NAV per year",
            "objective": plan.objective,
            "bound": plan.bound,
            "gap": plan.gap,
        },
        "checks": _records(plan.checks),
        "solver": {
            "name": plan.solver,
            "attempts": [
                {"solver": attempt.solver, "said": attempt.said, "verdict": attempt.verdict}
                for attempt in (solution.attempts if solution else ())
            ],
        },
        "policy": {"sha256": policy.digest, "text": policy.text},
        "inputs": dict(inputs),
        "versions": versions(),
    }
    return json.dumps(plain(record), indent=1, allow_nan=False) + "\n"


def order_records(plan: Plan) -> list[Document]:
    """The orders as `Plan.orders` has them, with exact numbers (Fractions) for quantity, price and notional."""
    if plan.problem is None or not plan.status.ok:
        return []
    portfolio = plan.problem.portfolio
    at = {asset: i for i, asset in enumerate(portfolio.assets)}
    records = _records(plan.orders)
    for record in records:
        i = at[record["asset"]]
        quantity, price = abs(plan.trades[i]), portfolio.exact_price[i]
        record |= {"quantity": quantity, "price": price, "notional": quantity * price}
    return records


def transfer_records(plan: Plan) -> list[Document]:
    """The transfers as `Plan.transfers` has them, with exact numbers for quantity and value."""
    if plan.problem is None or plan.problem.accounts is None or not plan.status.ok:
        return []
    moved = [i for i in range(plan.problem.accounts.rows, len(plan.trades)) if plan.trades[i]]
    records = _records(plan.transfers)
    for record, i in zip(records, moved, strict=True):
        quantity = abs(plan.trades[i])
        record |= {"quantity": quantity, "value": quantity * plan.problem.portfolio.exact_price[i]}
    return records


def plan_files(plan: Plan, policy: PolicyFile, inputs: Mapping[str, str]) -> dict[str, str]:
    """What `equipoise solve` writes; the orders last, so that whoever sees them finds the rest."""
    contents = {
        "plan.json": plan_json(plan, policy, inputs),
        "weights.csv": csv_text(_records(plan.weights), ("asset", *plan.weights.columns)),
        "checks.csv": csv_text(_records(plan.checks), tuple(plan.checks.columns)),
    }
    if policy.rebalancer.accounts:
        contents["transfers.csv"] = csv_text(transfer_records(plan), TRANSFER_COLUMNS)
    return contents | {"orders.csv": csv_text(order_records(plan), ("asset", *ORDER_COLUMNS))}


def batch_files(plans: Plans, policy: PolicyFile, inputs: Mapping[str, str], summary: Document) -> dict[str, str]:
    """What `equipoise batch` writes."""
    orders = _records(plans.orders)
    for order in orders:
        # A float is the decimal number that shows it.
        quantity, price = exact(order["quantity"]), exact(order["price"])
        order |= {"quantity": quantity, "price": price, "notional": quantity * price}
    record = {
        "schema_version": SCHEMA_VERSION,
        **summary,
        "policy": {"sha256": policy.digest, "text": policy.text},
        "inputs": dict(inputs),
        "versions": versions(),
    }
    contents = {
        "summary.json": json.dumps(plain(record), indent=1, allow_nan=False) + "\n",
        "results.csv": csv_text(_records(plans.results), ("portfolio_id", *plans.results.columns)),
    }
    if policy.rebalancer.accounts:
        moved = [{"portfolio_id": plan.name, **one} for plan in plans for one in transfer_records(plan)]
        contents["transfers.csv"] = csv_text(moved, ("portfolio_id", *TRANSFER_COLUMNS))
    return contents | {"orders.csv": csv_text(orders, ("portfolio_id", "asset", *ORDER_COLUMNS))}


def batch_summary(plans: Plans) -> Document:
    """How many portfolios ended how, and the totals of the orders."""
    results = plans.results
    found = results[results["verified"]]
    return {
        "portfolios": len(results),
        "verified": len(found),
        "statuses": {name: int(count) for name, count in results["status"].value_counts().sort_index().items()},
        "orders": int(found["orders"].sum()),
        "notional": math.fsum(2 * found["turnover"] * found["nav"]),
        "cost": math.fsum(found["cost"]),
        "worst_gap": float(found["gap"].max()) if len(found) else None,
    }


def write_files(folder: Path, contents: Mapping[str, str], *, inputs: Iterable[Path] = ()) -> None:
    """All files or, if one cannot be written, none: see `whole_files.replaced`. Raises InputError."""
    paths = [folder / name for name in contents]
    with whole_files.replaced(paths, inputs=inputs) as parts:
        whole_files.clean(folder)
        for part, text in zip(parts, contents.values(), strict=True):
            part.write(text.encode("utf-8"))


def digest(path: Path) -> str:
    """The SHA-256 of a file, as sha256sum prints it. Raises InputError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


@cache
def versions() -> dict[str, str]:
    """Of this library and of those whose release can change a figure."""
    found = {}
    for name in ("equipoise", "numpy", "scipy", "cvxpy", "clarabel"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a source tree that was never installed
            found[name] = "unknown"
    return found


def _positions(plan: Plan) -> list[Document]:
    """What is held before and after, in units, in the order of the table."""
    if plan.problem is None:
        return []
    portfolio = plan.asked.portfolio
    after = plan.verified.quantities if plan.verified and plan.status.ok else (None,) * len(portfolio.assets)
    rows = sorted(zip(portfolio.order, portfolio.assets, portfolio.exact_quantity, after, strict=True))
    return [{"asset": asset, "before": before, "after": then} for _, asset, before, then in rows]


def _sequence(plan: Plan) -> Document:
    """Whether the orders are safe on the way as they are listed (see `Plan.listing`); if not so, the steps that are, or
    what blocks them."""
    steps = plan.sequence if plan.listing in (SLICES, NONE) else None
    rows = [asdict(step) for step in steps.steps] if steps is not None else []
    return {"listing": plan.listing, "reason": steps.reason if steps is not None else "", "steps": rows}


def _records(table: pd.DataFrame) -> list[Document]:
    """The rows as plain Python values, those of a named index first."""
    # Not reset_index: pandas would make Arrow text of labels, which cannot hold all of them.
    names = [str(name) for name in table.index.names if name is not None]
    levels = {name: table.index.get_level_values(name).tolist() for name in names}
    columns = levels | {str(name): table[name].tolist() for name in table.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
