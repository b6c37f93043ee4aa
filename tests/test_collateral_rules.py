"""Rules on collateral, debt and margin in whole solves: an independent program, published examples, stacks, orders.

Sources of the published figures: Aave v3 documentation (health factor), Comet's quote and liquidation rules, Maker's
liquidation ratios, dYdX v4 (margining), Binance (leverage brackets), IndexCoop FLI (test parameters).
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_accounts import account, reference
from strategies import ENVELOPES, instance
from test_margin import CUM, FLOOR, RATE

from equipoise import Rebalancer
from equipoise.constraints import (
    AfterMove,
    AfterScenarios,
    AfterShock,
    BorrowLimit,
    CashFloor,
    CollateralRatio,
    CVaR,
    Envelope,
    GreekLimit,
    HealthFactor,
    InitialMargin,
    InputError,
    LoanToValue,
    LongOnly,
    LotSize,
    MaintenanceMargin,
    NoTrade,
    PoolCaps,
    Reserve,
    Rule,
    SettledCash,
    ShortOnly,
)
from equipoise.constraints.rules.margin import deductions
from equipoise.constraints.rules.terms import Brackets, Counted, Spread, Tail
from equipoise.optimizer import CovarianceRisk, HoldingCost, ProportionalCost, Status, sequenced
from equipoise.optimizer.formulas import lending, leverage, liquidation, margin
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.portfolio.stack import stacks
from equipoise.optimizer.problem.policy import Policy
from equipoise.optimizer.solvers.choose import solve
from equipoise.optimizer.solvers.program.program import solve as by_program
from equipoise.optimizer.verification.exact import verify
from equipoise.optimizer.verification.stacked import verified

FEW = settings(max_examples=25)
seeds = st.integers(0, 2**32 - 1)


# --- the program -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=12)
@given(seeds)
def test_answers_equal_an_independent_program(seed: int) -> None:
    """Collaterals, debts, perpetuals and six rules at random: the objective of a program written by hand, by newton."""
    drawn = account(np.random.default_rng(seed))
    answer = solve(drawn.problem())
    assert answer.status in (Status.OPTIMAL, Status.NO_TRADE)
    assert answer.solver in ("newton", "holding", "threshold")
    _, objective = reference(drawn)
    if np.isfinite(objective):  # the reference's solver gave up where it is not
        assert answer.objective == pytest.approx(objective, abs=1e-7)


@pytest.mark.slow
@settings(max_examples=2)
@given(seeds)
def test_the_compiled_program_agrees(seed: int) -> None:
    """The same through cvxpy, whose rows are found in the same way."""
    problem = account(np.random.default_rng(seed), ("cvar", "limited", "sigmas", "tiers")).problem()
    mine, theirs = solve(problem), by_program(problem)
    assert theirs.weights is not None
    assert problem.violation(theirs.weights) <= 1e-9
    assert theirs.objective == pytest.approx(mine.objective, rel=1e-6, abs=1e-9)
    assert max(mine.bound, theirs.bound) <= min(mine.objective, theirs.objective) + 1e-9


def treasury(**changed: Any) -> pd.DataFrame:
    """A lending account whose target takes on more debt."""
    table = pd.DataFrame(
        {
            "quantity": [0.9, 0.5, -0.6, 0.2],
            "price": 1.0,
            "target": [2.4, 1.0, -2.6, 0.2],
            "threshold": [0.8, 0.7, 0.0, 0.0],
        },
        index=["ETH", "BTC", "debt", "USD"],
    )
    return table.assign(**changed)


SIDES = [LongOnly(except_=["debt"]), ShortOnly(["debt"])]
COVARIANCE = pd.DataFrame(
    [[0.64, 0.35, 0.0], [0.35, 0.36, 0.0], [0.0, 0.0, 0.0]], ["ETH", "BTC", "debt"], ["ETH", "BTC", "debt"]
)


def made(*rules: Rule, debt: float = 0.0, **options: Any) -> Rebalancer:
    """`debt`: the variance of the debt's own price."""
    covariance = COVARIANCE + debt * np.diag([0.0, 0.0, 1.0])
    return Rebalancer(cash="USD", risk=CovarianceRisk(covariance), constraints=[*SIDES, *rules], **options)


