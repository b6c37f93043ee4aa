"""Sequences that are said to be safe, replayed by an accounting of their own.

`replay` knows the table's decimals, the rules' numbers and docs/definitions.md, and nothing of the library: cash,
positions and every fee in fractions, state after state. Each step is filled in random parts, in lots, and by next to
nothing: an order pays its fixed fee and its least commission in full with its first fill.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
from accounts_cases import COINS, PRICE, Case, random_case

from equipoise import Plan, Rebalancer, Status
from equipoise.constraints import (
    CashFloor,
    CollateralRatio,
    HealthFactor,
    InitialMargin,
    Leverage,
    LotSize,
    Rule,
)
from equipoise.optimizer import FixedFee, MinimumCommission, ProportionalCost, sequenced
from equipoise.optimizer.verification.exact import verify
from scorecard.figure import Result, Row

NEXT_TO_NOTHING = Fraction(1, 10**15)


def decimal(x: float) -> Fraction:
    """The decimal number that shows it."""
    return Fraction(repr(float(x)))


@dataclass(frozen=True)
class Book:
    """One account of collateral, debts and a cash: what is held, what orders cost, and what must stay true.

    `limits`: health factor, collateral ratio, margin (rate, part of the equity), gross leverage, floor of the cash; of
    rules that are not asked there is none.
    """

    table: pd.DataFrame
    limits: Mapping[str, Any]
    rate: float
    fixed: float
    minimum: float
    commission: float
    lots: bool

    @property
    def rules(self) -> list[Rule]:
        made: dict[str, Callable[[Any], Rule]] = {
            "HealthFactor": lambda x: HealthFactor(x, "threshold"),
            "CollateralRatio": CollateralRatio,
            "InitialMargin": lambda x: InitialMargin(x[0], utilisation=x[1]),
            "Leverage": lambda x: Leverage(gross=x),
            "CashFloor": CashFloor,
        }
        return [made[name](x) for name, x in self.limits.items()] + ([LotSize(1.0)] if self.lots else [])

    def plan(self, trades: Mapping[str, float]) -> Plan:
        """The verified plan of these trades, or one without orders."""
        costs: list[Any] = [ProportionalCost(self.rate)]
        costs += [FixedFee(self.fixed)] if self.fixed else []
        costs += [MinimumCommission(self.minimum, self.commission)] if self.minimum else []
        worth = self.table["quantity"] * self.table["price"]
        made = Rebalancer(cash="USD", constraints=self.rules, costs=costs)
        problem = made.problem(self.table.assign(target=worth / worth.sum()))
        units = tuple(decimal(trades.get(asset, 0.0)) for asset in problem.assets)
        checked = verify(problem, units, whole_lots=problem.discrete)
        status = Status.FEASIBLE if checked.passed else Status.UNSOLVED
        return Plan(status, None, "", problem, None, checked, units, checked.weights)


class Accounting:
    """What a book holds while orders are filled, and by how much each rule is broken, in money."""

    def __init__(self, book: Book, on_the_way: Mapping[str, float]) -> None:
        table = book.table
        self.book, self.price = book, {a: decimal(p) for a, p in table["price"].items()}
        self.threshold = {a: decimal(x) for a, x in table["threshold"].items()}
        self.held = {a: decimal(q) for a, q in table["quantity"].items()}
        self.nav = sum((q * self.price[a] for a, q in self.held.items()), Fraction(0))
        self.limits = {**book.limits, **on_the_way}
        self.kept = (Fraction(1, 10**12) if book.lots or book.fixed or book.minimum else Fraction(1, 10**9)) * self.nav

    def filled(self, asset: str, units: Fraction) -> dict[str, Fraction]:
        """What is held after this fill of a new order, and all that it costs."""
        book, money = self.book, units * self.price[asset]
        size = abs(money)
        cost = decimal(book.rate) * size + decimal(book.fixed)
        cost += max(decimal(book.minimum), decimal(book.commission) * size) if book.minimum else Fraction(0)
        after = dict(self.held)
        after[asset] += units
        after["USD"] -= money + cost
        return after

    def broken(self, held: Mapping[str, Fraction]) -> dict[str, Fraction]:
        """By how much (below 0: kept)."""
        value = {a: q * self.price[a] for a, q in held.items()}
        debt = sum((-v for v in value.values() if v < 0), Fraction(0))
        found: dict[str, Fraction] = {}
        for name, limit in self.limits.items():
            if name == "HealthFactor":
                covered = sum((Fraction(float(self.threshold[a])) * v for a, v in value.items() if v > 0), Fraction(0))
                found[name] = Fraction(limit) * debt - covered
            elif name == "CollateralRatio":
                found[name] = Fraction(limit) * debt - sum((v for v in value.values() if v > 0), Fraction(0))
            elif name == "InitialMargin":
                needed = sum((abs(v) for a, v in value.items() if a != "USD"), Fraction(0)) * Fraction(limit[0])
                found[name] = needed - Fraction(limit[1]) * sum(value.values(), Fraction(0))
            elif name == "Leverage":
                gross = sum((abs(v) for a, v in value.items() if a != "USD"), Fraction(0))
                found[name] = gross - Fraction(limit) * self.nav
            else:
                found[name] = Fraction(limit) * self.nav - value["USD"]
        return found

    def worse(self, held: Mapping[str, Fraction], before: Mapping[str, Fraction]) -> str | None:
        """The rule that this state breaks, and by more than the state before the step."""
        now, was = self.broken(held), self.broken(before)
        return next((name for name, x in now.items() if x > max(self.kept, was[name])), None)


def fills(units: Fraction, lots: bool, rng: np.random.Generator) -> Iterator[Fraction]:
    """Parts of an order that may be filled when somebody looks."""
    yield units * NEXT_TO_NOTHING
    for k in rng.integers(1, 1000, 6).tolist():
        yield units * Fraction(k, 1000)
    if lots and units.denominator == 1:
        count = abs(int(units))
        yield from (Fraction(k if units > 0 else -k) for k in {1, 2, count // 2, count - 1} if 0 < k < count)
    yield units


def replay(book: Book, plan: Plan, found: Any, rng: np.random.Generator) -> str | None:
    """What is wrong with the steps; None if nothing is."""
    books = Accounting(book, found.on_the_way)
    done: dict[str, Fraction] = {}
    for number, step in enumerate(found.steps, 1):
        units = step.quantity if step.side == "buy" else -step.quantity
        for part in fills(units, book.lots, rng):
            if (rule := books.worse(books.filled(step.asset, part), books.held)) is not None:
                return f"step {number}: {rule} broken after {float(part / units):.3g} of {step.side} {step.asset}"
        books.held = books.filled(step.asset, units)
        done[step.asset] = done.get(step.asset, Fraction(0)) + units
        if books.held["USD"] != step.cash:
            return f"step {number}: the cash is {float(books.held['USD'])}, not {float(step.cash)}"
    assert plan.problem is not None
    wanted = {a: x for a, x in zip(plan.problem.assets, plan.trades, strict=True) if x}
    if done != wanted:
        return "the steps are not the plan's orders"
    over = Accounting(book, {}).broken(books.held)
    return next((f"{name} is broken at the end" for name, x in over.items() if x > books.kept), None)


def permuted(book: Book, trades: Mapping[str, Fraction]) -> bool:
    """Whether whole orders are safe in some order of them, by trying all."""
    for order in itertools.permutations(trades):
        books = Accounting(book, {})
        for asset in order:
            units = trades[asset]
            states = [books.filled(asset, part) for part in (units * NEXT_TO_NOTHING, units)]
            if any(books.worse(held, books.held) for held in states):
                break
            books.held = states[-1]
        else:
            return True
    return False


def drawn(rng: np.random.Generator) -> tuple[Book, dict[str, float]]:
    """A book and trades; limits lie near what its end keeps, and some are broken at the start."""
    n = int(rng.integers(2, 6))
    debts = int(rng.integers(1, max(2, n // 2 + 1)))
    lots = bool(rng.random() < 0.5)
    sign = np.where(np.arange(n) < n - debts, 1.0, -1.0)
    price = np.round(np.exp(rng.normal(3.0, 1.0, n)), 2)
    held = sign * np.maximum(1.0, np.round(rng.uniform(0.3, 1.0, n) * np.where(sign > 0, 9e4, 4e4) / price))
    trade = np.round(held * rng.uniform(-0.7, 0.7, n))
    trade = trade if lots else np.round(trade * 0.97, 3)
    worth, traded = held * price, trade * price
    rate, fixed = float(rng.choice([0.0, 0.001, 0.01])), float(rng.choice([0.0, 0.0, 5.0, 60.0]))
    minimum = float(rng.choice([0.0, 0.0, 20.0, 150.0]))
    commission = float(rng.choice([0.0, 0.002])) if minimum else 0.0
    orders = int(np.count_nonzero(trade))
    spent = float(traded.sum() + (rate + commission) * np.abs(traded).sum()) + orders * (fixed + minimum)
    cash = round(max(spent, 0.0) + float(rng.choice([0.0, 100.0, 1_000.0, 2e4])), 2)
    threshold = np.where(rng.random(n) < 0.8, rng.choice([0.6, 0.7, 0.8, 0.85], n), 0.0) * (sign > 0)
    after, nav = worth + traded, worth.sum() + cash
    debt = -np.minimum(after, 0.0).sum()
    tight = float(rng.choice([1.0 - 1e-9, 0.995, 0.9]))
    limits: dict[str, Any] = {"CashFloor": float(rng.choice([0.0, 0.0, max((cash - spent) / nav * 0.9, 0.0)]))}
    health = float((threshold * np.maximum(after, 0.0)).sum() / debt) if debt > 0 else 0.0
    if health > 1.0 and rng.random() < 0.9:
        limits["HealthFactor"] = min(health, 50.0) * tight
    if debt > 0 and np.maximum(after, 0.0).sum() / debt > 1.2 and rng.random() < 0.2:
        limits["CollateralRatio"] = float(np.maximum(after, 0.0).sum() / debt) * 0.9
    if rng.random() < 0.2:
        limits["Leverage"] = float(max(np.abs(after).sum(), np.abs(worth).sum()) / nav / tight)
    if rng.random() < 0.2:
        limits["InitialMargin"] = (0.1, 0.9)
    names = [f"{'C' if s > 0 else 'D'}{i}" for i, s in enumerate(sign)]
    table = pd.DataFrame(
        {
            "quantity": [*held, cash],
            "price": [*price, 1.0],
            "threshold": [*threshold, 0.0 if rng.random() < 0.7 else 0.9],
        },
        index=pd.Index([*names, "USD"], name="asset"),
    )
    return Book(table, limits, rate, fixed, minimum, commission, lots), dict(zip(names, trade.tolist(), strict=True))


def one_account(rng: np.random.Generator) -> tuple[str, str | None]:
    """What a random plan's sequence comes to: safe, sliced, none or missed; and what is wrong."""
    while True:
        book, trades = drawn(rng)
        if (book.table["quantity"] * book.table["price"]).sum() <= 1e4 or not any(trades.values()):
            continue
        plan = book.plan(trades)
        if plan.status.ok:
            break
    found = sequenced(plan)
    if found.safe:
        return "whole" if found.whole else "sliced", replay(book, plan, found, rng)
    units = {a: decimal(x) for a, x in trades.items() if x}
    return "missed" if permuted(book, units) else "none", None


