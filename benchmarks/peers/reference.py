"""The optimum of each judged instance and a lower bound on it, from Clarabel at 1e-12 and `measure.lower_bound`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import clarabel
import numpy as np
import scipy.sparse as sp

from .instances import Array, Family, Instance
from .measure import lower_bound, trades
from .programs import Program

_ACTIVE = 1e-7


@dataclass(frozen=True, eq=False)
class Reference:
    """`bound` ≤ every feasible objective; `active`: how many rows have a price."""

    weights: Array
    bound: float
    gap: float
    trades: int
    active: int
    cash_at_bound: bool


def solved(p: Instance, program: Program) -> Reference:
    v = program.vectors(p)
    low, high = np.isfinite(v.low), np.isfinite(v.high)
    eye = sp.identity(len(v.q), format="csc")
    A = sp.vstack([program.A, program.G, -eye[low], eye[high]], format="csc")
    b = np.concatenate([v.b, v.h, -v.low[low], v.high[high]])
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_threads = False, 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
    cones = [clarabel.ZeroConeT(len(v.b)), clarabel.NonnegativeConeT(len(b) - len(v.b))]
    found = clarabel.DefaultSolver(sp.triu(program.P, format="csc"), v.q, A, b, cones, settings).solve()
    w, prices = program.weights(p, np.array(found.x)), np.array(found.z) * program.unit
    k, equal = len(p.factors), len(v.b)
    of_rows = prices[equal : equal + len(p.rows.upper)] if p.rows is not None else None
    own = p.aversion * (p.factors @ (w - p.target))
    bound = max(lower_bound(p, of_factors, float(prices[k]), of_rows) for of_factors in (own, prices[:k]))
    edge = p.cash and bool(min(w[-1] - p.lower[-1], p.upper[-1] - w[-1]) < _ACTIVE)
    active = int(np.sum(of_rows > _ACTIVE)) if of_rows is not None else 0
    return Reference(w, bound, (p.objective(w) - bound) / abs(bound), trades(p, w), active, edge)


def judged(family: Family) -> tuple[Family, list[Reference]]:
    """The references of the judged instances. In a walk each date starts from the reference of the date before."""
    program = Program(family.instances[0])
    if family.dates == 1:
        return family, [solved(p, program) for p in family.instances[: family.judged]]
    made: list[Instance] = []
    found: list[Reference] = []
    for t, date in enumerate(family.by_date):
        if t:
            last = found[-family.accounts :]
            date = [replace(p, before=r.weights) for p, r in zip(date, last, strict=True)]
        made += date
        found += [solved(p, program) for p in date]
    return replace(family, instances=made), found[: family.judged]