ENVELOPED: dict[str, Rule] = {
    "sigmas": AfterMove(HealthFactor(1.05, "threshold"), years=2 / 365, sigmas=3.0),
    "cvar": CVaR(HealthFactor(1.05, "threshold"), {f"s{i}": {"ETH": -0.04 * i, "BTC": -0.03 * i} for i in range(10)}),
    "limited": CollateralRatio(1.4, "threshold", cap={"ETH": 0.8}, share=0.6),
    "tiers": MaintenanceMargin({"ETH": [(0, 0.1), (0.5, 0.3)], "BTC": [(0, 0.2), (0.4, 0.5)]}, utilisation=0.4),
    "settled": SettledCash(0.01, {"ETH": 1.0}, by="venue"),
}


@pytest.mark.parametrize("name", list(ENVELOPED))
def test_a_batch_has_the_bits_of_each_alone(name: str) -> None:
    """Stacks stay on the fast path with envelopes, whoever the neighbours are, and pass the check in floats."""
    rng = np.random.default_rng(3)
    tables = {}
    for i in range(12):
        one = treasury(venue=["a", "a", "b", None])
        one["quantity"] = (one.quantity * rng.uniform(0.9, 1.1, 4)).round(6)
        tables[f"p{i}"] = one
    long = pd.concat([t.assign(portfolio_id=name) for name, t in tables.items()]).rename_axis("asset").reset_index()
    costs = [ProportionalCost(1e-3), HoldingCost(short={"debt": 0.03, "ETH": 0.0, "BTC": 0.0, "USD": 0.0})]
    if name == "settled":
        for one in tables.values():
            one["target"] = [0.5, 0.9, -0.6, 0.2]
        long["target"] = [x for one in tables.values() for x in one.target]
    rebalancer = made(ENVELOPED[name], debt=1e-2, costs=costs)
    plans = rebalancer.solve_batch(long)
    assert plans.results.verified.all()
    assert set(plans.results.solver) <= {"newton", "threshold", "holding"}
    problem = rebalancer.policy.problem(rebalancer.portfolio(tables["p3"], name="p3"))
    assert isinstance(problem.envelopes[0][1], Envelope)
    alone = rebalancer.solve(tables["p3"], name="p3")
    assert plans.results.objective["p3"] == alone.objective
    one = plans["p3"]
    assert one.checks.passed.all()
    assert one.checks.shadow_price[one.checks.rule == rebalancer.policy.constraints[-1].title].sum() > 0
    assert rebalancer.solve_batch(long[long.portfolio_id.isin(["p3", "p7"])]).results.objective["p3"] == alone.objective


# --- the pieces ----------------------------------------------------------------------------------------------------


def terms(rng: np.random.Generator, n: int) -> list[Any]:
    rate = np.cumsum(rng.uniform(0, 0.2, (n, 3)), axis=-1)
    floor = np.cumsum(rng.uniform(0, 0.3, (n, 3)), axis=-1)
    floor[:, 0] = 0.0
    kept = rng.uniform(0.3, 1.0, n)
    return [
        Brackets(rate - 0.2, rate + 0.2, deductions(floor, rate)),
        Counted(kept, rng.uniform(0.1, 0.5, n), float(rng.choice([0.3, 0.5, 0.7, 1.0])), 0.8),
        Tail(-rng.uniform(0, 1, (7, n)), 1 + rng.uniform(0, 1, (7, n)), rng.normal(size=7), float(rng.uniform(0.1, 1))),
        Spread(rng.normal(size=(2, n)), rng.uniform(0, 1, n)),
    ]


@FEW
@given(seeds, st.integers(2, 6))
def test_supporting_rows(seed: int, n: int) -> None:
    """Each plane meets its function where it was made and lies below it elsewhere; values in Fractions are the same."""
    rng = np.random.default_rng(seed)
    for term in terms(rng, n):
        w, other = rng.uniform(0, 0.6, (2, n)) if isinstance(term, Counted) else rng.normal(0, 0.5, (2, n))
        slopes, constant = term.plane(w, w)

        def at(x: np.ndarray, slopes: Any = slopes, constant: Any = constant) -> float:
            parts = {"weight": x, "long": np.maximum(x, 0), "short": np.maximum(-x, 0)}
            return float(sum((slopes[name] @ parts[name] for name in slopes), constant))

        assert at(w) == pytest.approx(float(term.of(w, w)), abs=1e-12)
        assert at(other) <= float(term.of(other, other)) + 1e-12
        assert np.linalg.norm(np.concatenate(list(slopes.values()))) <= 2 * term.steepness + 1e-12
        exact = np.array([Fraction(x) for x in w], dtype=object)
        assert isinstance(term.of(exact, exact), Fraction)
        assert float(term.of(exact, exact)) == pytest.approx(float(term.of(w, w)), abs=1e-12)


