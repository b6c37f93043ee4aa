"""Rules against numbers from outside: published examples and closed forms, through the cvxpy program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import Rebalancer
from equipoise.constraints import (
    BorrowLimit,
    CashBand,
    CashFloor,
    CollateralRatio,
    DriftBand,
    FactorLimit,
    HealthFactor,
    InitialMargin,
    InputError,
    Leverage,
    NoTrade,
    Reserve,
    Rule,
    ShortOnly,
    TradeLimit,
    Turnover,
    WeightBounds,
)
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.problem.costs import Cost, ProportionalCost
from equipoise.optimizer.problem.policy import Policy
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Status
from equipoise.optimizer.solvers.program.program import solve
from equipoise.optimizer.verification.exact import verify

MAY_BORROW, FULLY_INVESTED = CashFloor(-10.0), CashBand(0.0, 1e-8)


def holding(values: dict[str, float], target: dict[str, float] | None = None, **columns: Any) -> Portfolio:
    """An account of these values in cash (all prices 1), targets as fractions; the holdings if None."""
    nav = sum(values.values())
    goal = {a: v / nav for a, v in values.items()} if target is None else target
    table = pd.DataFrame({"quantity": values, "price": 1.0, "target": goal, **columns})
    return Portfolio.from_table(table, "USD")


def answer(
    portfolio: Portfolio, rules: Sequence[Rule], costs: Sequence[Cost] = (), horizon: float = 1.0
) -> dict[str, float]:
    """The optimal weights by asset, the cash after costs."""
    problem = Policy(costs=tuple(costs), constraints=tuple(rules), horizon=horizon).problem(portfolio)
    found = solve(problem)
    assert found.status is Status.OPTIMAL, found
    assert found.weights is not None
    return dict(zip(portfolio.assets, problem.after_costs(found.weights).tolist(), strict=True))


def least_trades(portfolio: Portfolio, *rules: Rule, cost: float | str = 1e-6) -> dict[str, float]:
    """The trades of all but the cash, in cash, of the least turnover that keeps the rules.

    `cost` a rate or its column; within a short horizon it outweighs every deviation.
    """
    weights = answer(portfolio, rules, [ProportionalCost(cost)], horizon=1e-7 if cost == 1e-6 else 3e-4)
    moved = {a: (weights[a] - b) * portfolio.nav for a, b in zip(portfolio.assets, portfolio.before, strict=True)}
    return {a: x for a, x in moved.items() if a != "USD"}


def problem_with(rule: Rule, portfolio: Portfolio) -> Problem:
    return Policy(constraints=(rule,)).problem(portfolio)


def slack(rule: Rule, portfolio: Portfolio) -> float:
    """How far the holdings themselves are within the rule, by the exact check (negative: it is broken)."""
    checks = verify(problem_with(rule, portfolio), [0] * len(portfolio.assets), whole_lots=True).checks  # type: ignore[list-item]
    return min(check.slack for check in checks if check.rule == rule.title)


def reported(rule: Rule, portfolio: Portfolio) -> float:
    """The rule's figure as a report shows it."""
    checks = verify(problem_with(rule, portfolio), [0] * len(portfolio.assets), whole_lots=True).checks  # type: ignore[list-item]
    (check,) = (check for check in checks if check.rule == rule.title)
    return check.value


# --- drift bands ----------------------------------------------------------------------------------------------

SIX_TEN_FOUR = {"A": 0.60, "B": 0.10, "C": 0.04, "USD": 0.26}


def band(rule: DriftBand, target: dict[str, float]) -> dict[str, tuple[float, float]]:
    low, high = rule.band(holding(dict.fromkeys(target, 1.0), target))
    return {a: (low[i], high[i]) for i, a in enumerate(sorted(target))}


def test_the_5_25_rule() -> None:
    """Swedroe: the lesser of 5 points and a quarter. 60 % -> 55..65, 10 % -> 7.5..12.5, 4 % -> 3..5."""
    found = band(DriftBand(absolute=0.05, relative=0.25), SIX_TEN_FOUR)
    assert found["A"] == pytest.approx((0.55, 0.65))
    assert found["B"] == pytest.approx((0.075, 0.125))
    assert found["C"] == pytest.approx((0.03, 0.05))
    assert found["USD"] == (-np.inf, np.inf)  # the cash has rules of its own


