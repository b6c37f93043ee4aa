"""The front door: plans, their tables, batches, and what must not change them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from equipoise import InputError, Rebalancer, Status, choose
from equipoise.constraints import (
    CashFloor,
    Custom,
    DriftBand,
    GroupLimit,
    HealthFactor,
    LongOnly,
    LotSize,
    Rule,
    ShortOnly,
    TrackingErrorLimit,
    Turnover,
    WeightBounds,
)
from equipoise.optimizer import CovarianceRisk, HoldingCost, ProportionalCost

NAMES = ["ADA", "BTC", "ETH", "USDC", "USDC-debt"]
COV = pd.DataFrame(
    np.diag([0.9, 0.6, 0.75]) @ np.array([[1, 0.6, 0.7], [0.6, 1, 0.8], [0.7, 0.8, 1]]) @ np.diag([0.9, 0.6, 0.75]),
    index=NAMES[:3],
    columns=NAMES[:3],
)


def treasury(**changes: list[float]) -> pd.DataFrame:
    """A small account below its health target: HF = (0.78·370,000 + 0.83·246,000)/350,000 = 1.408."""
    columns = {
        "quantity": [250_000.0, 10.0, 100.0, 60_000.0, -350_000.0],
        "price": [1.48, 37_000.0, 2_460.0, 1.0, 1.0],
        "target": [0.25, 0.60, 0.35, 0.15, -0.35],
        "lot": [0.1, 1e-6, 1e-5, 0.0, 1e-6],
        "min_notional": [10.0, 10.0, 10.0, 0.0, 0.0],
        "threshold": [0.0, 0.78, 0.83, 0.0, 0.0],
        "group": ["alt", "major", "major", "stable", "stable"],
        **changes,
    }
    return pd.DataFrame(columns, index=pd.Index(NAMES, name="asset"))


def rebalancer(*more: object, **options: object) -> Rebalancer:
    rules = [
        LongOnly(except_=["USDC-debt"]),
        ShortOnly(["USDC-debt"]),
        LotSize("lot", min_notional="min_notional"),
        HealthFactor(at_least=1.6, threshold="threshold"),
        *more,
    ]
    settings: dict = {
        "risk": CovarianceRisk(COV, riskless=["USDC-debt"]),
        "costs": [ProportionalCost(0.001), HoldingCost(short={"USDC-debt": 0.04, **dict.fromkeys(NAMES[:4], 0.0)})],
        "cash": "USDC",
        "aversion": 5.0,
        "horizon": 0.25,
        **options,
    }
    return Rebalancer(constraints=rules, **settings)


def test_the_plan_says_everything() -> None:
    """The tables have the promised columns, agree with each other, and count the money right."""
    table = treasury()
    plan = rebalancer(DriftBand(relative=0.25, absolute=0.05)).solve(table)
    assert plan.status.ok
    assert list(plan.orders.columns) == ["side", "quantity", "lots", "price", "notional", "cost", "reason"]
    assert list(plan.weights.columns) == ["before", "solved", "after", "target", "lower", "upper"]
    assert list(plan.weights.index) == NAMES
    signed = plan.orders["quantity"] * np.where(plan.orders["side"] == "buy", 1, -1)
    after = table["quantity"].add(signed, fill_value=0.0)
    fees = 0.001 * plan.orders["notional"].sum()
    after["USDC"] -= (signed * plan.orders["price"]).sum() + fees
    nav = float((table["quantity"] * table["price"]).sum())
    assert plan.cost == pytest.approx(fees, rel=1e-9)
    assert plan.weights["after"].to_numpy() == pytest.approx(
        (after * table["price"] / nav)[NAMES].to_numpy(), abs=1e-12
    )
    # Health factor by hand, from the orders.
    collateral = float((after * table["price"] * table["threshold"]).sum())
    assert collateral / -after["USDC-debt"] >= 1.6
    assert plan.checks["passed"].all()
    # slack_money is slack in cash.
    assert plan.checks["slack_money"].to_numpy() == pytest.approx(plan.checks["slack"].to_numpy() * nav)
    assert plan.gap == plan.objective - plan.bound
    assert 0 <= plan.gap < 1e-6
    text = str(plan)
    for word in ("health factor", "tracking error", "turnover", "trading cost", "certified gap", *NAMES):
        assert word in text


def test_objective_by_hand() -> None:
    """(aversion/2)·dᵀΣd + fees/NAV/horizon + interest on the debt, recomputed from the orders."""
    plan = rebalancer().solve(treasury())
    w = plan.weights["after"]
    d = (w - plan.weights["target"])[NAMES[:3]].to_numpy()
    nav = 370_000 + 370_000 + 246_000 + 60_000 - 350_000
    expected = 2.5 * d @ COV.to_numpy() @ d + plan.cost / nav / 0.25 + 0.04 * -w["USDC-debt"]
    assert plan.objective == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_row_order_changes_nothing(seed: int) -> None:
    table = treasury()
    plan = rebalancer(Turnover(0.2)).solve(table)
    other = rebalancer(Turnover(0.2)).solve(table.sample(frac=1.0, random_state=seed))
    pd.testing.assert_frame_equal(plan.orders, other.orders, check_exact=True)
    pd.testing.assert_frame_equal(plan.weights, other.weights.loc[NAMES], check_exact=True)
    assert plan.objective == other.objective


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1e6, 1e12])
@pytest.mark.parametrize("risk", ["covariance", "none"])
def test_same_weights_for_any_nav(scale: float, risk: str) -> None:
    """A NAV of 7e-4 or 7e17: the same weights (no lots here; see test_lots for those)."""
    options = {} if risk == "covariance" else {"risk": None}
    rules = [LongOnly(except_=["USDC-debt"]), ShortOnly(["USDC-debt"]), Turnover(0.3), HealthFactor(1.6, "threshold")]
    settings: dict = {"risk": CovarianceRisk(COV, riskless=["USDC-debt"]), **options}
    one = Rebalancer(constraints=rules, costs=[ProportionalCost(0.001)], cash="USDC", **settings)
    base = one.solve(treasury())
    scaled = one.solve(treasury(quantity=[q * scale for q in treasury()["quantity"]]))
    assert base.status.ok and scaled.status is base.status
    assert scaled.weights["after"].to_numpy() == pytest.approx(base.weights["after"].to_numpy(), abs=1e-8)
    assert scaled.objective == pytest.approx(base.objective, rel=1e-7)


def test_choose_says_why() -> None:
    table = treasury()
    assert "factors" in str(choose(rebalancer().problem(table)))
    assert choose(Rebalancer(cash="USDC").problem(table)).solver == "threshold"
    at_target = table.assign(quantity=table["target"] * 696_000 / table["price"])
    assert choose(Rebalancer(cash="USDC").problem(at_target)).solver == "holding"
    refused = dict(choose(Rebalancer(constraints=[Turnover(0.1)], cash="USDC").problem(table)).refused)
    assert "Turnover" in refused["threshold"]


def test_nothing_to_trade() -> None:
    table = treasury()
    table["quantity"] = table["target"] * 696_000 / table["price"]
    plan = Rebalancer(cash="USDC", constraints=[DriftBand(relative=0.1)]).solve(table)
    assert plan.status is Status.NO_TRADE
    assert plan.orders.empty and plan.turnover == 0 and plan.solver == "holding"
    assert abs(plan.gap) <= 1e-15


CONFLICTS = [
    # (rules, words that the message must have). The figures are checked by hand in the comments.
    ([Turnover(0.01)], ["Turnover", "HealthFactor", "limit is 1 %"]),
    ([GroupLimit("group", upper={"major": 0.5}), DriftBand(relative=0.1)], ["GroupLimit", "DriftBand"]),
    ([TrackingErrorLimit(0.001), Turnover(0.05)], ["TrackingErrorLimit", "limit is 0.1 %"]),
    ([HealthFactor(at_least=9.0, threshold="threshold"), DriftBand(relative=0.1)], ["HealthFactor", "DriftBand"]),
]


@pytest.mark.parametrize(("rules", "words"), CONFLICTS)
def test_conflicts_are_named_with_numbers(rules: list, words: list[str]) -> None:
    plan = rebalancer(*rules).solve(treasury())
    assert plan.status is Status.INFEASIBLE, plan.message
    for word in words:
        assert word in plan.message, plan.message
    assert plan.orders.empty and plan.checks.empty
    assert plan.message in str(plan)


def test_least_turnover_is_the_number_that_works() -> None:
    """The least turnover named in the message is feasible, and 0.1 % less is not."""
    plan = rebalancer(Turnover(0.01)).solve(treasury())
    least = float(plan.message.split("must be at least ")[1].split(" %")[0]) / 100
    # Selling y of the uncollateralised ADA and repaying: HF = 490,780/(350,000 − y(1 − 0.1 %)) = 1.6 needs
    # y = 43,306; with 60,000 of cash at hand nothing need be sold at all: repaying 43,262.5 is ½·43,262.5/696,000.
    assert least == pytest.approx(0.5 * (350_000 - (0.78 * 370_000 + 0.83 * 246_000) / 1.6) / 696_000, rel=2e-3)
    assert rebalancer(Turnover(least * 1.001)).solve(treasury()).status.ok
    assert rebalancer(Turnover(least * 0.999)).solve(treasury()).status is Status.INFEASIBLE


def test_crossing_bounds_need_no_solver() -> None:
    """A cap of 5 % on ten assets with a cash cap of 10 %: 60 % at most, said without a solver."""
    from equipoise.constraints import CashBand, WeightBounds

    names = [f"A{i}" for i in range(10)]
    table = pd.DataFrame({"quantity": 10.0, "price": 1.0, "target": 0.1}, index=[*names])
    table.loc["USD"] = [0.0, 1.0, 0.0]
    plan = Rebalancer(constraints=[WeightBounds(upper=0.05), CashBand(0.0, 0.1)], cash="USD").solve(table)
    assert plan.status is Status.INFEASIBLE
    assert "60 %" in plan.message and "WeightBounds" in plan.message and "CashBand" in plan.message
    assert plan.solver == "none"


def test_custom_rule_binds_and_is_checked() -> None:
    """‖z‖₂ ≤ 0.05, a rule that is no data: kept by the plan, and the reason it differs."""
    import cvxpy as cp

    table = treasury().drop(columns="lot")
    settings: dict = {
        "risk": CovarianceRisk(COV, riskless=["USDC-debt"]),
        "cash": "USDC",
        "costs": [ProportionalCost(1e-3)],
    }
    free = Rebalancer(**settings).solve(table)
    held = Rebalancer(
        constraints=[Custom(lambda t: cp.norm(t.trades, 2) <= 0.05, name="small trades")], **settings
    ).solve(table)
    size = [float(np.linalg.norm(p.weights["solved"] - p.weights["before"])) for p in (free, held)]
    assert size[0] > 0.06
    assert size[1] == pytest.approx(0.05, abs=2e-4)  # the cash is after costs in this table
    assert held.checks.set_index("rule").loc["small trades", "passed"]
    assert held.status is Status.OPTIMAL  # its bound needs the plane that supports the custom rule


# --- batches ------------------------------------------------------------------------------------------


def long_table() -> pd.DataFrame:
    """Four accounts: one fine, one with a bad price, one infeasible, one fine without a health problem."""
    tables = {
        "001": treasury(),
        "NA": treasury(price=[1.48, -1.0, 2_460.0, 1.0, 1.0]),
        "over": treasury(quantity=[250_000.0, 1.0, 1.0, 60_000.0, -350_000.0]),
        "fine": treasury(quantity=[120_000.0, 11.0, 100.0, 60_000.0, -250_000.0]),
    }
    return pd.concat(tables, names=["portfolio_id"]).reset_index()


def test_batch_has_one_row_each_and_costs_only_the_culprit() -> None:
    plans = rebalancer(Turnover(0.5)).solve_batch(long_table())
    assert list(plans.results.index) == ["001", "NA", "over", "fine"]
    status = plans.results["status"].to_dict()
    assert status["NA"] == "INVALID_INPUT" and "BTC" in plans["NA"].message and "price" in plans["NA"].message
    assert "'NA'" in plans["NA"].message
    assert status["over"] == "INFEASIBLE"
    assert set(plans.orders.index.get_level_values(0)) == {"001", "fine"}
    for name in ("001", "fine"):
        alone = rebalancer(Turnover(0.5)).solve(
            long_table().query("portfolio_id == @name").drop(columns="portfolio_id")
        )
        pd.testing.assert_frame_equal(plans[name].orders, alone.orders, check_exact=True)


def test_batch_order_changes_nothing() -> None:
    table = long_table()
    base = rebalancer(Turnover(0.5)).solve_batch(table)
    mixed = rebalancer(Turnover(0.5)).solve_batch(table.sample(frac=1.0, random_state=5))
    assert sorted(base.results.index) == sorted(mixed.results.index)
    pd.testing.assert_frame_equal(base.results, mixed.results.loc[base.results.index], check_exact=True)


def test_batch_ids_that_are_no_text_are_refused_one_by_one() -> None:
    table = long_table().astype({"portfolio_id": object})
    table.loc[table["portfolio_id"] == "fine", "portfolio_id"] = None
    plans = rebalancer().solve_batch(table)
    assert plans.results["status"].tolist()[0] in ("OPTIMAL", "FEASIBLE")
    assert plans.results["status"].tolist()[3] == "INVALID_INPUT"
    assert "portfolio_id" in plans.results["message"].tolist()[3]


def test_batch_without_ids_is_an_error() -> None:
    with pytest.raises(InputError, match="portfolio_id"):
        rebalancer().solve_batch(treasury())


def test_a_label_of_another_account_may_be_named() -> None:
    """A rule may name an asset that this account lacks but another has; a slip of the pen is an error."""
    table = long_table().query("portfolio_id in ('001', 'fine')")
    dropped = table.drop(table[(table["portfolio_id"] == "fine") & (table["asset"] == "ADA")].index)
    dropped.loc[(dropped["portfolio_id"] == "fine") & (dropped["asset"] == "USDC"), "target"] = 0.40
    plans = rebalancer(GroupLimit("group", upper=1.2), DriftBand(absolute=0.3, assets=["ADA", "BTC"])).solve_batch(
        dropped
    )
    assert plans.results["verified"].all(), plans.results["message"].tolist()
    with pytest.raises(InputError, match="ADAA"):
        rebalancer(DriftBand(absolute=0.3, assets=["ADAA"])).solve(treasury())


@pytest.mark.slow
def test_custom_rule_with_lots() -> None:
    """A custom rule holds for the whole-lot plan, too."""
    import cvxpy as cp

    rule = Custom(lambda t: cp.norm(t.trades, 2) <= 0.2, name="small trades")
    plan = rebalancer(rule).solve(treasury(lot=[1000.0, 0.01, 0.1, 0.0, 1.0]))
    assert plan.status.ok, plan.message
    assert plan.checks.set_index("rule").loc["small trades", "passed"]
    assert plan.gap < 1e-3


def test_a_floor_below_zero_never_makes_the_answer_worse() -> None:
    """Letting the cash go negative is a looser rule: the objective and the bound cannot rise.

    With the cash at 29 % of NAV its sign is not in question, and the health factor's row must charge the fees
    to a positive cash (which is no collateral here), not to a debt.
    """
    table = pd.DataFrame(
        {"quantity": [100.0, -60.0, 60.0], "price": 1.0, "target": [1.4, -0.8, 0.4], "lt": [0.9, 0.0, 0.0]},
        index=["A", "loan", "USD"],
    )
    answers = []
    for floor in (0.0, -0.3):
        rules = [LongOnly(except_=["loan"]), ShortOnly(["loan"]), HealthFactor(1.85, "lt"), CashFloor(floor)]
        costs = [ProportionalCost(0.05)]
        answers.append(Rebalancer(constraints=rules, costs=costs, cash="USD", horizon=5.0).solve(table))
    assert all(answer.status is Status.OPTIMAL for answer in answers)
    assert answers[1].objective <= answers[0].objective * (1 + 1e-9)
    assert answers[1].bound <= answers[0].objective * (1 + 1e-9)


@pytest.mark.parametrize(("price", "held"), [(1e-8, 1_234_567_899.0), (0.01, 99_999_999.0)])
def test_never_one_unit_more_than_is_held(price: float, held: float) -> None:
    """A holding worth 1e-12 of a large NAV is sold in full, and not one unit beyond."""
    table = pd.DataFrame(
        {"quantity": [held, 1e12], "price": [price, 1.0], "target": [0.0, 1.0], "lot": [1.0, 0.0]}, index=["A", "USD"]
    )
    for rules in ([LongOnly(), LotSize("lot")], [LongOnly()]):
        plan = Rebalancer(constraints=rules, cash="USD").solve(table)
        assert plan.verified is not None
        assert plan.verified.quantities[0] >= 0


def test_doing_nothing_is_a_plan_too() -> None:
    """Where every lot is far too coarse, holding beats rounding; also when there is a debt."""
    table = pd.DataFrame(
        {
            "quantity": [1.0, -1.0, 50.0],
            "price": [60.0, 10.0, 1.0],
            "target": [0.7, -0.13, 0.43],
            "lot": [5.0, 3.0, 0.0],
        },
        index=["A", "loan", "USD"],
    )
    plan = Rebalancer(constraints=[LotSize("lot")], cash="USD").solve(table)
    held = table["quantity"] * table["price"] / 100 - table["target"]
    assert plan.status.ok
    assert plan.objective <= 5.0 * float((held[:2] ** 2).sum()) * (1 + 1e-9)


def test_a_batch_survives_labels_and_ids_of_any_kind() -> None:
    table = long_table().astype({"portfolio_id": object, "asset": object})
    table.at[0, "asset"] = ["no", "text"]
    table.loc[table["portfolio_id"] == "fine", "portfolio_id"] = pd.NA
    plans = rebalancer().solve_batch(table)
    assert plans.results["status"].tolist()[0] == "INVALID_INPUT"
    assert plans.results["status"].tolist()[3] == "INVALID_INPUT"
    for broken in (table.rename(columns={"price": "asset"}), table.set_index("asset", drop=False), None):
        with pytest.raises(InputError):
            rebalancer().solve_batch(broken)  # type: ignore[arg-type]


@pytest.mark.slow
def test_random_accounts_from_end_to_end() -> None:
    """Rules of every kind with a feasible point planted: a verified plan each time, never worse than that point.

    Whole-lot plans are compared by their bound, which no feasible point of the convex rules may be below.
    """
    from strategies import many

    from equipoise.optimizer.plans.make import finished
    from equipoise.optimizer.solvers.choose import solve

    for number, instance in enumerate(many(80, seed=17)):
        problem = instance.problem()
        plan = finished(problem, solve(problem))
        planted = problem.objective(instance.planted_weights())
        if plan.status is Status.NO_LOT_PLAN:
            continue  # the planted point is not in whole lots
        assert plan.status.ok, (number, plan.message)
        assert plan.checks["passed"].all()
        assert plan.bound <= planted + 1e-9 * abs(planted) + 1e-12, number
        if problem.step is None:
            assert plan.objective <= planted + 1e-9 * abs(planted) + 1e-12, number
            assert plan.gap <= max(1e-6 * abs(plan.objective), 1e-11), number


def test_batch_ids_with_white_space_are_refused() -> None:
    """ "a" and "a " would be two portfolios that look like one."""
    table = long_table().query("portfolio_id == 'fine'")
    plans = rebalancer().solve_batch(pd.concat([table, table.assign(portfolio_id="fine ")]))
    assert plans.results["status"].tolist()[1] == "INVALID_INPUT"
    assert "white space" in plans.results["message"].tolist()[1]


def test_a_limit_that_whole_lots_leave_slack_has_no_price() -> None:
    """20 of 100 may be traded, both sides together, and a lot is 3: the plan trades 18 at most."""
    columns = {"quantity": [60.0, 30.0, 10.0], "price": 1.0, "target": [0.3, 0.6, 0.1]}
    table = pd.DataFrame(columns, index=pd.Index(["A", "B", "USD"], name="asset"))
    plan = Rebalancer(cash="USD", constraints=[Turnover(0.1), LotSize(3.0)]).solve(table)
    assert plan.orders["quantity"].sum() == 18.0
    assert plan.solution is not None and plan.solution.prices is not None
    assert plan.solution.prices.rows.max() > 0.1  # that of the convex program
    check = plan.checks[plan.checks.rule == "Turnover"].iloc[0]
    assert check.slack == pytest.approx(0.01)
    assert check.shadow_price == 0.0


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    "rules",
    [
        (Turnover(0.1), Turnover(0.2)),
        (CashFloor(0.15), CashFloor(0.05)),
        (WeightBounds(upper={"B": 0.45}), WeightBounds(upper={"B": 0.5})),
    ],
    ids=lambda rules: type(rules[0]).__name__,
)
def test_of_two_limits_of_one_name_only_the_tight_one_has_a_price(rules: tuple[Rule, ...], first: int) -> None:
    """The price is what moving that limit saves (a difference quotient); the slack one's is 0."""
    columns = {"quantity": [60.0, 30.0, 10.0], "price": 1.0, "target": [0.3, 0.6, 0.1]}
    table = pd.DataFrame(columns, index=pd.Index(["A", "B", "USD"], name="asset"))
    ordered = rules if first == 0 else rules[::-1]
    checks = Rebalancer(cash="USD", constraints=ordered).solve(table).checks
    prices = checks.shadow_price[checks.rule == type(rules[0]).__name__].tolist()
    assert prices[1 - first] == 0
    moved = {
        Turnover: lambda e: Turnover(0.1 + e),
        CashFloor: lambda e: CashFloor(0.15 - e),
        WeightBounds: lambda e: WeightBounds(upper={"B": 0.45 + e}),
    }[type(rules[0])]
    wide, tight = (Rebalancer(cash="USD", constraints=[moved(e)]).solve(table).objective for e in (1e-4, -1e-4))
    assert prices[first] == pytest.approx((tight - wide) / 2e-4, rel=1e-3)