def test_the_published_brackets_of_binance() -> None:
    """BTCUSDT, 2024-10: the amounts that the exchange publishes, and its margins at the account's size."""
    assert deductions(FLOOR, RATE) == pytest.approx(CUM, rel=1e-12)
    rule = MaintenanceMargin({"BTC": list(zip(FLOOR, RATE, strict=True))})
    for notional in (1e3, 2.5e6, 99e6, 1.5e9):
        table = pd.DataFrame(
            {"quantity": [notional / 50_000, 1e9 - notional], "price": [50_000.0, 1.0], "target": [0.5, 0.5]},
            index=["BTC", "USD"],
        )
        portfolio = Portfolio.from_table(table, "USD")
        (piece,) = rule.pieces(portfolio)
        need = 1e9 * (piece.excess(portfolio.before, 0 * portfolio.before) + 1.0)
        assert need == pytest.approx(margin.maintenance_margin(notional, RATE, CUM), rel=1e-9)


@settings(max_examples=20)
@given(seeds)
def test_the_check_in_floats_never_passes_what_the_exact_check_fails(seed: int) -> None:
    """At limits reached up to rounding, whatever envelopes there are."""
    rng = np.random.default_rng(seed)
    one = instance(rng, rules=[str(rng.choice(ENVELOPES))], risk="dense", assets=int(rng.integers(2, 7)), slack=1e-13)
    problem = one.problem()
    w = one.planted_weights()[None]
    found = verified(_stack(one), w)
    if found.passed[0]:
        trades = [Fraction(str(x)) for x in found.trades[0]]
        assert verify(problem, trades, whole_lots=False).passed


def _stack(one: Any) -> Any:
    long = one.table.rename_axis("asset").reset_index().assign(portfolio_id="a")
    assets = set(one.table.index)
    (stack,), _ = stacks(long, "USD", universe=assets, label_columns=one.policy.label_columns)
    return one.policy.stacked(stack)


# --- what is said of conflicts, and lots --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sigmas", "cvar", "limited", "tiers"])
def test_a_conflict_is_explained(name: str) -> None:
    """Nothing may be traded and the rule is broken: infeasible, proven, and the rule is named with its figures."""
    plan = made(ENVELOPED[name], CashFloor(0.0)).solve(treasury(quantity=[2.4, 1.0, -2.6, 0.2]))
    assert plan.status.ok  # it sells and repays
    stuck = made(ENVELOPED[name], NoTrade()).solve(treasury(quantity=[2.4, 1.0, -2.6, 0.2]))
    assert stuck.status is Status.INFEASIBLE
    assert ENVELOPED[name].title in stuck.message
    # What it says can be reached is what the envelope is worth there.
    problem = stuck.problem
    assert problem is not None
    (_, piece), *_ = problem.envelopes
    still = np.zeros_like(problem.before)
    value = piece.row.shown(piece.excess(problem.before, still), piece.row.per.of(problem.before, still))
    assert f"{value:.4g}" in stuck.message


@pytest.mark.parametrize("name", ["sigmas", "cvar", "limited", "tiers"])
def test_whole_lots_keep_envelopes(name: str) -> None:
    """Lots of 5 % of the account: the plan keeps the rule exactly, and brute force knows no better one."""
    table = treasury(lot=[0.05, 0.05, 0.05, 0.0])
    rebalancer = made(ENVELOPED[name], LotSize("lot"))
    plan = rebalancer.solve(table)
    assert plan.status.ok
    assert plan.checks.passed.all()
    problem = rebalancer.problem(table)
    assert plan.bound <= plan.objective + 1e-12
    best, steps = np.inf, np.arange(-4, 9)
    sizes = problem.before
    for eth in steps:
        for btc in steps:
            for debt in steps:
                z = dict(zip(["ETH", "BTC", "debt"], np.array([eth, btc, debt]) * 0.05, strict=True))
                w = sizes + np.array([z.get(a, 0.0) for a in problem.assets])
                w = problem.settled(w)
                if np.any(w < problem.lower - 1e-12) or np.any(w > problem.upper + 1e-12):
                    continue
                if problem.violation(w) <= 1e-12:
                    best = min(best, problem.objective(w))
    assert plan.objective <= best + 1e-9


