"""Unbiased allocation: whole lots of many accounts that add up to what the convex orders add up to.

Error diffusion. In the order of the input every account rounds each asset to the one of the two whole lots next to its
convex trade x* that leaves less of the error Eₐ = Σ (whole-lot trade − convex trade), summed over the accounts so far:

    the lots nearest to x* − Eₐ        so that |Eₐ| ≤ ½ lot after every account whose rules allow it

Where that breaks one of its rules (the cash, most often), a descent over lots within the rules makes Σ (Eₐ/lot)² as
small as it gets; where there is no such plan the account keeps its own, and its error goes on to the next ones. So no
account's trade is ever further than a lot from its convex trade for the others' sake.

Source: Floyd and Steinberg (1976) for the idea.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from equipoise.constraints.pieces import Array, Indices, Mask
from equipoise.optimizer.lots.points.grid import Grid, ten_to
from equipoise.optimizer.lots.search.descent import descended, evaluated
from equipoise.optimizer.lots.stacked import LotPlans
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.threshold import Separable
from equipoise.optimizer.solvers.newton import dual as duals
from equipoise.optimizer.solvers.newton import newton
from equipoise.optimizer.solvers.newton.dual import Dual

_MARGIN = 1e-11  # of NAV: rows are kept by so much more, so that the check in floats passes
_WEIGHT = 1e6  # of a squared lot, beside what trading costs


@dataclass(frozen=True, eq=False)
class Turn:
    """One account's turn: its place, the codes of its assets, lots in units, and the convex trade in lots (1, n)."""

    place: int
    stack: int
    item: int
    codes: Indices
    unit: Array
    convex: Array
    dual: Dual
    grid: Grid
    plain: bool


def turns(number: int, problem: Problem, plans: LotPlans, weights: Array) -> Iterator[Turn]:
    """The accounts of a stack that have a plan, with convex weights (B, n), ready to be allocated."""
    stack = problem.portfolio
    exactly = np.where(plans.accepted[:, None], (weights - problem.before) / plans.grid.size, 0.0)
    exactly[problem.cash] = 0.0
    unit = plans.grid.lot / ten_to(plans.grid.decimals)
    for form, out, capped in newton.forms(problem):
        members = np.flatnonzero(form & plans.accepted & out)
        if not len(members):
            continue
        dual = _rows_only(duals.of(problem, members, out=True, capped=capped))
        for position, i in enumerate(members.tolist()):
            grid = plans.grid.take(np.array([i]))
            yield Turn(
                place=int(stack.places[i]),
                stack=number,
                item=i,
                codes=stack.codes[i],
                unit=unit[i],
                convex=exactly[[i]],
                dual=dual.take(np.array([position])),
                grid=grid,
                plain=bool(grid.plain[0]),
            )


def _rows_only(dual: Dual) -> Dual:
    """The rules without the objective: no factors, no risk; what trading costs stays, for the cash."""
    linear, k = dual.linear, dual.factors
    return replace(dual, linear=linear[..., k:, :], limits=dual.limits[:, k:] - _MARGIN, factors=0)


def allocated(turn: Turn, error: Array) -> tuple[Array, Mask] | None:
    """The lots and closes (n,) with which this account leaves least of the error in lots (n,); None if it has none."""
    grid, away = turn.grid, turn.convex - error
    # The two whole lots next to the convex trade, and no others.
    whole = np.round(turn.convex)
    near = np.abs(turn.convex - whole) < 1e-6
    low, high = (np.where(near, whole, edge(turn.convex)) for edge in (np.floor, np.ceil))
    narrow = replace(grid, lowest=np.maximum(grid.lowest, low), highest=np.minimum(grid.highest, high))
    shut = narrow.closable & (np.abs(-grid.before / grid.size - turn.convex) < 1.0)
    narrow = replace(narrow, closable=shut)
    if narrow.empty()[0]:
        return None
    own = turn.dual.assets
    assets: Separable = replace(
        own,
        curvature=_WEIGHT / np.square(grid.size),
        centre=grid.before + away * grid.size,
        slope=0.0,
        long=0.0,
        short=0.0,
    )
    dual = replace(turn.dual, assets=assets)
    lots, closed = narrow.nearest(away, np.round(away) > away)
    start = evaluated(dual, narrow, np.zeros(1, dtype=np.intp), lots, closed)
    if start.violation[0] > 0:
        prices = np.zeros((1, dual.row_count))
        start = descended(dual, narrow, prices, start, np.array([-np.inf]), plain=turn.plain)
        if start.violation[0] > 0.5 * _MARGIN:
            return None
    return start.lots[0], start.closed[0]