def test_the_greater_of_two_widths() -> None:
    found = band(DriftBand(absolute=0.05, relative=0.25, combine="greater"), SIX_TEN_FOUR)
    assert found["A"] == pytest.approx((0.45, 0.75))
    assert found["B"] == pytest.approx((0.05, 0.15))
    assert found["C"] == pytest.approx((-0.01, 0.09))


@given(st.one_of(st.just(0.0), st.floats(1e-100, 1.0)))
@settings(deadline=None, max_examples=50)
def test_the_5_25_rule_switches_at_20_percent(target: float) -> None:
    """Above a target of 20 % the 5 points are the lesser, below it the quarter."""
    low, high = band(DriftBand(absolute=0.05, relative=0.25), {"A": target, "USD": 1.0 - target})["A"]
    width = 0.05 if target >= 0.2 else target / 4
    assert (low, high) == pytest.approx((target - width, target + width), abs=1e-15)


def test_a_band_that_is_not_symmetric() -> None:
    """3 points below and 8 above; a tenth below and nothing above."""
    assert band(DriftBand(absolute=(0.03, 0.08)), SIX_TEN_FOUR)["A"] == pytest.approx((0.57, 0.68))
    assert band(DriftBand(relative=(0.1, 0.0)), SIX_TEN_FOUR)["A"] == pytest.approx((0.54, 0.60))


def test_a_band_for_each_asset() -> None:
    """Widths by asset, or from a column; an asset that is not named has no band, and no cell may be blank."""
    found = band(DriftBand(absolute={"A": 0.1, "C": 0.02}), SIX_TEN_FOUR)
    assert found["A"] == pytest.approx((0.5, 0.7))
    assert found["B"] == (-np.inf, np.inf)
    assert found["C"] == pytest.approx((0.02, 0.06))
    portfolio = holding(SIX_TEN_FOUR, width={"A": 0.1, "B": np.nan, "C": 0.02, "USD": 0.5})
    with pytest.raises(InputError, match="asset 'B', column 'width': the cell is blank"):
        DriftBand(absolute="width").band(portfolio)
    low, high = DriftBand(absolute="width", assets=["A", "C"]).band(portfolio)
    assert low.tolist() == pytest.approx([0.5, -np.inf, 0.02, -np.inf])
    assert high.tolist() == pytest.approx([0.7, np.inf, 0.06, np.inf])


def test_a_band_of_a_short_target() -> None:
    """A quarter of a target of -20 % is 5 points on either side, not -5."""
    assert band(DriftBand(relative=0.25), {"A": -0.2, "USD": 1.2})["A"] == pytest.approx((-0.25, -0.15))


def test_a_band_by_label() -> None:
    """60/40 with 5 points on the sum of the stocks: 72 % comes back to 65 %, whatever the single stocks do."""
    values = {"US": 52.0, "World": 20.0, "Bonds": 27.0, "USD": 1.0}
    target = {"US": 0.35, "World": 0.25, "Bonds": 0.40, "USD": 0.0}
    group = {"US": "stocks", "World": "stocks", "Bonds": "bonds", "USD": None}
    rule = DriftBand(absolute={"stocks": 0.05, "bonds": 0.5}, by="group")
    found = answer(holding(values, target, group=group), [rule], [ProportionalCost(1e-6)], horizon=1e-7)
    assert found["US"] + found["World"] == pytest.approx(0.65, abs=1e-7)
    assert found["Bonds"] == pytest.approx(0.27, abs=1e-7)