def test_orders_stay_safe_in_sequence() -> None:
    """A plan under a rule of k sigmas comes in steps that keep it, and its watched rules name it."""
    table = treasury(quantity=[1.3, 0.5, -1.3, 0.5], target=[1.0, 0.5, -0.9, 0.4])
    plan = made(ENVELOPED["sigmas"]).solve(table)
    assert plan.status.ok
    found = sequenced(plan)
    assert found.safe
    assert "AfterMove(HealthFactor)" in found.rules
    # Where the whole plan sits on its limit, no first step leaves the account as safe: said, with what would help.
    blocked = sequenced(made(ENVELOPED["sigmas"]).solve(treasury(quantity=[1.3, 0.5, -1.3, 0.5])))
    assert not blocked.safe
    assert blocked.blocked_by == "AfterMove(HealthFactor)"


# --- published examples -------------------------------------------------------------------------------------------


def test_aave_health_factor_of_the_documentation() -> None:
    """10,000 of collateral at 80 % against 6,000: 1.333 (Aave documentation); e-mode at 93 %: 1.55."""
    table = pd.DataFrame(
        {"quantity": [4.0, -6000.0, 1.0], "price": [2500.0, 1.0, 1.0], "target": 0.0, "lt": [0.8, 0.0, 0.0]},
        index=["WETH", "DAI", "USD"],
    )
    table["target"] = table.quantity * table.price / 4001.0
    for emode, wanted in ((None, 4 / 3), ("ETH correlated", 1.55)):
        rule = HealthFactor(1.0, "lt", emode=emode, emodes={"ETH correlated": {"WETH": 0.93}})
        checks = Rebalancer(cash="USD", constraints=[rule, LongOnly(except_=["DAI"])]).solve(table).checks
        assert checks.value[checks.rule == "HealthFactor"].item() == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("debt", "keeps"), [(7_000.0, "may borrow"), (8_500.0, "no more"), (8_949.0, "no more"), (8_951.0, "repaired")]
)
def test_compound_borrow_and_liquidation_factors(debt: float, keeps: str) -> None:
    """Mainnet USDC's WETH: borrow 0.825, liquidate 0.895 (Comet's configuration). Wants more debt in every state."""
    rows = {"quantity": [5.0, -debt, 1_000.0], "price": [2_000.0, 1.0, 1.0]}
    table = pd.DataFrame(rows, index=["WETH", "USDC-debt", "USD"])
    nav = float(table.quantity @ table.price)
    table["target"] = [10_000 / nav, -(debt + 2_000) / nav, 3_000 / nav]
    rule = BorrowLimit({"WETH": 0.825}, {"WETH": 0.895})
    plan = Rebalancer(cash="USD", constraints=[rule, LongOnly(except_=["USDC-debt"])]).solve(table)
    assert plan.status.ok
    after = plan.weights.after * nav
    owed, held = -after["USDC-debt"], after["WETH"]
    if keeps == "may borrow":
        assert owed == pytest.approx(0.825 * held, rel=1e-6)
        assert owed > debt
    else:
        assert owed <= debt + 1e-6
        assert owed - 0.825 * held <= debt - 8_250 + 1e-6  # not further beyond
    assert owed <= 0.895 * held + 1e-6


def test_maker_vault() -> None:
    """ETH-A at 150 %: 15 ETH at 1,000 carry 10,000 DAI, ETH-C at 175 % carry 8,571.43 (Maker, ilk parameters)."""
    for ratio, owed in ((1.5, 10_000.0), (1.75, 15_000 / 1.75)):
        table = pd.DataFrame(
            {"quantity": [15.0, -5_000.0, 0.0], "price": [1_000.0, 1.0, 1.0], "target": [1.5, -1.5, 1.0]},
            index=["ETH", "DAI", "USD"],
        )
        rule = [CollateralRatio(ratio, {"ETH": 1.0}), LongOnly(except_=["DAI"])]
        plan = Rebalancer(cash="USD", constraints=[*rule, NoTrade(["ETH"])]).solve(table)
        assert -plan.weights.after["DAI"] * 10_000 == pytest.approx(owed, rel=1e-7)


def test_dydx_account() -> None:
    """Wallet 1,000, short 3 ETH at 3,000: Q = 10,000, equity 1,000, maintenance 450, liquidated at 3,174.60."""
    quote = margin.perpetual_balance(1_000.0, [-3.0], [3_000.0])
    assert quote == 10_000
    for price, kept in ((3_000.0, True), (3_174.0, True), (3_175.0, False)):
        table = pd.DataFrame(
            {"quantity": [-3.0, quote, 10.0], "price": [price, 1.0, 1.0], "account": ["perps", "perps", None]},
            index=["perps/ETH", "perps/quote", "USD"],
        )
        nav = float(table.quantity @ table.price)
        table["target"] = table.quantity * table.price / nav
        rule = MaintenanceMargin({"perps/ETH": [(0.0, 0.05)]}, account="perps")
        rebalancer = Rebalancer(cash="USD", constraints=[rule])
        (_, piece), *_ = rebalancer.problem(table).envelopes
        before = rebalancer.problem(table).before
        assert (piece.excess(before, 0 * before) <= 0) == kept
        plan = rebalancer.solve(table)
        assert plan.status is (Status.NO_TRADE if kept else Status.OPTIMAL)
        if not kept:  # repaired: it is where equity and margin meet
            assert plan.checks.value[plan.checks.rule == "MaintenanceMargin"].item() == pytest.approx(1.0)


