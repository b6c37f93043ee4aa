"""A rule and a kind of piece from outside the package: one class each, and everything else asks them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise import Rebalancer
from equipoise.constraints import Account, CashFloor, LongOnly, LotSize, Rule, WeightBounds
from equipoise.constraints.pieces import Array, Check, Piece, Row, Settlement, Shape, Words
from equipoise.constraints.rules.rule import ones
from equipoise.optimizer import Status
from equipoise.optimizer.verification.exact import verify

LIMIT = 0.32


@dataclass(frozen=True, eq=False, kw_only=True)
class Squares(Shape):
    """Σ (counted·w)² ≤ upper."""

    counted: Array
    upper: float

    @property
    def words(self) -> Words:
        return Words(upper=self.upper)

    def ratio(self, weights: Array, trades: Array) -> float:
        return float(np.sum((self.counted * weights) ** 2))

    def excess(self, weights: Array, trades: Array) -> float:
        return self.ratio(weights, trades) - self.upper

    def constraints(self, weights: Any, trades: Any) -> Sequence[Any]:
        import cvxpy as cp

        return [cp.sum_squares(cp.multiply(self.counted, weights)) <= self.upper]

    def checks(self, title: str, settled: Settlement) -> Iterator[Check]:
        amounts = [x for x, counted in zip(settled.value, self.counted, strict=True) if counted]
        squares = Fraction(sum(x * x for x in amounts), settled.nav**2)
        slack = (Fraction(self.upper) - squares) * settled.nav
        what = title, self.label, None, float(squares), self.upper, False
        yield settled.judged(what, slack.numerator, slack.denominator)


@dataclass(frozen=True)
class Concentration(Rule):
    """The Herfindahl index of all assets but the cash, Σ w², is at most `limit`."""

    limit: float

    def pieces(self, account: Account) -> Sequence[Piece]:
        return (Squares(label="Herfindahl index", counted=ones(account), upper=self.limit),)


@dataclass(frozen=True)
class MostOf(Rule, stacks=True):
    """The weight of one asset is at most that of all others but the cash."""

    asset: str

    def pieces(self, account: Account) -> Sequence[Piece]:
        mine = np.where(account.positions([self.asset], "asset"), 2.0, 0.0) - ones(account)
        return (Row(label="weight beyond the others", weight=mine, upper=0.0),)


def table(quantity: Sequence[float] = (90.0, 10.0, 0.0), target: Sequence[float] = (0.5, 0.5, 0.0)) -> pd.DataFrame:
    given = {"quantity": quantity, "price": [10.0, 10.0, 1.0], "target": target, "lot": [7.0, 7.0, 0.0]}
    return pd.DataFrame(given, index=["A", "B", "USD"])


def rebalancer(*rules: Rule) -> Rebalancer:
    return Rebalancer(cash="USD", constraints=[LongOnly(), *rules])


def squares(plan: Any) -> Fraction:
    """From the quantities after the plan alone: NAV 1000, prices 10."""
    return sum((Fraction(str(q)) / 100) ** 2 for q in plan.quantities["after"][["A", "B"]])


def test_a_rule_of_rows_is_solved_shown_and_checked_like_any() -> None:
    # (0.7, 0.1, 0.2) with A ≤ B: the nearest point takes 0.3 from the one and gives it to the other.
    plan = rebalancer(MostOf("A")).solve(table(target=(0.7, 0.1, 0.2)))
    assert plan.status is Status.OPTIMAL
    assert plan.weights["after"].tolist() == pytest.approx([0.4, 0.4, 0.2], abs=1e-6)
    check = plan.checks.set_index("rule").loc["MostOf"]
    assert check["passed"] and check["shadow_price"] > 0
    assert "MostOf" in str(plan)


def test_a_kind_of_piece_is_solved_shown_and_checked_exactly() -> None:
    plan = rebalancer(Concentration(LIMIT)).solve(table())
    # By symmetry 2·w² = 0.32 of two equal targets.
    assert plan.status.ok
    assert plan.weights["after"].tolist() == pytest.approx([0.4, 0.4, 0.2], abs=1e-5)
    check = plan.checks.set_index("rule").loc["Concentration"]
    assert check["passed"]
    assert check["value"] == pytest.approx(float(squares(plan)), abs=1e-15)
    assert check["value"] == pytest.approx(LIMIT, abs=1e-5)
    assert re.search(r"Herfindahl index +0\.82 -> 0\.32 \(at most 0\.32\)", str(plan))


@pytest.mark.parametrize(("sold", "passed"), [("50", True), ("49.999999999", False), ("50.000000001", True)])
def test_the_exact_check_is_its_own(sold: str, passed: bool) -> None:
    """From 90 and 40 to 40 and 40 units: Σ w² is 0.32 in decimals, and the float of 0.32 is a little above it."""
    problem = rebalancer(Concentration(LIMIT), CashFloor(-1.0)).problem(table((90.0, 40.0, -300.0)))
    found = verify(problem, [-Fraction(sold), Fraction(0), Fraction(0)], whole_lots=True)
    assert [check.passed for check in found.checks if check.rule == "Concentration"] == [passed]


def test_a_kind_of_piece_is_kept_in_whole_lots() -> None:
    plan = rebalancer(Concentration(LIMIT), LotSize("lot")).solve(table())
    assert plan.status.ok
    assert squares(plan) <= Fraction("0.32")
    assert all(lots == int(lots) for lots in plan.orders["quantity"] / 7)


def test_a_kind_of_piece_is_named_in_a_conflict() -> None:
    plan = rebalancer(Concentration(LIMIT), WeightBounds(lower={"A": 0.6})).solve(table())
    assert plan.status is Status.INFEASIBLE
    assert "Concentration" in plan.message and "WeightBounds" in plan.message
