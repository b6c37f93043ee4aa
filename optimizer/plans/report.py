"""A plan as text, for a person to read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from equipoise.optimizer.sequence.listing import NONE, SLICES, WHOLE

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.optimizer.verification.outcome import Outcome


LISTED = {
    WHOLE: "safe after each order, and at any partial fill, in the order of plan.orders",
    SLICES: "safe if some orders are cut into slices: see plan.sequence",
    NONE: "no safe order of the orders was found: see plan.sequence",
}


def text(
    plan: Outcome,
    *,
    listing: str,
    weights: pd.DataFrame,
    orders: pd.DataFrame,
    transfers: pd.DataFrame,
    exposures: pd.DataFrame,
    checks: pd.DataFrame,
) -> str:
    """Status, the table of assets, and the figures below it, from the plan's tables."""
    title = f"Portfolio {clean(plan.name)}: " if plan.name is not None else ""
    lines = [f"{title}{plan.status.value}"]
    if plan.message:
        lines.append(clean(plan.message))
    if plan.problem is not None:
        figures = _figures(plan, listing=listing, transfers=transfers, exposures=exposures, checks=checks)
        lines += ["", *_assets(weights, orders, ok=plan.status.ok), "", *figures]
    return "\n".join(lines)


def clean(name: object) -> str:
    """Text from data without control characters: a label cannot move the cursor or start a line."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(name))


def table(rows: list[list[str]], left: int = 1) -> list[str]:
    """Aligned columns: the first `left` and the last to the left, numbers to the right."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if c < left or c == last else cell.rjust(width)
            for c, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _assets(weights: pd.DataFrame, orders: pd.DataFrame, *, ok: bool) -> list[str]:
    rows = [["asset", "before", "after", "target", "band", "order", "notional", "cost", "reason"]]
    for asset in weights.index:
        w = weights.loc[asset]
        band = _band(float(w["lower"]), float(w["upper"]))
        order = ["", "", "", ""]
        if asset in orders.index:
            o = orders.loc[asset]
            order = [
                f"{o['side']} {o['quantity']:,.10g}",
                f"{o['notional']:,.2f}",
                f"{o['cost']:,.2f}",
                clean(o["reason"]),
            ]
        after = _percent(w["after"]) if ok else "-"
        rows.append([clean(asset), _percent(w["before"]), after, _percent(w["target"]), band, *order])
    return table(rows)


def _figures(
    plan: Outcome, *, listing: str, transfers: pd.DataFrame, exposures: pd.DataFrame, checks: pd.DataFrame
) -> list[str]:
    problem = plan.problem
    assert problem is not None
    nav = problem.portfolio.nav
    before, after = plan.tracking_error
    distance = "tracking error, annual" if problem.portfolio.risk is not None else "distance from target"
    rows = [["NAV", f"{nav:,.2f}"]]
    if not plan.status.ok:
        return table([*rows, [distance, _percent(before)]])
    rows.append([distance, f"{_percent(before)} -> {_percent(after)}"])
    rows.append(["turnover, one-way", _percent(plan.turnover)])
    for underlying, of in exposures.iterrows():
        shown = f"{_percent(of['before'])} -> {_percent(of['after'])} (target {_percent(of['target'])})"
        rows.append([f"exposure to {clean(underlying)}", shown])
    if len(transfers):
        rows.append(["transfers", f"{len(transfers)}, of {transfers['value'].sum():,.2f}; see plan.transfers"])
    if listing:
        rows.append(["on the way", LISTED[listing]])
    rows.append(["trading cost", f"{plan.cost:,.2f} ({1e4 * plan.cost / nav:.2f} bp of NAV)"])
    rows += [[name, value] for name, value in _ratios(plan)]
    gap = max(plan.gap, 0.0)
    rows.append(
        [
            "certified gap",
            f"at most {1e4 * gap:.2g} bp of NAV a year ({gap * nav:,.2f}) from the best possible plan",
        ]
    )
    rows.append(["solver", clean(plan.solver)])
    rows.append(["exact checks passed", f"{int(checks['passed'].sum())} of {len(checks)}"])
    binding = checks[checks["shadow_price"] > 0]
    if len(binding):
        names = dict.fromkeys(
            f"{r.rule}{f' of {r.asset}' if isinstance(r.asset, str) else ''}" for r in binding.itertuples()
        )
        rows.append(["binding", clean(", ".join(names))])
    return table(rows, left=1)


def _ratios(plan: Outcome) -> list[tuple[str, str]]:
    """Every rule that is a ratio (health factor, collateral, margin): before, after and its limit."""
    problem = plan.problem
    assert problem is not None
    found = []
    shown = {(c.rule, c.detail): c.value for c in plan.verified.checks if c.asset is None} if plan.verified else {}
    still = np.zeros_like(problem.before)
    for title, piece in problem.pieces:
        words, before = piece.words, piece.ratio(problem.before, still)
        if words is not None and before is not None and (title, piece.label) in shown:
            sense = "at least" if words.at_least else "at most"
            after = shown[title, piece.label]
            found.append((piece.label, f"{before:.4g} -> {after:.4g} ({sense} {words.stated:g})"))
    return found


def _band(lower: float, upper: float) -> str:
    if math.isinf(lower) and math.isinf(upper):
        return ""
    low = "" if math.isinf(lower) else _percent(lower)
    high = "" if math.isinf(upper) else _percent(upper)
    return f"{low}..{high}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}%"
