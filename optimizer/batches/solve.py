"""Many portfolios by one policy: a long table in, one result a portfolio and all orders out.

Portfolios with as many assets are stacked into arrays (B, n); parsing, solving, certificate, check and tables are
each one pass over a stack. What a stack cannot take (cones, custom rules, odd cells), or does not certify or verify,
or has in whole lots only with an open gap, goes on portfolio by portfolio, where an error costs only its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.errors import InputError, NotStackable
from equipoise.constraints.pieces import Array
from equipoise.optimizer.batches import inputs
from equipoise.optimizer.batches.inputs import keyed, labels
from equipoise.optimizer.lots.stacked import Convex, LotPlans, Tried, planned, taken_whole
from equipoise.optimizer.lots.unbiased import Turn, allocated, turns
from equipoise.optimizer.plans import batch_tables
from equipoise.optimizer.plans.batch_tables import RESULT_COLUMNS, Part, Solved
from equipoise.optimizer.plans.make import finished
from equipoise.optimizer.plans.plan import Plan
from equipoise.optimizer.plans.rounding_bias import Residuals, residuals, summary
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.portfolio.stack import Odd, Stack
from equipoise.optimizer.problem.effort import Effort
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Prices, Solution, Status
from equipoise.optimizer.solvers.choose import AUTO, named
from equipoise.optimizer.solvers.choose import solve as solve_convex
from equipoise.optimizer.solvers.newton import newton
from equipoise.optimizer.solvers.newton.iteration import SOLVED
from equipoise.optimizer.solvers.newton.newton import Answers
from equipoise.optimizer.verification.stacked import verified

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.optimizer.problem.policy import Policy

__all__ = ["RESULT_COLUMNS", "Plans", "solve_batch"]


_DEFAULT = Effort()
#: Assets × portfolios of a stack that are in work at once.
_WORKING = 100_000


@dataclass(frozen=True, eq=False)
class Plans:
    """The plans of a batch, in the order of the portfolios' first rows; `plans["001"]` is one of them.

    `results` and `orders` are ready as tables; a single `Plan`, with its report and checks, is made when asked for.
    """

    table_of: Callable[[str], pd.DataFrame]
    makers: tuple[tuple[object, Callable[[], Plan]], ...]
    rounding_of: Callable[[], pd.DataFrame] | None = None

    @classmethod
    def of(cls, plans: Sequence[Plan]) -> Plans:
        """These plans, in this order."""
        part = batch_tables.of_plans(list(enumerate(plans)))
        makers = tuple((plan.name, partial(_itself, plan)) for plan in plans)
        return cls(partial(_tabled, (part,)), makers, partial(_rounding, (), list(enumerate(plans))))

    def __getitem__(self, portfolio_id: str) -> Plan:
        return self._by_name[portfolio_id]()

    def __iter__(self) -> Iterator[Plan]:
        return (maker() for _, maker in self.makers)

    def __len__(self) -> int:
        return len(self.makers)

    @cached_property
    def _by_name(self) -> dict[str, Callable[[], Plan]]:
        return {name: maker for name, maker in reversed(self.makers) if isinstance(name, str)}

    @cached_property
    def results(self) -> pd.DataFrame:
        """Exactly one row a portfolio: status, certificate, figures, message. Money in cash, the rest per NAV."""
        return self.table_of("results")

    @cached_property
    def orders(self) -> pd.DataFrame:
        """All orders of all verified plans, keyed by portfolio_id and asset."""
        return self.table_of("orders")

    @cached_property
    def rounding(self) -> pd.DataFrame:
        """Who gains from rounding to whole lots, over all verified plans: see `rounding`. The intervals count the
        residuals of a portfolio as one. Raises InputError for a batch that was solved in chunks."""
        if self.rounding_of is None:
            raise InputError("chunks carry no residuals; solve the batch without executor, chunk and checkpoint")
        return self.rounding_of()


def solve_batch(
    policy: Policy,
    table: pd.DataFrame,
    universe: Iterable[str] | None = None,
    spent: Effort = _DEFAULT,
    *,
    unbiased: bool = False,
    refused: Mapping[object, str] = MappingProxyType({}),
    begun: Callable[[], None] | None = None,
) -> Plans:
    """See `Rebalancer.solve_batch`. `universe`: the labels that rules may name; by default those of the table.

    refused: why the portfolios of these ids are not read. begun: called before each portfolio and each stack, in a
    process that may end for want of time or memory: there a lack of memory raises MemoryError.
    """
    named(spent.solver)  # or an InputError
    table = keyed(table)
    known = inputs.known(policy, table, universe)
    stacks, odd = inputs.stacked(policy, table, known)
    solved: list[_Done] = []
    alone: list[_Alone] = []
    for part in _in_work(_read_stack(stack, refused, alone) for stack in stacks):
        if begun is not None:
            begun()
        _solve(policy, part, spent, solved, alone)
    alone += [_Alone(one.place, one.name, partial(_read, policy, table, one, known, spent)) for one in odd]
    plans = [(one.place, _guarded(one, refused, begun)) for one in alone]
    solved = _allocated(solved, plans) if unbiased else solved
    parts = tuple(batch_tables.of_stack(done.solved) for done in solved)
    if plans or not parts:
        parts = (*parts, batch_tables.of_plans(plans))
    return Plans(partial(_tabled, parts), _makers(policy, solved, plans), partial(_rounding, solved, plans))


class _Alone(NamedTuple):
    """A portfolio that is to be taken alone: its place in the input's order, its id, and what gives its plan."""

    place: int
    name: Any
    work: Callable[[], Plan]


