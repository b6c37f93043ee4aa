"""What a compiled program depends on: which numbers there are, not what they are; and what its parts are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.constraints.pieces import Parts
from equipoise.optimizer.problem.problem import Problem

#: A group of entries, packed, and what it is called.
Group = tuple[str, bytes]


@dataclass(frozen=True)
class Structure:
    """What a compiled program depends on. Index sets are bytes, so that structures can be compared."""

    assets: int
    factors: int
    cash: int
    specific: bytes
    fixed: tuple[Group, ...]
    lower: tuple[Group, ...]
    upper: tuple[Group, ...]
    costs: tuple[Group, ...]
    carry: tuple[Group, ...]
    rows: tuple[tuple[bool, tuple[Group, ...]], ...]
    cones: tuple[tuple[int, bytes], ...]
    #: The cashes, what each entry takes of each budget, and which cash pays the entry's costs.
    budgets: tuple[tuple[int, ...], bytes, bytes]
    #: Whether limits may give way, by the least excess that is needed (`cvxpy_model.Gives`).
    elastic: bool = False

    @classmethod
    def of(cls, problem: Problem, *, elastic: bool = False, plain: bool = False) -> Structure:
        """The structure of a problem. `plain`: to be read, not shared; what is there at all has an entry for every
        asset, and bounds are grouped by their rules."""
        rows, cost = problem.rows, problem.cost
        # The cash has a row for its floor, which counts the costs; a second lower bound would only be in the way.
        others = np.isin(np.arange(len(problem.assets)), problem.cashes, invert=True)
        straight = cost.long + cost.short == 0  # one slope on both sides of 0
        fixed = (problem.lower == problem.upper) & others & (not elastic)  # there each side gives way by itself
        lower = others & ~fixed & (problem.lower > -problem.outer)
        # An elastic program may leave all open; then a point is found among those that are not too far.
        upper = ~fixed & ((problem.upper < problem.outer) | (elastic & ~others))

        def used(mask: ArrayLike) -> bytes:
            return where(np.full(np.shape(mask), np.any(mask)) if plain else mask)

        def grouped(side: str, mask: NDArray[np.bool_]) -> tuple[Group, ...]:
            return tuple(_by_rule(problem, side, mask)) if plain else (("bounds", where(mask)),)

        return cls(
            assets=len(problem.assets),
            factors=len(problem.risk.factors),
            cash=problem.cash,
            specific=used(problem.risk.specific != 0),
            fixed=grouped("lower", fixed),
            lower=grouped("lower", lower),
            upper=grouped("upper", upper),
            costs=tuple((name, used(getattr(cost, name) != 0)) for name in ("buy", "sell", "quadratic", "impact")),
            carry=(
                *((name, used(~straight & (getattr(cost, name) != 0))) for name in ("long", "short")),
                ("weight", used(straight & (cost.long != 0))),
            ),
            rows=tuple(
                (
                    bool(rows.cost[j] > 0),
                    tuple(
                        (name, used(getattr(rows, name)[j] != 0))
                        for name in Parts.NAMES
                        if np.any(getattr(rows, name)[j] != 0)
                    ),
                )
                for j in range(len(rows.upper))
            ),
            cones=tuple((len(cone.matrix), used(cone.diagonal != 0)) for _, cone in problem.cones),
            budgets=(problem.cashes, problem.budgets.spends.tobytes(), problem.budgets.pays.tobytes()),
            elastic=elastic,
        )


@dataclass(frozen=True)
class Names:
    """What the rows, cones, custom rules and envelopes of a problem are called: "rule: detail", each only once."""

    rows: tuple[str, ...]
    cones: tuple[str, ...]
    custom: tuple[str, ...]
    envelopes: tuple[str, ...]

    @classmethod
    def of(cls, problem: Problem) -> Names:
        rows, seen = problem.rows, Counter[str]()

        def once(titles: Iterable[str], labels: Iterable[str]) -> tuple[str, ...]:
            found = []
            for title, label in zip(titles, labels, strict=True):
                name = title if title == label else f"{title}: {label}"
                seen[name] += 1
                found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
            return tuple(found)

        curved = [
            once((title for title, _ in pieces), (piece.label for _, piece in pieces))
            for pieces in (problem.cones, problem.opaque, problem.envelopes)
        ]
        return cls(once(rows.titles, (row.label for row in rows.rows)), *curved)


def _by_rule(problem: Problem, side: str, mask: NDArray[np.bool_]) -> Iterable[Group]:
    """The entries of the mask, each with the rule whose bound it is."""
    left, edge = mask.copy(), getattr(problem, side)
    found: dict[str, NDArray[np.bool_]] = {}
    for title, bound in problem.bounds:
        own = left & (getattr(bound, side) == edge)
        called = f"{title}: {bound.label}"
        found[called] = found.get(called, False) | own
        left &= ~own
    return ((called, where(own)) for called, own in found.items() if own.any())


def where(mask: ArrayLike) -> bytes:
    """The positions where the mask is true, in a form that can be compared and hashed."""
    return np.flatnonzero(mask).astype(np.int32).tobytes()


def indices(packed: bytes) -> NDArray[np.intp]:
    """The positions again."""
    return np.frombuffer(packed, dtype=np.int32).astype(np.intp)