@pytest.mark.parametrize("version", ["2.4", "2.6"])
def test_simm_interest_rate_delta(version: str) -> None:
    """√(Σ Σ ρₖₗ·WSₖ·WSₗ) of 22 sensitivities: 773,922.591961526 and 811,888.163042849 (Open Source Risk Engine).

    It is a cone, and its supporting row is the Euler allocation: parts of the margin that add up to it.
    """
    data = json.loads((Path(__file__).parent / "data" / "simm.json").read_text())
    table, tenors = data[version], list(data[version]["risk_weight"])
    rows = [(tenors.index(tenor), curve, amount) for tenor, curve, amount in data["sensitivities"]]
    rho, sub = np.array(table["correlation"]), table["sub_curve"]
    correlation = np.array([[rho[i, j] * (1.0 if a == b else sub) for j, b, _ in rows] for i, a, _ in rows])
    weight = np.array([table["risk_weight"][tenors[i]] for i, _, _ in rows])
    amount = np.array([x for _, _, x in rows])
    term = Spread(np.linalg.cholesky(correlation).T * weight, np.zeros(len(rows)))
    assert term.of(amount, amount) == pytest.approx(table["margin"], rel=1e-14)
    slopes, constant = term.plane(amount, amount)
    assert slopes["weight"] @ amount + constant == pytest.approx(table["margin"], rel=1e-12)


def test_recentring_of_a_leveraged_token() -> None:
    """IndexCoop FLI's parameters: leverage 2.2 recentres to 2.19; LoanToValue(1 − 1/2.19) is the same trade."""
    target = leverage.recentred(2.2, 2.0, speed=0.05, lowest=1.7, highest=2.3)
    assert target == pytest.approx(2.19)
    table = pd.DataFrame(
        {"quantity": [2.2, -1.2, 0.0], "price": 1.0, "target": [2.2, -1.2, 0.0]}, ["ETH", "USDC", "USD"]
    )
    rules = [LoanToValue(1 - 1 / target, {"ETH": 1.0}), LongOnly(except_=["USDC"])]
    plan = Rebalancer(cash="USD", constraints=rules).solve(table)
    assert plan.weights.after["ETH"] == pytest.approx(target, abs=1e-7)
    trade = leverage.lever_to(2.2, 1.0, target)
    assert plan.weights.after["ETH"] - 2.2 == pytest.approx(trade, abs=1e-7)


# --- closed forms --------------------------------------------------------------------------------------------------


@FEW
@given(seeds)
def test_rules_equal_the_closed_forms(seed: int) -> None:
    """Ratios, counted collateral and tiered margin at random accounts, in their own units."""
    rng = np.random.default_rng(seed)
    value = np.append(rng.uniform(0.1, 1.0, 4), -rng.uniform(0.1, 0.5, 2))
    value /= value.sum()
    labels, factor = list("ABCDXY"), np.append(rng.uniform(0.5, 0.9, 4), [0.0, 0.0])
    table = pd.DataFrame({"quantity": [*value, 0.0], "price": 1.0, "target": [*value, 0.0], "f": [*factor, 0.0]},
                         index=[*labels, "USD"])  # fmt: skip
    portfolio = Portfolio.from_table(table, "USD")
    before, still = portfolio.before, np.zeros(7)
    cap, share = rng.uniform(0.05, 0.5), float(rng.choice([0.3, 0.4, 0.6]))
    brackets = {a: [(0.0, 0.05), (0.2, 0.1), (0.5, 0.3)] for a in labels}
    counts = margin.counted_collateral(value, 1 - factor, cap=cap, share=share).sum()
    tiers = margin.maintenance_margin(value, [0.05, 0.1, 0.3], margin.bracket_amounts([0, 0.2, 0.5], [0.05, 0.1, 0.3]))
    for rule, wanted in (
        (HealthFactor(1.2, "f"), lending.health_factor(value, factor)),
        (LoanToValue(0.5, "f"), -value[4:].sum() / (value[:4] @ factor[:4])),
        (CollateralRatio(1.0, "f", cap=cap, share=share), counts / -value[4:].sum()),
        (MaintenanceMargin(brackets), tiers.sum()),
        (InitialMargin(0.2), 0.2 * np.abs(value).sum()),
    ):
        piece = rule.pieces(portfolio)[0]
        row, excess = (
            (piece.row, piece.excess(before, still))
            if isinstance(piece, Envelope)
            else (piece, piece.of(before, still) - piece.upper)
        )
        assert row.shown(excess, row.per.of(before, still)) == pytest.approx(wanted, rel=1e-9)