@pytest.mark.parametrize(
    ("held", "after"),
    [
        *((0.65, 0.6175), (0.55, 0.5825), (0.6201, 0.6175), (0.5799, 0.5825)),
        *((0.619, 0.619), (0.62, 0.62), (0.6175, 0.6175), (0.61, 0.61), (0.585, 0.585)),
    ],
)
def test_destination_inside_the_trigger(held: float, after: float) -> None:
    """A trigger of 200 basis points with a destination of 175 (Vanguard, target-date funds): inside = 0.875.

    With trading dear, a weight beyond the trigger goes to the destination's edge, and any other stays.
    """
    rule = DriftBand(absolute=0.02, inside=0.875)
    portfolio = holding({"A": held, "USD": 1 - held}, {"A": 0.6, "USD": 0.4})
    assert [float(x[0]) for x in rule.band(portfolio)] == pytest.approx([0.58, 0.62])  # the trigger's, in full
    found = answer(portfolio, [rule], [ProportionalCost(1e-6)], horizon=1e-7)
    assert found["A"] == pytest.approx(after, abs=1e-8)


def test_inside_0_is_the_target() -> None:
    portfolio = holding({"A": 0.65, "B": 0.25, "USD": 0.1}, {"A": 0.6, "B": 0.3, "USD": 0.1})
    found = answer(portfolio, [DriftBand(absolute=0.02, inside=0.0)], [ProportionalCost(1e-6)], horizon=1e-7)
    assert (found["A"], found["B"]) == pytest.approx((0.6, 0.3), abs=1e-8)


# --- collateral and margin ------------------------------------------------------------------------------------


def test_health_factor_of_the_aave_docs() -> None:
    """10,000 of collateral at a liquidation threshold of 0.8 against a debt of 6,000: 1.333."""
    account = holding({"ETH": 10_000, "LOAN": -6_000, "USD": 0}, lt={"ETH": 0.8, "LOAN": 0, "USD": 0})
    assert reported(HealthFactor(1.0, "lt"), account) == pytest.approx(1.333, abs=5e-4)
    assert slack(HealthFactor(1.3333, "lt"), account) > 0 > slack(HealthFactor(1.3334, "lt"), account)


@pytest.mark.parametrize(("collateral", "debt"), [((10_000, 5_000), 7_000), ((300, 20_000), 17_000)])
def test_liquidation_price(collateral: tuple[float, float], debt: float) -> None:
    """The health factor is 1 where the first coin's price is (debt - Σ other thresholds) / (LT·quantity)."""
    price = (debt - 0.7 * collateral[1]) / (0.8 * collateral[0])
    for change, kept in ((1.0001, True), (0.9999, False)):
        values = {"ETH": collateral[0] * price * change, "LINK": collateral[1], "LOAN": -debt, "USD": 0}
        account = holding(values, lt={"ETH": 0.8, "LINK": 0.7, "LOAN": 0, "USD": 0})
        assert (slack(HealthFactor(1.0, "lt"), account) > 0) is kept


@given(st.floats(100, 1e6), st.floats(0.05, 0.75), st.floats(0.76, 0.95))
@settings(deadline=None, max_examples=40)
def test_ratio_health_factor_and_leverage_are_one_thing(collateral: float, ltv: float, threshold: float) -> None:
    """With one collateral: ratio = 1/LTV, health factor = LT/LTV, leverage = 1/(1 - LTV)."""
    account = holding({"ETH": collateral, "LOAN": -ltv * collateral, "USD": 0})
    lt = {"ETH": threshold}
    for change, kept in ((1 - 1e-9, True), (1 + 1e-6, False)):
        assert (slack(CollateralRatio(change / ltv), account) > 0) is kept
        assert (slack(HealthFactor(change * threshold / ltv, lt), account) > 0) is kept
        assert (slack(Leverage(gross=1 / change / (1 - ltv), except_=["LOAN"]), account) > 0) is kept
    assert reported(CollateralRatio(1.0), account) == pytest.approx(1 / ltv)
    assert reported(HealthFactor(1.0, lt), account) == pytest.approx(threshold / ltv)


def test_collateralisation_ratio_of_maker() -> None:
    """A vault at 150 %: 15,000 of ETH behind 10,000 DAI is just safe."""
    rule = CollateralRatio(1.5, factor={"ETH": 1.0})
    assert slack(rule, holding({"ETH": 15_000, "DAI": -10_000, "USD": 500})) == pytest.approx(0.0, abs=1e-12)
    assert slack(rule, holding({"ETH": 14_999, "DAI": -10_000, "USD": 500})) < 0


