"""What a compiled program depends on: which numbers there are, not what they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.constraints.pieces import Parts
from equipoise.optimizer.problem.problem import Problem


@dataclass(frozen=True)
class Structure:
    """What a compiled program depends on. Index sets are bytes, so that structures can be compared."""

    assets: int
    factors: int
    cash: int
    specific: bytes
    fixed: bytes
    lower: bytes
    upper: bytes
    costs: tuple[tuple[str, bytes], ...]
    carry: tuple[tuple[str, bytes], ...]
    rows: tuple[tuple[bool, tuple[tuple[str, bytes], ...]], ...]
    cones: tuple[tuple[int, bytes], ...]
    #: The cashes, what each entry takes of each budget, and which cash pays the entry's costs.
    budgets: tuple[tuple[int, ...], bytes, bytes]
    #: Whether limits may give way, by the least excess that is needed (`program.Gives`).
    elastic: bool = False

    @classmethod
    def of(cls, problem: Problem, *, elastic: bool = False) -> Structure:
        rows, cost = problem.rows, problem.cost
        # The cash has a row for its floor, which counts the costs; a second lower bound would only be in the way.
        others = np.isin(np.arange(len(problem.assets)), problem.cashes, invert=True)
        straight = cost.long + cost.short == 0  # one slope on both sides of 0
        fixed = (problem.lower == problem.upper) & others & (not elastic)  # there each side gives way by itself
        return cls(
            assets=len(problem.assets),
            factors=len(problem.risk.factors),
            cash=problem.cash,
            specific=where(problem.risk.specific != 0),
            fixed=where(fixed),
            lower=where(others & ~fixed & (problem.lower > -problem.outer)),
            # An elastic program may leave all open; then a point is found among those that are not too far.
            upper=where(~fixed & ((problem.upper < problem.outer) | (elastic & ~others))),
            costs=tuple((name, where(getattr(cost, name) != 0)) for name in ("buy", "sell", "quadratic", "impact")),
            carry=(
                *((name, where(~straight & (getattr(cost, name) != 0))) for name in ("long", "short")),
                ("weight", where(straight & (cost.long != 0))),
            ),
            rows=tuple(
                (
                    bool(rows.cost[j] > 0),
                    tuple(
                        (name, where(getattr(rows, name)[j] != 0))
                        for name in Parts.NAMES
                        if np.any(getattr(rows, name)[j] != 0)
                    ),
                )
                for j in range(len(rows.upper))
            ),
            cones=tuple((len(cone.matrix), where(cone.diagonal != 0)) for _, cone in problem.cones),
            budgets=(problem.cashes, problem.budgets.spends.tobytes(), problem.budgets.pays.tobytes()),
            elastic=elastic,
        )


def where(mask: ArrayLike) -> bytes:
    """The positions where the mask is true, in a form that can be compared and hashed."""
    return np.flatnonzero(mask).astype(np.int32).tobytes()


def indices(packed: bytes) -> NDArray[np.intp]:
    """The positions again."""
    return np.frombuffer(packed, dtype=np.int32).astype(np.intp)