def test_a_robust_ratio_falls_to_the_closed_form() -> None:
    """After a fall by exactly the shock, the plan's health factor is the floor: HF = 1.05 / (1 − 0.25)."""
    plan = made(AfterShock(HealthFactor(1.05, "threshold"), fall=0.25, rise={"debt": 0.0})).solve(treasury())
    after = plan.weights.after
    assert lending.health_factor(after[["ETH", "BTC", "debt"]], [0.8, 0.7, 0]) == pytest.approx(1.05 / 0.75, rel=1e-7)
    drop = lending.liquidation_drop(after[["ETH", "BTC", "debt"]], [0.8, 0.7, 0], at=1.05)
    assert drop == pytest.approx(0.25, abs=1e-7)


# --- probabilities ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", ["gaussian", "cantelli"])
def test_the_breach_rate_is_below_its_promise(distribution: Any) -> None:
    """A million normal moves over two days: the health factor is below its floor in no more than the p it promises."""
    p, years = 0.01, 2 / 365
    rule = AfterMove(HealthFactor(1.0, "threshold"), years=years, probability=p, distribution=distribution)
    plan = made(rule).solve(treasury())
    assert plan.status is Status.OPTIMAL
    w = plan.weights.after
    assert plan.checks.slack[plan.checks.rule == rule.title].min() == pytest.approx(0.0, abs=1e-8)  # it binds
    rng = np.random.default_rng(0)
    moves = rng.multivariate_normal(np.zeros(2), COVARIANCE.to_numpy()[:2, :2] * years, 1_000_000)
    covered = (1 + moves) @ (np.array([0.8, 0.7]) * w[["ETH", "BTC"]].to_numpy())
    breach = float(np.mean(covered < -w["debt"]))
    if distribution == "gaussian":
        assert breach == pytest.approx(p, rel=0.05)  # exact for normal moves
    else:
        assert breach < 1e-6  # a promise for every distribution


# --- collateral factor tuning ---------------------------------------------------------------------------------------


def test_the_price_of_a_threshold_is_the_finite_difference() -> None:
    """∂objective/∂thresholdᵢ = −(shadow price)·wᵢ⁺, and ∂objective/∂at_least = (shadow price)·debt."""
    step = 1e-5

    def at(threshold: float, floor: float) -> Any:
        return made(HealthFactor(floor, {"ETH": threshold, "BTC": 0.7})).solve(treasury())

    plan = at(0.8, 1.4)
    price = plan.checks.shadow_price[plan.checks.rule == "HealthFactor"].item()
    held = plan.weights.after["ETH"]
    slope = (at(0.8 + step, 1.4).objective - at(0.8 - step, 1.4).objective) / (2 * step)
    assert price > 0.01
    assert slope == pytest.approx(-price * held, rel=1e-4)
    slope = (at(0.8, 1.4 + step).objective - at(0.8, 1.4 - step).objective) / (2 * step)
    assert slope == pytest.approx(-price * plan.weights.after["debt"], rel=1e-4)


def test_tuned_factors_are_a_scenario() -> None:
    """With the lower thresholds as a scenario, the plan still stands when governance decides them."""
    rule = HealthFactor(1.1, "threshold", emode="e", emodes={"e": {"ETH": 0.93}})
    plan = made(AfterScenarios(rule, changes={"exit": {"emode": ""}, "tuned": {"threshold": 0.6}})).solve(treasury())
    w = plan.weights.after[["ETH", "BTC", "debt"]]
    assert min(lending.health_factor(w, t) for t in ([0.8, 0.7, 0], [0.93, 0.6, 0])) >= 1.1 - 1e-8
    assert min(lending.health_factor(w, t) for t in ([0.8, 0.7, 0], [0.93, 0.6, 0])) == pytest.approx(1.1)


# --- states, not errors ----------------------------------------------------------------------------------------------