class Venues:
    """Several accounts: each cash pays what is documented, and every row is in money."""

    def __init__(self, case: Case) -> None:
        rows = case.table.set_index(pd.Index(case.labels))
        self.case, self.rows = case, rows
        self.price = {a: decimal(p) for a, p in rows["price"].items()}
        self.value = {a: decimal(q) * self.price[a] for a, q in rows["quantity"].items()}
        self.nav = sum(self.value.values(), Fraction(0))
        self.transfers = {}
        for t in case.rebalancer.policy.transfers:
            self.transfers[t.source, t.destination] = t
            if t.two_way:
                self.transfers[t.destination, t.source] = t

    def filled(self, step: Any, units: Fraction) -> dict[str, Fraction]:
        after = dict(self.value)
        cash = self.case.rebalancer.accounts
        if step.side == "move":
            source, destination = step.asset.split(" -> ")
            transfer, money = self.transfers[source, destination], units * self.price[source]
            after[source] -= money
            after[destination] += money
            # The cash of the account that it leaves, else of that which it reaches.
            own = [end.split("/")[0] for end in (source, destination)]
            payer = transfer.paid_by or next((account for account in own if account in cash), next(iter(cash)))
            cost = decimal(transfer.cost) * money
        else:
            payer, money = step.asset.split("/")[0], units * self.price[step.asset]
            after[step.asset] += money if step.side == "buy" else -money
            after[f"{payer}/{cash[payer]}"] -= money if step.side == "buy" else -money
            row = self.rows.loc[step.asset]
            cost = decimal(row["fee"]) * money + decimal(row["slope"]) * money * money / self.nav
        after[f"{payer}/{cash[payer]}"] -= cost
        return after

    def broken(self, value: Mapping[str, Fraction], on_the_way: Mapping[str, float]) -> list[Fraction]:
        case = self.case
        owed = -value["lending/USDC owed"]
        covered = sum((Fraction(0.8) * value[f"lending/{coin}"] for coin in COINS), Fraction(0))
        perps = [value[f"perps/{coin}"] for coin in COINS]
        health = Fraction(on_the_way.get("In (lending health factor)", on_the_way.get("In", case.health)))
        equity = value["perps/USDC"] + sum(perps)
        found = [health * owed - covered, Fraction(0.1) * sum(map(abs, perps)) - Fraction(case.margin) * equity, -owed]
        found += [Fraction(case.floor) * self.nav - value["exchange/USDT"], -value["wallet/USDC"]]
        held = [a for a in value if a.split("/")[0] in ("exchange", "wallet", "lending") and "owed" not in a]
        return [*found, *(-value[a] for a in held)]