@pytest.mark.parametrize(
    ("size", "others", "equity", "price"), [(3.0, {}, 1000.0, 3174.60), (1.5, {"STRK": 1750.0}, 1000.0, 3380.95)]
)
def test_liquidation_prices_of_dydx(size: float, others: dict[str, float], equity: float, price: float) -> None:
    """Short 3 ETH from 3,000 with 1,000 of equity, maintenance margin 5 %: liquidated at 3174.60.

    Cross margin: short 1.5 ETH with 1,000 STRK at 1.75 (10 %) beside it: at 3380.95.
    """
    cash = equity + size * 3000.0 - sum(others.values())
    rule = InitialMargin({"ETH": 0.05, "STRK": 0.10} if others else {"ETH": 0.05})
    for at, kept in ((price - 0.01, True), (price + 0.01, False)):
        account = holding({"ETH": -size * at, **others, "USD": cash})
        assert (slack(rule, account) > 0) is kept


def test_regulation_t() -> None:
    """An initial margin of 50 %: an equity of 10,000 buys 20,000 of stocks, and no more."""
    account = holding({"A": 0, "B": 0, "USD": 10_000}, {"A": 2.0, "B": 1.0, "USD": -2.0})
    unlimited = answer(account, [InitialMargin(0.0), MAY_BORROW])
    assert unlimited["A"] + unlimited["B"] == pytest.approx(3.0, abs=1e-5)
    found = answer(account, [InitialMargin(0.5), MAY_BORROW])
    assert found["A"] + found["B"] == pytest.approx(2.0, abs=1e-8)
    assert found["A"] - found["B"] == pytest.approx(1.0, abs=1e-5)


# The account of the next tests: collateral of 10,000 with a liquidation threshold of 0.8, a debt of 7,000, to be
# brought to a health factor of 1.5. With s what selling costs and all proceeds repaid, y = (hD - LT·C)/(h(1-s) - LT).
LT = {"ETH": 0.8, "LOAN": 0.0, "USD": 0.0}
FEE = {"ETH": 0.003, "LOAN": 0.0, "USD": 0.0}


def loan(cash: float = 0.0) -> Portfolio:
    return holding({"ETH": 10_000.0, "LOAN": -7_000.0, "USD": cash}, lt=LT, fee=FEE)


def test_deleveraging_without_costs() -> None:
    """y = (1.5·7000 - 0.8·10000) / (1.5 - 0.8)."""
    trades = least_trades(loan(), HealthFactor(1.5, "lt"))
    assert trades["ETH"] == pytest.approx(-2500 / 0.7, abs=0.05)
    assert trades["LOAN"] == pytest.approx(2500 / 0.7, abs=0.05)


def test_deleveraging_with_costs() -> None:
    """Selling costs 0.3 %: 3594.536305 are sold and the proceeds repaid; nothing is left over."""
    trades = least_trades(loan(), HealthFactor(1.5, "lt"), cost="fee")
    assert trades["ETH"] == pytest.approx(-3594.536305, abs=1e-3)
    assert trades["LOAN"] == pytest.approx(3594.536305 * 0.997, abs=1e-3)


def test_deleveraging_from_cash() -> None:
    """1666.666667 of cash repay as much as a sale of collateral of more than twice that."""
    trades = least_trades(loan(cash=2_000.0), HealthFactor(1.5, "lt"))
    assert trades == pytest.approx({"ETH": 0.0, "LOAN": 1666.666667}, abs=0.01)


def test_adding_collateral() -> None:
    """3125 more of collateral do it where the debt cannot be repaid, whether buying costs something or not."""
    for cost in (1e-6, "fee"):
        trades = least_trades(loan(cash=5_000.0), HealthFactor(1.5, "lt"), NoTrade(["LOAN"]), cost=cost)
        assert trades == pytest.approx({"ETH": 3125.0, "LOAN": 0.0}, abs=0.02)


def test_deleveraging_to_a_loan_to_value() -> None:
    """To an LTV of 0.5 (a collateral ratio of 2) with costs of 0.3 %: 4024.144869 are sold."""
    rule = CollateralRatio(2.0, factor={"ETH": 1.0})
    trades = least_trades(loan(), rule, cost="fee")
    assert trades["ETH"] == pytest.approx(-4024.144869, abs=1e-3)