def test_an_account_that_is_liquidatable_is_repaired() -> None:
    """HF 0.93 before: the plan sells and repays to the floor, and the report shows both figures."""
    plan = made(HealthFactor(1.2, "threshold")).solve(treasury(quantity=[1.5, 0.5, -1.65, 0.1]))
    assert plan.status is Status.OPTIMAL
    assert "health factor" in str(plan)
    assert "0.9394 -> 1.2" in str(plan)


def test_what_cannot_be_repaired_is_said() -> None:
    """Insolvent: more is owed than all collateral counts for; there are no orders, and the message has the best."""
    table = pd.DataFrame(
        {"quantity": [1.0, -1.2, 0.3], "price": 1.0, "target": [10.0, -12.0, 3.0], "threshold": [0.8, 0.0, 0.0]},
        index=["ETH", "debt", "USD"],
    )
    plan = Rebalancer(cash="USD", constraints=[HealthFactor(1.05, "threshold"), NoTrade(["debt"])]).solve(table)
    assert plan.status is Status.INFEASIBLE
    assert "HealthFactor" in plan.message
    assert "1.05 is asked for" in plan.message


# --- features ------------------------------------------------------------------------------------------------------


def test_a_delta_neutral_carry() -> None:
    """Long spot, short the perpetual: delta within ±1 % of NAV, funding earned is worth the trade."""
    table = pd.DataFrame(
        {
            "quantity": [0.0, 0.0, 0.0, 100_000.0],
            "price": [50_000.0, 50_000.0, 1.0, 1.0],
            "target": [0.4, -0.4, 0.5, 0.5],
            "delta": [50_000.0, 50_000.0, 0.0, 0.0],
            "account": ["spot", "perps", "perps", None],
        },
        index=["BTC", "perps/BTC", "perps/quote", "USD"],
    )
    rules = [
        GreekLimit("delta", upper=0.01, lower=-0.01),
        LongOnly(except_=["perps/BTC"]),
        InitialMargin({"perps/BTC": 0.1}, utilisation=0.5, account="perps"),
    ]
    each = {"BTC": 0.0, "perps/quote": 0.0, "USD": 0.0}
    funding = HoldingCost(long={"perps/BTC": 0.1, **each}, short={"perps/BTC": -0.1, **each})  # longs pay shorts
    plan = Rebalancer(cash="USD", costs=[funding], constraints=rules).solve(table)
    after = plan.weights.after
    assert after["BTC"] + after["perps/BTC"] == pytest.approx(0.0, abs=0.01 + 1e-9)
    assert after["perps/BTC"] < -0.39
    flat = Rebalancer(cash="USD", constraints=rules).solve(table).weights.after
    assert after["perps/BTC"] < flat["perps/BTC"] + 1e-9  # funding received pulls it further


def test_settlement_reserves_and_caps_bind_where_they_should() -> None:
    table = pd.DataFrame(
        {"quantity": [50.0, 30.0, 20.0], "price": 1.0, "target": [0.1, 0.9, 0.0]}, index=["A", "B", "USD"]
    )
    late = Rebalancer(cash="USD", constraints=[SettledCash(5.0, {"A": 1.0})]).solve(table).weights.after
    assert late["B"] == pytest.approx(0.45)  # of the cash of 20, 15 is settled
    insured = Rebalancer(cash="USD", constraints=[Reserve({"A": 30.0, "USD": 8.0})]).solve(table).weights.after
    assert insured["A"] == pytest.approx(0.3)
    assert insured["USD"] == pytest.approx(0.08)
    pool = Rebalancer(cash="USD", constraints=[PoolCaps(supply={"B": 12.0})]).solve(table).weights.after
    assert pool["B"] == pytest.approx(0.42)


def test_isolated_and_cross_margin() -> None:
    """Two positions with a balance each: isolated, the poor one is cut though the other has plenty; cross, neither."""
    table = pd.DataFrame(
        {
            "quantity": [0.6, -0.55, 0.6, -0.2, 0.55],
            "price": 1.0,
            "target": [0.6, -0.55, 0.6, -0.2, 0.55],
            "account": ["one", "one", "two", "two", None],
        },
        index=["one/BTC", "one/Q", "two/BTC", "two/Q", "USD"],
    )
    stay = NoTrade(["one/Q", "two/Q"])
    rate = {"one/BTC": 0.1, "two/BTC": 0.1}
    cross = Rebalancer(cash="USD", constraints=[stay, InitialMargin(rate, assets=[*table.index[:4]])]).solve(table)
    assert cross.weights.after.to_numpy() == pytest.approx(table.target.to_numpy(), abs=1e-12)
    isolated = [InitialMargin(rate, account=name) for name in ("one", "two")]
    plan = Rebalancer(cash="USD", constraints=[stay, *isolated]).solve(table)
    assert plan.weights.after["one/BTC"] == pytest.approx(0.55 / 0.9, abs=1e-7)  # 0.1·w = w − 0.55
    assert plan.weights.after["two/BTC"] == pytest.approx(0.6)
    assert "initial margin of one" in set(plan.checks.detail)


