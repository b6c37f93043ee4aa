"""Planted conflicts, and what is said of them, judged by a linear program of its own, written from the definitions.

Rules are drawn around a random plan that keeps them. Then one rule's limit is moved beyond the best that all the others
allow, by a margin of 1e-1 to 1e-7 of NAV; the best is the linear program's. A set of rules is in conflict if the least
excess over all their limits, at the same time, is above zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import linprog

from equipoise.constraints import (
    AfterShock,
    CashFloor,
    CVaR,
    DriftBand,
    FactorLimit,
    GroupLimit,
    HealthFactor,
    Leverage,
    LongOnly,
    Rule,
    Turnover,
    WeightBounds,
)
from equipoise.constraints.errors import InputError
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.problem.costs import ProportionalCost
from equipoise.optimizer.problem.policy import Policy
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Solution, Status
from equipoise.optimizer.solvers.choose import solve
from equipoise.optimizer.solvers.infeasible import Explanation, explain
from scorecard.figure import Result, Row

CASH = "USD"
#: An excess that is none for the judge, whose solver keeps rows to 1e-10; what the verifier lets pass is 1e-9.
NOTHING = 2e-9
MOVES = {f"move {k}": move for k, move in enumerate((-0.4, -0.25, -0.1, -0.05, 0.0, 0.1))}
LEVEL, FALL, RISE = 0.5, 0.2, 0.1

#: Coefficients of a linear function by the program's variables: w, b, s, p, q (one an asset), cash, owed.
Terms = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Kind:
    """A rule by its name: `rule(limit)`, its value as the largest of linear functions, and their limits."""

    name: str
    rule: Callable[[float], Rule]
    values: list[Terms]  # what must be at most sign·limit + offset
    sign: float = 1.0  # −1: the limit is a floor
    offsets: Any = 0.0
    limit: float = 0.0
    movable: bool = True  # has one number that can be planted
    tail: bool = False  # the mean of the worst half of `values`, not the largest

    @property
    def uppers(self) -> np.ndarray:
        return self.sign * self.limit + np.broadcast_to(self.offsets, len(self.values))


@dataclass(frozen=True, eq=False)
class Book:
    """A small account: weights before, targets, cost rates, the columns that rules read."""

    table: pd.DataFrame

    @property
    def assets(self) -> list[str]:
        return [label for label in self.table.index if label != CASH]

    def of(self, column: str) -> np.ndarray:
        return self.table[column].to_numpy()[:-1]

    def problem(self, kinds: Iterable[Kind]) -> Problem:
        rules = tuple(replace(kind.rule(kind.limit), name=kind.name) for kind in kinds)
        costs = (ProportionalCost("buy", "sell"),)
        return Policy(costs=costs, constraints=rules).problem(Portfolio.from_table(self.table, CASH))


class Judge:
    """The linear program over w, b, s, p, q of the assets, the cash after costs (cash − owed), and an excess."""

    def __init__(self, book: Book) -> None:
        self.book, n = book, len(book.assets)
        self.n, self.size = n, 5 * n + 3
        at = {name: slice(k * n, (k + 1) * n) for k, name in enumerate("wbspq")}
        self.at: dict[str, Any] = at | {"cash": 5 * n, "owed": 5 * n + 1, "excess": 5 * n + 2}
        self.bounds = [(-100.0, 100.0)] * n + [(0.0, None)] * (4 * n + 2) + [(None, None)]
        eye = np.eye(n)
        equal = [self.row({"w": eye[i], "b": -eye[i], "s": eye[i]}) for i in range(n)]
        equal += [self.row({"w": eye[i], "p": -eye[i], "q": eye[i]}) for i in range(n)]
        # Cash after trades and costs: 1 − Σ w − buy·b − sell·s.
        equal.append(self.row({"w": 1.0, "b": book.of("buy"), "s": book.of("sell"), "cash": 1.0, "owed": -1.0}))
        self.equal = np.array(equal)
        self.right = np.concatenate([book.of("quantity"), np.zeros(n), [1.0]])

    def row(self, terms: Terms) -> np.ndarray:
        row = np.zeros(self.size)
        for name, coefficient in terms.items():
            row[self.at[name]] = coefficient
        return row

    def rows(self, kinds: Iterable[Kind], excess: float) -> tuple[np.ndarray, np.ndarray]:
        """All limits, of which each may be exceeded by `excess` times the excess."""
        left, right = [np.zeros(self.size)], [0.0]
        for kind in kinds:
            values = np.array([self.row(value) for value in kind.values])
            if kind.tail:  # the mean of the worst half is at most the mean of any half: all of these
                halves = [list(half) for half in _halves(len(values))]
                values, uppers = np.array([values[half].mean(axis=0) for half in halves]), kind.uppers[: len(halves)]
                uppers = np.full(len(halves), kind.uppers[0])
            else:
                uppers = kind.uppers
            values[:, self.at["excess"]] = -excess
            left += list(values)
            right += uppers.tolist()
        return np.array(left), np.array(right)

    def least(self, goal: np.ndarray, left: np.ndarray, right: np.ndarray) -> float | None:
        options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
        given = {"A_ub": left, "b_ub": right, "A_eq": self.equal, "b_eq": self.right, "bounds": self.bounds}
        found = linprog(goal, **given, method="highs", options=options)
        return float(found.fun) if found.status == 0 else None

    def excess(self, kinds: Iterable[Kind]) -> float:
        """The least excess over all limits of these rules at once; above 0 they are in conflict."""
        left, right = self.rows(kinds, 1.0)
        floor = np.zeros(self.size)
        floor[self.at["excess"]] = -1.0
        found = self.least(-floor, np.vstack([left, floor]), np.append(right, 1.0))
        assert found is not None
        return found

    def best(self, kind: Kind, others: Iterable[Kind]) -> float | None:
        """The nearest limit of this rule with which the others can be kept."""
        left, right = self.rows(others, 0.0)
        free = replace(kind, limit=0.0)
        own, uppers = self.rows([free], 1.0)
        goal = np.zeros(self.size)
        goal[self.at["excess"]] = 1.0
        found = self.least(goal, np.vstack([left, own[1:]]), np.append(right, uppers[1:]))
        return None if found is None else kind.sign * found


def _halves(count: int) -> Iterator[tuple[int, ...]]:
    from itertools import combinations

    return combinations(range(count), count // 2)


def drawn(rng: np.random.Generator) -> tuple[Book, list[Kind]]:
    """An account and rules that a random plan of it keeps."""
    n = int(rng.integers(3, 9))
    labels = [f"A{i}" for i in range(n)]
    before, after = (rng.dirichlet(np.ones(n + 1)) for _ in range(2))
    if indebted := bool(rng.random() < 0.4):
        before[0], after[0] = -0.3 * before[0] - 0.01, -0.3 * after[0] - 0.01
        before[1:] *= (1 - before[0]) / before[1:].sum()
        after[1:] *= (1 - after[0]) / after[1:].sum()
    rates = rng.choice([0.0, 1e-3, 5e-3], (2, n))
    columns = {
        "quantity": before,
        "price": 1.0,
        "target": after,
        "buy": np.append(rates[0], 0.0),
        "sell": np.append(rates[1], 0.0),
        "sector": [*(f"S{k}" for k in rng.integers(0, 3, n)), None],
        "beta": np.append(np.round(rng.normal(1.0, 0.5, n), 2), 0.0),
        "threshold": np.append(np.round(rng.uniform(0.5, 0.9, n), 2), 0.0),
    }
    book = Book(pd.DataFrame(columns, index=[*labels, CASH]))
    kinds = [kind for kind in _kinds(book, rng, indebted) if rng.random() < 0.6 or kind.name == "cash floor"]
    w, z = after[:-1], (after - before)[:-1]
    b, s = np.maximum(z, 0.0), np.maximum(-z, 0.0)
    cash = 1.0 - w.sum() - float(book.of("buy") @ b + book.of("sell") @ s)
    point = {"w": w, "b": b, "s": s, "p": np.maximum(w, 0.0), "q": np.maximum(-w, 0.0)}
    point |= {"cash": max(cash, 0.0), "owed": max(-cash, 0.0)}
    return book, [_around(kind, point, float(rng.uniform(0, 0.03))) for kind in kinds]


def _around(kind: Kind, point: Terms, room: float) -> Kind:
    """With the limit that the point keeps, with this much room."""
    values = np.array([sum(np.sum(c * point[name]) for name, c in terms.items()) for terms in kind.values])
    value = float(np.sort(values)[-(len(values) // 2) :].mean()) if kind.tail else float(np.max(values - kind.offsets))
    return replace(kind, limit=kind.sign * (value + room)) if kind.movable else kind


def _kinds(book: Book, rng: np.random.Generator, indebted: bool) -> Iterator[Kind]:
    assets, n, eye = book.assets, len(book.assets), np.eye(len(book.assets))
    i, j = rng.permutation(n)[:2].tolist()
    sectors = book.table["sector"].to_numpy()[:-1]
    one, other = rng.permutation(sorted(set(sectors)))[[0, -1]].tolist()
    beta, target = book.of("beta"), book.of("target")
    yield Kind("cash floor", CashFloor, [{"cash": -1.0, "owed": 1.0}], -1.0)
    yield Kind("cap", lambda x: WeightBounds(upper=x, assets=[assets[i]]), [{"w": eye[i]}])
    yield Kind("floor", lambda x: WeightBounds(lower=x, assets=[assets[j]]), [{"w": -eye[j]}], -1.0)
    yield Kind("sector cap", lambda x: GroupLimit("sector", upper={one: x}), [{"w": 1.0 * (sectors == one)}])
    yield Kind(
        "sector floor", lambda x: GroupLimit("sector", lower={other: x}), [{"w": -1.0 * (sectors == other)}], -1.0
    )
    yield Kind("turnover", Turnover, [{"b": 0.5, "s": 0.5}])
    yield Kind("gross", lambda x: Leverage(gross=x), [{"p": 1.0, "q": 1.0}])
    yield Kind("beta cap", lambda x: FactorLimit("beta", upper=x), [{"w": beta}])
    yield Kind("beta floor", lambda x: FactorLimit("beta", lower=x), [{"w": -beta}], -1.0)
    away = [{"w": side * eye[k]} for k in range(n) for side in (1.0, -1.0)]
    centre = np.array([side * target[k] for k in range(n) for side in (1.0, -1.0)])
    yield Kind("band", lambda x: DriftBand(absolute=x), away, offsets=centre)
    if not indebted:
        yield Kind("long only", lambda x: LongOnly(), [{"w": -eye[k]} for k in range(n)], movable=False)
        return
    # Ratio rules: h·debts − Σ threshold·collateral ≤ 0 at h = 1.2, after moves too; their limit is not moved.
    threshold, h = book.of("threshold"), 1.2

    def ratio(up: float, down: float) -> Terms:
        return {"q": h * up, "p": -threshold * down, "owed": h}

    health = HealthFactor(h, "threshold")
    yield Kind("health", lambda x: health, [ratio(1.0, 1.0)], movable=False)
    yield Kind("shock", lambda x: AfterShock(health, FALL, RISE), [ratio(1.0 + RISE, 1.0 - FALL)], movable=False)
    moved = [ratio(1.0 + move, 1.0 + move) for move in MOVES.values()]
    yield Kind("tail", lambda x: CVaR(health, MOVES, level=LEVEL), moved, movable=False, tail=True)


@dataclass(frozen=True, eq=False)
class Case:
    number: int
    margin: float
    book: Book
    kinds: list[Kind]
    judge: Judge


def planted(count: int, seed: int = 5) -> Iterator[Case]:
    """`count` accounts with a planted conflict."""
    made = number = 0
    while made < count:
        rng = np.random.default_rng([seed, number])
        number += 1
        book, kinds = drawn(rng)
        judge = Judge(book)
        movable = [kind for kind in kinds if kind.movable]
        chosen = movable[int(rng.integers(len(movable)))]
        others = [kind for kind in kinds if kind is not chosen]
        margin = float(10.0 ** rng.uniform(-7, -1))
        best = judge.best(chosen, others)
        if best is None or abs(best) > 3 or (chosen.name in ("turnover", "gross", "band") and best <= 2 * margin):
            continue
        moved = replace(chosen, limit=best - chosen.sign * margin)
        case = [moved if kind is chosen else kind for kind in kinds]
        try:
            book.problem(case)
        except InputError:
            continue
        made += 1
        yield Case(number - 1, margin, book, case, judge)


@lru_cache
def _answers(count: int) -> list[tuple[Case, Solution, Explanation]]:
    found = []
    for case in planted(count):
        problem = case.book.problem(case.kinds)
        found.append((case, solve(problem), explain(problem)))
    return found


def called_feasible(count: int) -> Result:
    """Of planted conflicts, those for which there is an answer."""
    missed, unproven = [], 0
    for case, answer, _ in _answers(count):
        unproven += answer.status is Status.UNSOLVED
        if answer.weights is not None:
            missed.append(f"case {case.number}, margin {case.margin:.1e}: {answer.status.name}")
    return Result(f"{len(missed)} of {count} ({unproven} not proven)", not missed, tuple(missed))


def conflict_sets(count: int) -> Result:
    """Of the sets of rules that are named, those that are no conflict, or that name an idle rule; and printed least
    limits with which the rules, as they are printed, cannot be kept."""
    missed = []
    for case, _, said in _answers(count):
        if said.status is not Status.INFEASIBLE:
            continue
        named = [kind for kind in case.kinds if kind.name in said.rules]
        wrong = []
        if len(named) < len(said.rules) or case.judge.excess(named) <= 0:
            wrong.append("not sufficient")
        wrong += [
            f"{kind.name} is idle"
            for kind in named
            if case.judge.excess([other for other in named if other is not kind]) > NOTHING
        ]
        wrong += [
            f"{kind.name} as printed is not enough" for kind, limit in _printed(case, said) if _fails(case, kind, limit)
        ]
        if wrong:
            missed.append(f"case {case.number}, margin {case.margin:.1e}: {', '.join(wrong)}: {said.text}")
    return Result(f"{len(missed)} of {count}", not missed, tuple(missed))


def _printed(case: Case, said: Explanation) -> Iterator[tuple[Kind, float]]:
    """The least limits that are printed, with their rules."""
    for kind in case.kinds:
        pattern = rf"(?:^|\. ){kind.name}: the [^;:]*?(?:must be at least|at best)? ?(?:at least|reaches) (-?[\d.]+) %"
        for text in re.findall(pattern, said.text):
            if kind.movable and kind.name != "band":
                yield kind, float(text) / 100.0


def _fails(case: Case, kind: Kind, limit: float) -> bool:
    """Whether nothing keeps all rules with this limit: by the library, and by the judge."""
    kinds = [replace(other, limit=limit) if other is kind else other for other in case.kinds]
    return solve(case.book.problem(kinds)).weights is None or case.judge.excess(kinds) > NOTHING


ROWS = [
    Row(5, "planted conflicts (1e-1 to 1e-7 of NAV) called feasible", "0", called_feasible, 8, 1_000),
    Row(
        12,
        "conflict sets with an idle rule, not sufficient, or least limits that do not work",
        "0",
        conflict_sets,
        8,
        1_000,
    ),
]