def several_accounts(rng: np.random.Generator) -> tuple[str, str | None]:
    assert PRICE
    while True:
        case = random_case(rng)
        plan = case.rebalancer.solve(case.table)
        if plan.status.ok and (len(plan.orders) or len(plan.transfers)):
            break
    found = sequenced(plan)
    if not found.safe:
        return "none", None
    books = Venues(case)
    for number, step in enumerate(found.steps, 1):
        was = books.broken(books.value, found.on_the_way)
        for part in [NEXT_TO_NOTHING, *(Fraction(int(k), 1000) for k in rng.integers(1, 1000, 4)), Fraction(1)]:
            after = books.filled(step, part * step.quantity)
            worst = max(
                x - max(y, Fraction(0)) for x, y in zip(books.broken(after, found.on_the_way), was, strict=True)
            )
            if worst > Fraction(2, 10**9) * books.nav:
                return "whole", f"step {number}: broken by {float(worst):.6g} after {float(part):.3g} of {step.asset}"
        books.value = books.filled(step, step.quantity)
    if found.whole:  # slices of an order cost a little less than its square says
        after = plan.quantities["after"]
        for asset, value in books.value.items():
            if abs(value - decimal(after[asset]) * books.price[asset]) > Fraction(1, 10**9) * books.nav:
                return "whole", f"{asset} ends at {float(value)}, not at {after[asset]} units"
    return "whole" if found.whole else "sliced", None


def _safe(count: int) -> Result:
    """Three of four in one account, the rest in four."""
    said, missed = dict.fromkeys(("whole", "sliced", "none", "missed"), 0), []
    for i in range(count):
        kind, draw = ("four accounts", several_accounts) if i % 4 == 3 else ("one account", one_account)
        outcome, wrong = draw(np.random.default_rng([11, i]))
        said[outcome] += 1
        if wrong:
            missed.append(f"{i}, {kind}: {wrong}")
    words = f"{len(missed)} of {said['whole'] + said['sliced']} broken ({said['sliced']} in slices); "
    words += f"{said['none']} have none, {said['missed']} more were missed though whole orders are safe in some order"
    return Result(words, not missed, tuple(missed))


ROWS: Sequence[Row] = [
    Row(11, "sequences said to be safe: a prefix or partial fill breaks a rule", "0", _safe, 20, 1000),
]