def test_solvent_after_the_crash() -> None:
    """Collateral of 1.05 times the debt after a fall by 40 %: a liquidation at a bonus of 5 % leaves nothing unpaid."""
    rule = AfterScenarios(CollateralRatio(1.05), {"crash": {"ETH": -0.4, "BTC": -0.4}})
    plan = made(rule).solve(treasury())
    after = plan.weights.after[["ETH", "BTC", "debt"]].to_numpy()
    crashed = after * np.array([0.6, 0.6, 1.0])
    assert liquidation.bad_debt(crashed, 0.05) == pytest.approx(0.0, abs=1e-7)
    assert liquidation.bad_debt(0.99 * crashed * np.array([1, 1, 1 / 0.99]), 0.05) > 0


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e12])
def test_money_scales(scale: float) -> None:
    """Brackets, caps and unsettled cash are money, all else is fractions of NAV: the same weights for any NAV."""
    rules = [
        MaintenanceMargin({"ETH": [(0, 0.1), (0.5 * scale, 0.3)]}, utilisation=0.3),
        CollateralRatio(1.3, "threshold", cap={"ETH": 0.8 * scale}, share=0.6),
        SettledCash(0.02 * scale),
    ]
    plan = made(*rules, debt=1e-2).solve(treasury(quantity=np.array([0.9, 0.5, -0.6, 0.2]) * scale))
    assert plan.status is Status.OPTIMAL
    if scale != 1.0:
        one = [
            MaintenanceMargin({"ETH": [(0, 0.1), (0.5, 0.3)]}, utilisation=0.3),
            CollateralRatio(1.3, "threshold", cap={"ETH": 0.8}, share=0.6),
            SettledCash(0.02),
        ]
        wanted = made(*one, debt=1e-2).solve(treasury())
        assert plan.weights.after.to_numpy() == pytest.approx(wanted.weights.after.to_numpy(), abs=1e-8)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "changed", "says"),
    [
        (
            lambda: HealthFactor(1.1, "threshold", account="aave", emode="ETH"),
            {},
            "column 'emode', value 'ETH': account 'aave': there is no such e-mode (known: none)",
        ),
        (
            lambda: HealthFactor(1.1, "threshold", account="aave"),
            {"threshold": [0.8, 1.7, 0.0, 0.0]},
            "asset 'BTC', column 'threshold', value 1.7: account 'aave': must be a finite number of at least 0",
        ),
        (
            lambda: BorrowLimit({"ETH": 0.85}, "threshold", account="aave"),
            {},
            "column 'threshold', value 0.8: liquidation: account 'aave': must be at least the borrow factor 0.85",
        ),
        (
            lambda: HealthFactor(1.1, "threshold", account="aave"),
            {"account": ["aave", "aave", None, None]},
            "asset 'debt', column 'account': a debt must belong to an account",
        ),
        (
            lambda: HealthFactor(1.1, "threshold", account="comet"),
            {},
            "column 'account', value 'comet': no row belongs to this account",
        ),
        (
            lambda: MaintenanceMargin({"ETH": [(0, 0.1), (5, 0.05)]}, account="aave"),
            {},
            "asset 'ETH', column 'brackets', value (5.0, 0.05): account 'aave': bracket 2: notionals start at 0",
        ),
        (
            lambda: AfterMove(HealthFactor(1.1, "threshold"), years=0.1, sigmas=1.0),
            {"target": [-0.1, 2.0, -1.1, 0.2]},
            "asset 'ETH', column 'target', value -0.1: AfterMove(HealthFactor) needs to know on which side",
        ),
    ],
)
def test_bad_input(rule: Any, changed: dict[str, Any], says: str) -> None:
    table = treasury(**{"account": ["aave", "aave", "aave", None], **changed})
    with pytest.raises(InputError) as error:
        Policy(CovarianceRisk(COVARIANCE), constraints=(rule(),)).problem(Portfolio.from_table(table, "USD"))
    assert says in str(error.value)
