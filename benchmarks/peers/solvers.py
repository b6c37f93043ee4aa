"""Clarabel, QOCO, PIQP and OSQP on matrices built once; for each portfolio the vectors are updated in place.

The form (see `programs`) is for each solver the one that it solves faster. PIQP and OSQP take bounds as bounds.
"""

from __future__ import annotations

import clarabel as clarabel_solver
import numpy as np
import osqp as osqp_solver
import piqp as piqp_solver
import qoco as qoco_solver
import scipy.sparse as sp

from .instances import Array, Family, Instance
from .peer import One
from .programs import Program, Vectors


def _program(family: Family, without_rows: str, with_rows: str) -> tuple[Program, Vectors]:
    like = family.instances[0]
    program = Program(like, without_rows if like.rows is None else with_rows)
    return program, program.vectors(like)


def clarabel(family: Family) -> One:
    program, like = _program(family, "split", "split")
    bounds = _Bounds(like)
    A = sp.vstack([program.A, program.G, bounds.matrix], format="csc")
    b = np.concatenate([like.b, like.h, bounds.of(like)])
    settings = clarabel_solver.DefaultSettings()
    settings.verbose = settings.presolve_enable = False  # updates need the presolve off
    settings.max_threads = 1
    cones = [clarabel_solver.ZeroConeT(len(like.b)), clarabel_solver.NonnegativeConeT(len(b) - len(like.b))]
    solver = clarabel_solver.DefaultSolver(sp.triu(program.P, format="csc"), like.q, A, b, cones, settings)

    def one(instance: Instance, account: int) -> Array | None:
        v = program.vectors(instance)
        solver.update(q=v.q, b=np.concatenate([v.b, v.h, bounds.of(v)]))
        return program.weights(instance, np.array(solver.solve().x))

    return one


def qoco(family: Family) -> One:
    program, like = _program(family, "trade", "split")
    bounds = _Bounds(like)
    G = sp.vstack([program.G, bounds.matrix], format="csc")
    h = np.concatenate([like.h, bounds.of(like)])
    solver = qoco_solver.QOCO()
    sizes = len(like.q), len(h), len(like.b)
    solver.setup(*sizes, program.P, like.q, program.A, like.b, G, h, len(h), 0, np.zeros(0, int), verbose=0)

    def one(instance: Instance, account: int) -> Array | None:
        v = program.vectors(instance)
        solver.update_vector_data(c=v.q, b=v.b, h=np.concatenate([v.h, bounds.of(v)]))
        return program.weights(instance, np.array(solver.solve().x))

    return one


def piqp(family: Family) -> One:
    program, like = _program(family, "trade" if family.instances[0].n < 2000 else "split", "split")
    solver = piqp_solver.SparseSolver()
    solver.settings.num_threads = 1
    rows = program.G.shape[0] > 0
    limits = (program.G, None, like.h) if rows else (None, None, None)
    solver.setup(program.P, like.q, program.A, like.b, *limits, like.low, like.high)

    def one(instance: Instance, account: int) -> Array | None:
        v = program.vectors(instance)
        solver.update(c=v.q, b=v.b, x_l=v.low, x_u=v.high, **({"h_u": v.h} if rows else {}))
        solver.solve()
        return program.weights(instance, np.array(solver.result.x))

    return one


def osqp(family: Family, **settings: float) -> One:
    """Warm: a walk goes on from the account's last primal and dual answer, others start at their holdings."""
    program, like = _program(family, "trade", "trade")
    A = sp.vstack([program.A, program.G, sp.identity(len(like.q))], format="csc")
    solver = osqp_solver.OSQP()
    low, high = _sides(like)
    solver.setup(sp.triu(program.P, format="csc"), like.q, A, low, high, verbose=False, **settings)
    last: dict[int, tuple[Array, Array]] = {}

    def one(instance: Instance, account: int) -> Array | None:
        v = program.vectors(instance)
        low, high = _sides(v)
        solver.update(q=v.q, l=low, u=high)
        start = last.get(account) if family.dates > 1 else None
        dual = start[1] if start is not None else np.zeros(len(low))
        solver.warm_start(x=program.start(instance, instance.before), y=dual)
        found = solver.solve(raise_error=False)
        last[account] = found.x, found.y
        return program.weights(instance, found.x)

    return one


def osqp_tight(family: Family) -> One:
    return osqp(family, eps_abs=1e-9, eps_rel=1e-9, max_iter=20_000, polishing=True)


class _Bounds:
    """Finite bounds as rows ≤ for solvers that have no bounds of their own."""

    def __init__(self, like: Vectors) -> None:
        self.low, self.high = np.isfinite(like.low), np.isfinite(like.high)
        eye = sp.identity(len(like.q), format="csc")
        self.matrix = sp.vstack([-eye[self.low], eye[self.high]], format="csc")

    def of(self, v: Vectors) -> Array:
        return np.concatenate([-v.low[self.low], v.high[self.high]])


def _sides(v: Vectors) -> tuple[Array, Array]:
    return np.concatenate([v.b, np.full(len(v.h), -np.inf), v.low]), np.concatenate([v.b, v.h, v.high])