# --- trading and exposure -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "sold", "bought"),
    [
        (Turnover(0.05), 0.05, 0.05),
        (Turnover(0.05, kind="two_way"), 0.025, 0.025),
        (Turnover(0.04, kind="buy"), 0.1, 0.04),
        (Turnover(0.04, kind="sell"), 0.04, 0.1),
        (Turnover(1.0), 0.1, 0.1),
    ],
)
def test_one_way_and_two_way_turnover(rule: Turnover, sold: float, bought: float) -> None:
    """70/20/10 to 60/30/10: one-way turnover of 5 % trades 5 % each way, two-way turnover of 5 % half of that."""
    account = holding({"A": 70, "B": 20, "USD": 10}, {"A": 0.6, "B": 0.3, "USD": 0.1})
    found = answer(account, [rule])
    assert (0.7 - found["A"], found["B"] - 0.2) == pytest.approx((sold, bought), abs=1e-6)


def test_turnover_in_one_direction_only() -> None:
    """An investment of cash counts half in one-way turnover: 10 % bought is 5 %."""
    account = holding({"A": 50, "USD": 50}, {"A": 1.0, "USD": 0.0})
    assert answer(account, [Turnover(0.05)])["A"] == pytest.approx(0.6, abs=1e-7)


def test_leverage_of_130_30() -> None:
    """A fund with targets of +150 % and -50 % under a gross limit of 160 % is a 130/30 fund: net 100 %."""
    account = holding({"A": 100, "B": 0, "USD": 0}, {"A": 1.5, "B": -0.5, "USD": 0.0})
    assert answer(account, [Leverage(gross=1.6, net=1.0)]) == pytest.approx({"A": 1.3, "B": -0.3, "USD": 0}, abs=1e-5)
    market_neutral = answer(account, [Leverage(net=0.0)])
    assert market_neutral["A"] + market_neutral["B"] == pytest.approx(0.0, abs=1e-7)


def test_a_beta_held_near_that_of_the_target() -> None:
    """Betas 1.5 and 0.5 half and half make 1.0; within 0.05 of it, 80/20 (beta 1.3) goes to 55/45 at least cost."""
    account = holding(
        {"A": 80, "B": 20, "USD": 0}, {"A": 0.5, "B": 0.5, "USD": 0.0}, beta={"A": 1.5, "B": 0.5, "USD": 0.0}
    )
    relative = FactorLimit("beta", upper=0.05, lower=-0.05, relative=True)
    for rule in (relative, FactorLimit("beta", upper=1.05, lower=0.95)):
        found = answer(account, [rule, Leverage(gross=1.0), WeightBounds(lower=0.0), FULLY_INVESTED])
        assert 1.5 * found["A"] + 0.5 * found["B"] == pytest.approx(1.0, abs=1e-5)
        dear = [ProportionalCost(1e-9)]
        found = answer(account, [rule, FULLY_INVESTED], dear, horizon=1e-10)
        assert (found["A"], found["B"]) == pytest.approx((0.55, 0.45), abs=1e-6)


def test_trade_limit_from_volume() -> None:
    """5 % of a daily volume of 2 million is 100,000: 1 % of an account of 10 million."""
    account = holding(
        {"A": 6e6, "B": 4e6, "USD": 0}, {"A": 0.5, "B": 0.5, "USD": 0.0}, volume={"A": 2e6, "B": 1e9, "USD": np.nan}
    )
    found = answer(account, [TradeLimit(0.05, "volume")])
    assert found["A"] == pytest.approx(0.59, abs=1e-9)
    assert found["B"] == pytest.approx(0.41, abs=1e-9)


