"""The program of one portfolio to read, to extend and to hand to any solver: named, dense, in the user's units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from equipoise.constraints.pieces import Count, Semicontinuous, Step
from equipoise.constraints.rules.custom import Trade
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.solvers.program.cvxpy_model import Program, Setting
from equipoise.optimizer.solvers.program.program import settings_of
from equipoise.optimizer.solvers.program.structure import Structure, indices

if TYPE_CHECKING:
    import cvxpy as cp


@dataclass(frozen=True, eq=False)
class ConvexProgram(Trade):
    """A portfolio's convex program as a `cvxpy.Problem`, in the words of custom rules (`Trade`); print it to read it.

        minimise    (aversion/2)·(w − b)ᵀΣ(w − b) + cost(z)/horizon + carry(w)      in NAV per year
        subject to  budget, bounds, rows, cones, custom rules, envelopes            in fractions of NAV

    problem: by cvxpy's rules for parametrised programs (DPP), unless custom rules or envelopes, whose numbers are
    constants, are among the rules. All parameters hold the table's numbers; they can be given others.
    weights, trades: expressions (n,) in the order of `assets` (by label, not that of the table), the cash before
    trading costs. transfers: what each transfer moves, in the order of `routes`; None in one account.
    parameters: by name, as they are printed. constraints: by "rule: detail"; those without a rule define what others
    use. entries: for constraints on single assets (bounds), which.
    left_out: what is not convex and therefore not in it, in words.

    Its optimum is that of `Rebalancer.solve` before whole lots, fees and counts. Extend it as cvxpy does:

        mine = cp.Problem(cp.Minimize(0.001 * cp.norm1(program.trades)), [program.weight("BTC") <= 0.2])
        (program.problem + mine).solve(solver="CLARABEL")
    """

    problem: cp.Problem
    routes: tuple[str, ...]
    transfers: cp.Expression | None
    parameters: Mapping[str, cp.Parameter]
    constraints: Mapping[str, cp.Constraint]
    entries: Mapping[str, tuple[str, ...]]
    left_out: tuple[str, ...]

    def solve(self, solver: str = "CLARABEL", **settings: Setting) -> float:
        """`problem.solve` with tight tolerances unless the settings give others; the objective, in NAV per year."""
        return float(self.problem.solve(solver=solver, **{**settings_of(solver), **settings}))

    def __str__(self) -> str:
        lines = [f"minimise {self.problem.objective.args[0]}", "subject to"]
        for name, constraint in self.constraints.items():
            of = f" ({', '.join(self.entries[name])})" if name in self.entries else ""
            lines.append(f"  {name}{of}:\n      {constraint}")
        return "\n".join(lines + [f"left out: {one}" for one in self.left_out])


def readable(problem: Problem) -> ConvexProgram:
    """The program of this problem, of its relaxation where it is not convex."""
    relaxed = problem.relaxation
    structure = Structure.of(relaxed, plain=True)
    program = Program(structure, relaxed)
    program.fill(relaxed)
    accounts, x = relaxed.accounts, program.weights
    asked = relaxed.asked
    n = len(asked.assets)
    weights, transfers = x, None
    if accounts is not None and len(accounts.transfers):
        weights, transfers = x[:n] + accounts.moves @ x[n:], x[n:]
    bounds = {f"{of}, {side}": at for side in ("fixed", "lower", "upper") for of, at in getattr(structure, side)}
    return ConvexProgram(
        assets=tuple(asked.assets),
        weights=weights,
        trades=(x if accounts is None else x[:n]) - asked.before,
        before=asked.before,
        target=asked.target,
        nav=asked.portfolio.nav,
        problem=program.problem,
        routes=tuple(relaxed.assets[n:]),
        transfers=transfers,
        parameters=program.problem.param_dict,
        constraints=program.constraints,
        entries={called: tuple(relaxed.assets[i] for i in indices(at)) for called, at in bounds.items()},
        left_out=tuple(_left_out(problem)),
    )


def _left_out(problem: Problem) -> list[str]:
    orders = Step | Semicontinuous | Count
    found = [f"{title}: {piece.label}" for title, piece in problem.pieces if isinstance(piece, orders)]
    if problem.fees is not None:
        found.append("costs: fees for each order")
    if problem.kinked:
        found.append("cash below zero: rows whose slope depends on its sign have the steeper one, which is safe")
    return found