def _read_stack(stack: Stack, refused: Mapping[object, str], alone: list[_Alone]) -> Stack:
    """The stack without those that are not read; these are added to those to be taken alone, where it is said why."""
    if not refused:
        return stack
    out = np.array([name in refused for name in stack.names])
    for i in np.flatnonzero(out).tolist():
        name = stack.names[i]
        alone.append(_Alone(int(stack.places[i]), name, partial(Plan, Status.INVALID_INPUT, name)))
    return stack.take(~out)


def _in_work(stacks: Iterable[Stack]) -> Iterator[Stack]:
    """The stacks in parts that are in work at once."""
    for stack in stacks:
        size = max(1, _WORKING // stack.shape[1])
        for start in range(0, len(stack), size):
            yield stack.take(slice(start, start + size))


def _makers(
    policy: Policy, solved: Sequence[_Done], alone: Sequence[tuple[int, Plan]]
) -> tuple[tuple[object, Callable[[], Plan]], ...]:
    """What makes each plan, with its portfolio's id, in the input's order."""
    found: list[_Alone] = [_Alone(place, plan.name, partial(_itself, plan)) for place, plan in alone]
    for done in solved:
        stack = done.solved.problem.portfolio
        found += (
            _Alone(int(stack.places[i]), stack.names[i], partial(_made, policy, done, i))
            for i in np.flatnonzero(done.solved.checked.passed).tolist()
        )
    found.sort(key=lambda one: one.place)
    return tuple((one.name, one.work) for one in found)


def _rounding(solved: Sequence[_Done], alone: Sequence[tuple[int, Plan]]) -> pd.DataFrame:
    found = [Residuals.of_plan(plan, place) for place, plan in alone]
    for done in solved:
        problem, checked = done.solved.problem, done.solved.checked
        if problem.step is None:
            continue
        stack, at = problem.portfolio, checked.passed & ~done.solved.held
        convex = (done.answers.weights - problem.before) * stack.nav / stack.price
        lot = np.broadcast_to(problem.step.lot, problem.shape)
        lot, price, convex, traded = (each[at] for each in (lot, stack.price, convex, checked.trades))
        cash = np.arange(len(lot)), problem.cash[1][at]
        found.append(Residuals.of(stack.places[at], lot, price, convex, traded, cash))
    return summary(found, clusters=True)


def gathered(
    policy: Policy,
    source: object,
    chunks: Sequence[tuple[pd.DataFrame, pd.DataFrame]],
    universe: Iterable[str],
    spent: Effort,
) -> Plans:
    """The plans of a batch that was solved in chunks of (results, orders); one is solved again when it is asked for."""
    import pandas as pd

    names = [name for results, _ in chunks for name in results.index]
    known = frozenset(universe)

    def table_of(which: str) -> pd.DataFrame:
        found = [chunk[0 if which == "results" else 1] for chunk in chunks]
        return pd.concat(found) if found else _tabled((), which)

    def again(name: Any) -> Plan:
        if not isinstance(source, pd.DataFrame):
            raise InputError("the source was read once; for its plan solve the portfolio by itself", portfolio=name)
        table = keyed(source)
        return solve_batch(policy, table[table["portfolio_id"] == name], known | labels(table), spent)[name]

    return Plans(table_of, tuple((name, partial(again, name)) for name in names))


def _tabled(parts: Sequence[Part], which: str) -> pd.DataFrame:
    return batch_tables.results(parts) if which == "results" else batch_tables.orders(parts)


@dataclass(frozen=True, eq=False)
class _Done:
    """A stack that was solved: the convex answers, and the plans in whole lots if these are asked for."""

    solved: Solved
    answers: Answers
    lots: LotPlans | None


def _solve(
    policy: Policy,
    stack: Stack,
    spent: Effort,
    solved: list[_Done],
    alone: list[_Alone],
) -> None:
    """Solve and check a stack; what it cannot take is added to those to be taken alone."""

    def by_itself(which: NDArray[np.bool_], lots: LotPlans | None = None) -> None:
        for i in np.flatnonzero(which).tolist():
            work = partial(_alone, policy, stack, i, spent, lots)
            alone.append(_Alone(int(stack.places[i]), stack.names[i], work))

    everyone = np.ones(len(stack), dtype=bool)
    try:
        problem = policy.stacked(stack)
    except NotStackable as turn:
        out = everyone if turn.portfolios is None else turn.portfolios
        by_itself(out)
        if not out.all():
            _solve(policy, stack.take(~out), spent, solved, alone)
        return
    except InputError:  # of the policy: each portfolio gives it its own name
        by_itself(everyone)
        return
    if not _as_stack(problem, spent.solver):
        by_itself(everyone)
        return
    answers = newton.solve(problem)
    problem = answers.problem
    # A form of two slopes at the cash is solved twice, by itself.
    weights = np.where(
        (answers.code == SOLVED)[:, None] & ~np.asarray(problem.kinked)[:, None], answers.weights, np.nan
    )
    name = newton.THRESHOLD if newton.separable(problem) else newton.NAME
    if problem.discrete:
        done = _in_lots(problem, answers, weights, spent, name)
    else:
        checked = verified(problem, weights)
        held = ~(checked.trades != 0).any(axis=1)
        found = Solved(problem, weights, answers.rows, answers.objective, answers.bound, held, name, checked)
        done = _Done(found, answers, None)
    solved.append(done)
    by_itself(~done.solved.checked.passed, done.lots)


def _as_stack(problem: Problem, solver: str) -> bool:
    """Whether Newton's method, which takes stacks, is who is asked, and takes it."""
    if newton.refusal(problem) or (problem.discrete and not taken_whole(problem)):
        return False
    return solver in (AUTO, newton.NAME) or (solver == newton.THRESHOLD and newton.separable(problem))


def _in_lots(problem: Problem, answers: Answers, weights: Array, spent: Effort, name: str) -> _Done:
    """The whole-lot plans of a stack. What is best held is held; what has no plan that counts does not pass."""
    stack, others = problem.portfolio, np.ones(problem.shape, dtype=bool)
    others[problem.cash] = False
    held = ((weights == problem.before) | ~others).all(axis=1)
    asked = np.where(held[:, None], np.nan, weights)
    convex = Convex(stack.quantity, stack.price, stack.nav, asked, answers.rows, answers.objective, answers.bound)
    return _checked(problem, answers, planned(problem, convex, spent), held, name)


def _checked(problem: Problem, answers: Answers, lots: LotPlans, held: NDArray[np.bool_], name: str) -> _Done:
    """These whole-lot plans, with the check of their orders."""
    plans = np.where(lots.accepted[:, None], lots.weights, np.where(held[:, None], answers.weights, np.nan))
    checked = verified(problem, plans, lots.units())
    count = np.where(checked.trades != 0, lots.counted(problem.step.lot if problem.step is not None else 0.0), -1)
    objective = np.where(lots.accepted, lots.objective, answers.objective)
    bound = np.where(lots.accepted, lots.bound, answers.bound)
    return _Done(Solved(problem, plans, answers.rows, objective, bound, held, name, checked, count), answers, lots)


def _allocated(solved: list[_Done], alone: Sequence[tuple[int, Plan]]) -> list[_Done]:
    """The same plans with whole lots that add up to what the convex orders do (`lots.unbiased`).

    What was solved alone keeps its plan, and adds to what the others make good.
    """
    given = [(k, done, done.lots) for k, done in enumerate(solved) if done.lots is not None]
    if not given:
        return solved
    found = {k: (lots.lots.copy(), lots.closed.copy()) for k, _, lots in given}
    codes = given[0][1].solved.problem.portfolio.source.codes
    steps: list[tuple[int, Turn | Plan]] = [*alone]
    for k, done, lots in given:
        steps += [(t.place, t) for t in turns(k, done.solved.problem, lots, done.answers.weights)]
    error = np.zeros(len(codes))
    for _, step in sorted(steps, key=lambda one: one[0]):
        if isinstance(step, Plan):
            for asset, amount in residuals(step):
                error[codes[asset]] += amount
        else:
            stack_lots, closed = found[step.stack]
            _take_turn(step, stack_lots[step.item], closed[step.item], error)
    for k, done, before in given:
        solved[k] = _reallocated(done, before, found[k])
    return solved


def _take_turn(turn: Turn, lots: Array, closed: NDArray[np.bool_], error: Array) -> None:
    """Allocate an account's lots (n,) and closings (n,), and add what it leaves to the error of each asset."""
    chosen = allocated(turn, error[turn.codes] / turn.unit)
    if chosen is not None:
        lots[:], closed[:] = chosen
    traded = turn.grid.trades(lots[None], closed[None])[0] / turn.grid.size[0]
    error[turn.codes] += (traded - turn.convex[0]) * turn.unit


def _reallocated(done: _Done, before: LotPlans, found: tuple[Array, NDArray[np.bool_]]) -> _Done:
    """The stack with these lots and closings, where they pass the check."""

    def checked(lots: Array, closed: NDArray[np.bool_]) -> _Done:
        problem, solved = done.solved.problem, done.solved
        return _checked(problem, done.answers, before.at(problem, lots, closed), solved.held, solved.solver)

    again = checked(*found)
    lost = done.solved.checked.passed & ~again.solved.checked.passed
    if not lost.any():
        return again
    # Lost by a rounding error: these keep what they had.
    lots, closed = found
    return checked(np.where(lost[:, None], before.lots, lots), np.where(lost[:, None], before.closed, closed))


def _alone(policy: Policy, stack: Stack, i: int, spent: Effort, lots: LotPlans | None) -> Plan:
    # What stacks can do for it is done.
    return _planned(policy, stack.portfolio(i), spent, lots.tried(i) if lots is not None else None)


def _read(policy: Policy, table: pd.DataFrame, odd: Odd, known: frozenset[str], spent: Effort) -> Plan:
    """The plan of a portfolio that is read from its rows of the table."""
    return _planned(policy, inputs.portfolio(policy, table, odd, known), spent)


def _planned(policy: Policy, portfolio: Portfolio, spent: Effort, tried: Tried | None = None) -> Plan:
    clock = spent.clock()
    problem = policy.problem(portfolio)
    return finished(problem, solve_convex(problem, spent.solver), spent, tried, clock)


def _made(policy: Policy, done: _Done, i: int) -> Plan:
    """The plan of one portfolio of a stack: its answer, with the exact check of its orders."""
    solved, answers = done.solved, done.answers
    problem = newton.with_rows(policy.problem(solved.problem.portfolio.portfolio(i)), answers, i)
    prices = Prices(answers.rows[i], np.zeros(0), answers.budgets[i])
    status, name = (Status.NO_TRADE, "holding") if solved.held[i] else (Status.OPTIMAL, solved.solver)
    objective, bound = float(answers.objective[i]), float(answers.bound[i])
    solution = Solution(status, name, _copy(answers.weights[i]), prices, objective, bound)
    return finished(problem, solution, tried=done.lots.tried(i) if done.lots is not None else None)


def _copy(weights: Array) -> Array:
    return np.array(weights)


def _itself(plan: Plan) -> Plan:
    return plan


def _guarded(one: _Alone, refused: Mapping[object, str], begun: Callable[[], None] | None) -> Plan:
    """The result of this work, or a plan that says why there is none: nothing leaves its own portfolio."""
    try:
        if one.name in refused:
            raise InputError(refused[one.name], portfolio=one.name)
        if begun is not None:
            begun()
        return one.work()
    except InputError as error:
        return Plan(Status.INVALID_INPUT, one.name, str(error))
    except Exception as error:
        if begun is not None and isinstance(error, MemoryError):
            raise
        return Plan(Status.UNSOLVED, one.name, f"internal error, please report it: {type(error).__name__}: {error}")