def test_a_cap_of_5_percent_on_ten_names() -> None:
    """Ten equal targets under a cap of 5 % leave half of the account in cash."""
    names = [f"N{i}" for i in range(10)]
    account = holding(dict.fromkeys(names, 10.0) | {"USD": 0.0}, dict.fromkeys(names, 0.1) | {"USD": 0.0})
    assert answer(account, [WeightBounds(upper=0.05)])["USD"] == pytest.approx(0.5, abs=1e-8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: WeightBounds(upper=0.05, assets=["USD"]),
        lambda: DriftBand(absolute=0.01, assets=["USD"]),
        lambda: WeightBounds(),
        lambda: ShortOnly(),
    ],
    ids=["WeightBounds of the cash", "DriftBand of the cash", "WeightBounds of nothing", "ShortOnly of nothing"],
)
def test_no_rule_is_silently_void(make: Callable[[], Rule]) -> None:
    """A rule that was written down limits something, or is refused with the reason."""
    account = holding({"A": 60, "USD": 40}, {"A": 0.5, "USD": 0.5})
    try:
        problem = problem_with(make(), account)
    except (InputError, TypeError):  # TypeError: a required argument is missing
        return
    free = Policy().problem(account)
    assert (problem.lower > free.lower).any() or (problem.upper < free.upper).any()


# --- destinations and reserves --------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [None, "group"])
def test_what_is_inside_its_band_is_not_pulled_in(by: str | None) -> None:
    """A is 5 points out and goes to the destination; B, 1.9 points off, and C stay where they are, one or stacked."""
    held, target = {"A": 65.0, "B": 18.1, "C": 10.0, "USD": 6.9}, {"A": 0.6, "B": 0.2, "C": 0.1, "USD": 0.1}
    columns = {"quantity": held, "price": 1.0, "target": target, "group": {"A": "A", "B": "B", "C": "C", "USD": None}}
    frame = pd.DataFrame(columns).rename_axis("asset")
    rules = [DriftBand(absolute=0.02, inside=0.5, by=by), CashBand(0.0, 1.0)]
    rebalancer = Rebalancer(cash="USD", constraints=rules, costs=[ProportionalCost(1e-6)], horizon=1e-7)
    plan = rebalancer.solve(frame)
    assert plan.weights.after[["A", "B", "C"]].tolist() == pytest.approx([0.61, 0.181, 0.1], abs=1e-8)
    many = rebalancer.solve_batch(frame.reset_index().assign(portfolio_id="P"))
    assert many.orders.quantity.tolist() == plan.orders.quantity.tolist()
    assert list(plan.orders.index) == ["A"]


def test_a_reserve_that_is_short_says_so() -> None:
    """20,000 of 1,234: nothing of it is spent, what is missing is not bought, and plan, check and batch say it."""
    table = pd.DataFrame(
        {"quantity": [50_000.0, 1_234.0], "price": [1.0, 1.0], "target": [1.0, 0.0]},
        index=pd.Index(["Fund", "Cash"], name="asset"),
    )
    rebalancer = Rebalancer(cash="Cash", constraints=[Reserve({"Cash": 20_000})])
    plan = rebalancer.solve(table)
    assert plan.status.ok
    assert plan.orders.empty
    assert "Reserve (reserve of Cash) is short by 18766 before any trade" in plan.message
    assert plan.message in str(plan)
    [check] = plan.checks[plan.checks.rule == "Reserve"].to_dict("records")
    assert (check["value"], check["limit"]) == pytest.approx((1_234 / 51_234, 20_000 / 51_234))
    enough = table.assign(quantity=[10_000.0, 41_234.0])
    both = pd.concat([t.reset_index().assign(portfolio_id=p) for p, t in (("A", enough), ("B", table))])
    assert rebalancer.solve_batch(both).results.message.tolist() == ["", plan.message]
    assert rebalancer.solve(enough).message == ""


def test_who_is_beyond_the_borrow_limit_is_told() -> None:
    """0.7·1000 of collateral counts against 800 owed: 100 short, alone and in a batch."""
    table = pd.DataFrame(
        {"quantity": [1_000.0, -800.0, 0.0], "price": [1.0, 1.0, 1.0], "target": [5.0, -4.0, 0.0]},
        index=pd.Index(["ETH", "owed", "USD"], name="asset"),
    )
    rebalancer = Rebalancer(cash="USD", constraints=[BorrowLimit({"ETH": 0.7}, {"ETH": 0.85})])
    plan = rebalancer.solve(table)
    assert "BorrowLimit (borrow limit) is short by 100 before any trade" in plan.message
    batch = rebalancer.solve_batch(table.reset_index().assign(portfolio_id="A"))
    assert batch.results.message.tolist() == [plan.message]
