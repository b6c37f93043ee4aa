"""Portfolios in several accounts: against a network-flow formulation written by hand, and by exact bookkeeping."""

from __future__ import annotations

import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from accounts_cases import CASHES, DEBTS, In, network, random_case

from equipoise import InputError, Plan, Rebalancer, Status
from equipoise.constraints import (
    AfterShock,
    BuyOnly,
    CashBand,
    CashFloor,
    Custom,
    DriftBand,
    FactorLimit,
    GroupLimit,
    HealthFactor,
    Leverage,
    LongOnly,
    NoTrade,
    Rule,
    SellOnly,
    ShortOnly,
    TrackingErrorLimit,
    Turnover,
    WeightBounds,
)
from equipoise.optimizer import CovarianceRisk, Transfer
from equipoise.optimizer.solvers.program import program


def solved(seed: int, **options: Any) -> tuple[Any, Plan]:
    case = random_case(np.random.default_rng([7, seed]), **options)
    return case, case.rebalancer.solve(case.table)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_as_the_network(seed: int) -> None:
    """Objective and feasibility are those of a plain network-flow program, within 1e-7 of NAV a year."""
    case, plan = solved(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Clarabel's own tolerances are asked for more than it can always do
        status, objective, _ = network(case)
    if plan.status is Status.INFEASIBLE:
        assert "infeasible" in status
    else:
        assert plan.status is Status.OPTIMAL, plan.message
        assert abs(plan.objective - objective) < 1e-7
        assert plan.gap < 1e-9


@pytest.mark.parametrize("seed", range(12))
def test_newton_and_the_program_agree(seed: int) -> None:
    case, plan = solved(seed)
    if plan.status.ok:
        answer = program.solve(case.rebalancer.problem(case.table))
        assert abs(answer.objective - plan.objective) < 1e-8
        assert answer.gap < 1e-8


@pytest.mark.parametrize("seed", range(8))
def test_books_balance_to_the_last_unit(seed: int) -> None:
    """By fractions, from the orders and transfers alone: each cash pays for its own account, and nothing is lost."""
    _, plan = solved(seed, calm=True)
    assert plan.status.ok and plan.verified is not None and plan.problem is not None
    accounts = plan.problem.accounts
    assert accounts is not None
    account = accounts.portfolio
    n, price = len(account.assets), account.exact_price
    held = list(account.exact_quantity)
    for transfer, moved in zip(accounts.transfers, plan.trades[n:], strict=True):
        held[account.assets.index(transfer.source)] -= moved
        held[account.assets.index(transfer.destination)] += moved
    for name, asset in CASHES.items():
        cash = account.assets.index(f"{name}/{asset}")
        for i in range(n):
            if account.assets[i].startswith(name + "/") and i != cash:
                held[i] += plan.trades[i]
                held[cash] -= plan.trades[i] * price[i] + plan.verified.costs[i]
    moved_cost = sum(plan.verified.costs[n:], Fraction(0))
    after = plan.verified.quantities
    assert [x for i, x in enumerate(held) if i not in accounts.cashes] == [
        x for i, x in enumerate(after) if i not in accounts.cashes
    ]
    assert sum(held[i] - after[i] for i in accounts.cashes) == moved_cost
    nav = sum(q * p for q, p in zip(account.exact_quantity, price, strict=True))
    assert sum(q * p for q, p in zip(after, price, strict=True)) + plan.verified.cost == nav
    for coin in ("BTC", "ETH"):
        rows = [i for i in range(n) if account.assets[i].endswith("/" + coin)]
        traded = sum(plan.trades[i] for i in rows)
        assert sum(after[i] for i in rows) == sum(account.exact_quantity[i] for i in rows) + traded


@pytest.mark.parametrize("nav", [1e-9, 1e12])
def test_any_nav(nav: float) -> None:
    _, plan = solved(3, calm=True)
    _, scaled = solved(3, calm=True, nav=nav)
    assert plan.status.ok and scaled.status.ok
    assert abs(plan.objective - scaled.objective) < 1e-9
    np.testing.assert_allclose(plan.weights["after"], scaled.weights["after"], atol=1e-6)


def test_order_of_rows_and_transfers() -> None:
    case, plan = solved(5, calm=True)
    assert plan.status.ok
    turned = case.table.iloc[::-1]
    policy = case.rebalancer.policy
    other = Rebalancer(
        cash=CASHES,
        risk=policy.risk,
        costs=policy.costs,
        constraints=policy.constraints,
        aversion=policy.aversion,
        horizon=policy.horizon,
        transfers=policy.transfers[::-1],
    )
    again = other.solve(turned)
    pd.testing.assert_frame_equal(plan.orders, again.orders)
    pd.testing.assert_frame_equal(plan.transfers, again.transfers)
    pd.testing.assert_frame_equal(plan.weights, again.weights.loc[plan.weights.index])


# A small portfolio, with answers by hand ---------------------------------------------------------------------

ROWS: dict[tuple[str, str], tuple[float, float, float, float, str | None]] = {
    ("exchange", "USDT"): (1000.0, 1.0, 0.5, 0.0, "USD"),
    ("exchange", "ETH"): (2.0, 1000.0, 0.5, 0.0, None),
    ("aave", "ETH"): (4.0, 1000.0, 0.0, 0.8, None),
    ("aave", "USDC owed"): (-2000.0, 1.0, 0.0, 0.0, "USD"),
    ("wallet", "USDC"): (0.0, 1.0, 0.0, 0.0, "USD"),
}
COLUMNS = ["quantity", "price", "target", "threshold", "underlying"]


def table(**changes: Any) -> pd.DataFrame:
    rows = pd.DataFrame.from_dict(ROWS, orient="index", columns=COLUMNS)
    rows.index = pd.MultiIndex.from_tuples(rows.index, names=["account", "asset"])
    for label, quantity in changes.items():
        account, asset = label.split("__")
        rows.loc[(account, asset.replace("_", " ")), "quantity"] = quantity
    return rows


REPAY, BORROW = Transfer("wallet/USDC", "aave/USDC owed"), Transfer("aave/USDC owed", "wallet/USDC")
BRIDGE = Transfer("exchange/USDT", "wallet/USDC", cost=0.001)
SUPPLY, WITHDRAW = Transfer("exchange/ETH", "aave/ETH"), Transfer("aave/ETH", "exchange/ETH")
SIGNS: list[Rule] = [LongOnly(except_=["aave/USDC owed"]), ShortOnly(["aave/USDC owed"])]


def rebalancer(rules: list[Rule], transfers: list[Transfer], **options: Any) -> Rebalancer:
    cash = {"exchange": "USDT", "wallet": "USDC"}
    return Rebalancer(cash=cash, constraints=[*SIGNS, *rules], transfers=transfers, **options)


def health(at_least: float) -> Rule:
    return In(account="aave", rule=HealthFactor(at_least, "threshold"))


def test_repaying_from_another_venue() -> None:
    """HF = 0.8·4000/2000 = 1.6; 2.0 needs a debt of 1600, so 400 over the bridge at 10 bp, if no ether may move."""
    plan = rebalancer([health(2.0), NoTrade(["exchange/ETH"])], [BRIDGE, REPAY]).solve(table())
    assert plan.status is Status.OPTIMAL, plan.message
    moved = plan.transfers.set_index("to")
    assert moved.loc["wallet/USDC", "quantity"] == pytest.approx(400.0, abs=1e-5)
    assert moved.loc["aave/USDC owed", "quantity"] == pytest.approx(400.0, abs=1e-5)
    assert moved.loc["wallet/USDC", "cost"] == pytest.approx(0.4, abs=1e-8)
    assert not len(plan.orders)
    after = plan.weights["after"] * 5000
    assert after["exchange/USDT"] == pytest.approx(1000 - 400.4, abs=1e-5)
    assert after["wallet/USDC"] == pytest.approx(0.0, abs=1e-9)
    shown = plan.checks.set_index("rule").loc["In"]
    assert shown["value"] == pytest.approx(2.0) and shown["passed"]


def test_supplying_does_not_change_the_exposure() -> None:
    """2.0 needs 1000 more of collateral; the ether is there, at the exchange, so that nothing is sold."""
    plan = rebalancer([health(2.0)], [SUPPLY, WITHDRAW]).solve(table())
    assert plan.status is Status.OPTIMAL
    (moved,) = plan.transfers.itertuples()
    assert (moved[1], moved[2]) == ("exchange/ETH", "aave/ETH") and moved.quantity == pytest.approx(1.0, abs=1e-6)
    # 6 ETH are 6000 of 5000; the target is half: sold at the exchange down to what is not needed as collateral.
    weights = plan.weights["after"] * 5000
    assert weights["aave/ETH"] == pytest.approx(5000, abs=1e-2)


def test_what_one_account_lacks_is_said() -> None:
    plan = rebalancer([health(2.0), NoTrade(["exchange/ETH"])], [REPAY]).solve(table())
    assert plan.status is Status.INFEASIBLE
    assert "the cash floor of wallet reaches -8 % at best" in plan.message  # 400 of 5000


def test_limits_of_a_transfer() -> None:
    short = replace(BRIDGE, limit=300.0)
    plan = rebalancer([health(2.0), NoTrade(["exchange/ETH"])], [short, REPAY]).solve(table())
    assert plan.status is Status.INFEASIBLE
    assert "reaches -2 % at best" in plan.message  # 100 of 5000
    assert "limit of the transfer: exchange/USDT -> wallet/USDC" in plan.message
    plan = rebalancer([health(1.8), NoTrade(["exchange/ETH"])], [short, REPAY]).solve(table())
    assert plan.status is Status.OPTIMAL and (plan.transfers["quantity"] <= 300.0).all()


def test_a_dearer_way_beyond_the_limit_of_a_cheap_one() -> None:
    """Costs that rise with the amount are several transfers between the same rows."""
    ways = [replace(BRIDGE, cost=0.01), replace(BRIDGE, limit=300.0)]
    plan = rebalancer([health(2.0), NoTrade(["exchange/ETH"])], [*ways, REPAY]).solve(table())
    assert plan.status is Status.OPTIMAL
    moved = plan.transfers[plan.transfers["from"] == "exchange/USDT"]
    np.testing.assert_allclose(moved["quantity"], [300.0, 100.0], atol=1e-4)
    np.testing.assert_allclose(moved["cost"], [0.3, 1.0], atol=1e-5)


def test_each_account_spends_its_own_cash() -> None:
    """The exchange is rich and the wallet is not: without a bridge nothing can be bought from the wallet."""
    rows = table(exchange__USDT=3000.0, exchange__ETH=0.0, aave__ETH=0.0, aave__USDC_owed=0.0)
    rows.loc[("wallet", "ETH"), :] = [0.0, 1000.0, 0.0, 0.0, None]
    rows.loc[("exchange", "ETH"), "quantity"] = 0.0
    frozen = NoTrade(["exchange/ETH"])
    plan = rebalancer([frozen], []).solve(rows)
    assert plan.status is Status.NO_TRADE
    plan = rebalancer([frozen], [BRIDGE]).solve(rows)
    assert plan.status is Status.OPTIMAL
    bought, sent = plan.orders.loc["wallet/ETH", "notional"], plan.transfers["quantity"].sum()
    # ½·10·(w − ½)² + 0.001·w of 3000: w = ½ − 0.0001, less the preference for moving less.
    assert bought == pytest.approx(3000 * (0.5 - 0.0001 - 1e-7), abs=1e-4) and sent == pytest.approx(bought, abs=1e-6)


def test_delay_puts_it_in_transit() -> None:
    """At most 40 % at the exchange: what leaves is counted once, in transit, and does not help the loan."""
    rules: list[Rule] = [GroupLimit(by="account", upper={"exchange": 0.4}), NoTrade(["exchange/ETH", "aave/ETH"])]
    slow = replace(SUPPLY, delay=2.0)
    plan = rebalancer(rules, [slow]).solve(table())
    assert plan.status is Status.OPTIMAL
    assert plan.transfers["hours"].tolist() == [2.0]
    weights = plan.weights["after"]
    assert weights["in transit/ETH"] == pytest.approx(0.2, abs=1e-7) and weights["aave/ETH"] == pytest.approx(0.8)
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert plan.tracking_error[0] == pytest.approx(plan.tracking_error[1], abs=1e-9)  # the exposure is what it was
    late = rebalancer([health(2.0), NoTrade(["exchange/ETH"])], [slow]).solve(table())
    assert late.status is Status.INFEASIBLE
    # The next table has it as a row: it is counted, and nobody can use it.
    rows = table(exchange__ETH=1.0)
    rows.loc[("in transit", "ETH"), :] = [1.0, 1000.0, 0.0, 0.0, None]
    held = rebalancer([NoTrade(["exchange/ETH"])], [slow]).solve(rows)
    assert held.problem is not None and held.problem.portfolio.nav == 5000.0
    assert held.weights.loc["in transit/ETH", "after"] == pytest.approx(0.2, abs=1e-12)


def staked(**changes: Any) -> pd.DataFrame:
    """4 units of staked ether at 1000, each worth 3/2 of exposure, at the exchange of ROWS (NAV 5000)."""
    rows = table(exchange__ETH=4.0, aave__ETH=0.0, aave__USDC_owed=0.0).assign(exposure=1.0, shock=0.0, sector=None)
    rows.loc[[("exchange", "ETH"), ("aave", "ETH")], ["exposure", "shock", "sector"]] = [1.5, 0.25, "coin"]
    for column, value in changes.items():
        rows[column] = value
    return rows


CAPPED: list[Rule] = [GroupLimit(by="account", upper={"exchange": 0.4}), NoTrade(["exchange/ETH", "aave/ETH"])]
SLOW = replace(SUPPLY, delay=2.0)


@pytest.mark.parametrize("kind", [float, object])
def test_what_is_on_its_way_is_the_asset_that_left(kind: type) -> None:
    """3 of the 4 units leave the exchange (which may keep 2000 of 5000, and has 1000 of cash): exposures are 4·3/2 of
    5 before and after, and the fall by a quarter is one of 4000."""
    rules: list[Rule] = [*CAPPED, AfterShock(Leverage(10.0), fall="shock"), FactorLimit("beta", upper=9.0)]
    rows = staked(beta=2.0).astype({"exposure": kind, "shock": kind})
    plan = rebalancer(rules, [SLOW]).solve(rows)
    assert plan.status.ok and plan.problem is not None and plan.verified is not None, plan.message
    accounts = plan.problem.accounts
    assert accounts is not None
    account, after = accounts.portfolio, plan.verified.quantities
    exposure, fall, beta = (account.numbers(column, column) for column in ("exposure", "shock", "beta"))
    money = [q * p for q, p in zip(after, account.exact_price, strict=True)]
    at = account.assets.index("in transit/ETH")
    assert float(money[at]) == pytest.approx(3000.0, abs=1e-4)
    assert (exposure[at], fall[at], beta[at]) == (1.5, 0.25, 2.0)
    ether = [i for i, label in enumerate(account.labels("underlying")) if label == "ETH"]
    assert sum(money[i] * Fraction(exposure[i]) for i in ether) == Fraction(6000)
    assert sum(money[i] * Fraction(fall[i]) for i in ether) == Fraction(1000)
    assert plan.exposures.loc["ETH", "after"] == pytest.approx(6000 / 5000, abs=1e-12)
    assert plan.tracking_error[0] == pytest.approx(plan.tracking_error[1], abs=1e-9)


def test_labels_go_with_what_is_on_its_way() -> None:
    """The limit of a sector is not kept by sending its assets off: 4000 of 5000 are coins wherever they are."""
    limit = GroupLimit(by="sector", upper={"coin": 0.7})
    assert rebalancer([*CAPPED, limit], [SLOW]).solve(staked()).status is Status.INFEASIBLE
    rows = staked()
    problem = rebalancer([limit], [SLOW]).problem(rows)
    assert problem.accounts is not None
    account = problem.accounts.portfolio
    assert account.labels("sector")[account.assets.index("in transit/ETH")] == "coin"


def test_what_is_on_its_way_is_no_collateral() -> None:
    """Withdrawn with a delay, 0.8 of collateral no longer counts; a venue's own limits have no room for it either."""
    back = replace(WITHDRAW, delay=2.0)
    for kind in (float, object):
        rows = table().astype({"threshold": kind})
        account = rebalancer([], [back]).problem(rows).accounts.portfolio  # type: ignore[union-attr]
        assert account.numbers("threshold", "x")[account.assets.index("in transit/ETH")] == 0.0


def test_rows_in_transit_that_differ_are_the_users_to_say() -> None:
    rows = staked()
    rows.loc[("wallet", "ETH"), :] = rows.loc[("exchange", "ETH"), :]
    rows.loc[("wallet", "ETH"), "exposure"] = 1.0
    slow = [SLOW, Transfer("wallet/ETH", "aave/ETH", delay=1.0)]
    with pytest.raises(InputError, match="rows that reach it differ") as caught:
        rebalancer([], slow).problem(rows)
    assert (caught.value.asset, caught.value.column, caught.value.value) == ("in transit/ETH", "exposure", 1.0)


def test_perpetuals_by_their_quote_balance() -> None:
    """Equity = quote + size·price: a short of 2 ETH at 1000 with 2500 of quote is worth 500, and hedges 2 ETH."""
    rows = pd.DataFrame(
        [("spot", "USD", "USD", 0.0, 1.0, 1.0), ("spot", "ETH", "ETH", 2.0, 1000.0, 0.0)],
        columns=["account", "asset", "underlying", "quantity", "price", "target"],
    )
    perps = rows.assign(account="perps", asset=["USD", "ETH-PERP"], quantity=[500.0, 0.0], target=0.0)
    rows = pd.concat([rows, perps])
    rules: list[Rule] = [LongOnly(except_=["perps/ETH-PERP"]), NoTrade(["spot/ETH"]), CashFloor(-10, account="perps")]
    plan = Rebalancer(cash={"spot": "USD", "perps": "USD"}, constraints=rules).solve(rows)
    assert plan.status is Status.OPTIMAL, plan.message
    assert plan.orders.loc["perps/ETH-PERP", "quantity"] == pytest.approx(2.0)
    assert plan.weights["after"]["perps/USD"] * 2500 == pytest.approx(2500.0)
    assert plan.tracking_error[1] == pytest.approx(0.0, abs=1e-9)


def test_exposure_of_an_option() -> None:
    """`exposure` is the exposure per unit of value: 100 of options with a lever of 5 are 500 of ether."""
    rows = table(aave__USDC_owed=0.0, aave__ETH=0.0, exchange__ETH=0.0)
    rows.loc[("exchange", "CALL"), :] = [100.0, 1.0, 0.0, 0.0, "ETH"]
    rows["exposure"] = [1.0, 1.0, 1.0, 1.0, 1.0, 5.0]
    risk = CovarianceRisk(pd.DataFrame([[0.5]], ["ETH"], ["ETH"]), riskless=["USD"])
    plan = rebalancer([NoTrade(["exchange/CALL"])], [], risk=risk).solve(rows)
    # Wanted: half of 1100; 500 are there.
    assert plan.orders.loc["exchange/ETH", "notional"] == pytest.approx(50.0, abs=1e-4)


ETHER = CovarianceRisk(pd.DataFrame([[0.5]], ["ETH"], ["ETH"]), riskless=["USD"])


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (TrackingErrorLimit(0.1), lambda plan, after: plan.tracking_error[1] <= 0.1 + 1e-9),
        (
            DriftBand(absolute=0.1, by="underlying"),
            lambda _, after: after[["exchange/ETH", "aave/ETH"]].sum() <= 0.6 + 1e-9,
        ),
        (Custom(lambda trade: trade.weight("aave/ETH") >= 0.9), lambda _, after: after["aave/ETH"] >= 0.9 - 1e-8),
        (Custom(lambda trade: trade.weight("aave/ETH") <= 0.5), lambda _, after: after["aave/ETH"] <= 0.5 + 1e-8),
        (WeightBounds(upper={"aave/ETH": 0.3}, assets=["aave/ETH"]), lambda _, after: after["aave/ETH"] <= 0.3 + 1e-9),
        (WeightBounds(lower={"aave/ETH": 1.1}, assets=["aave/ETH"]), lambda _, after: after["aave/ETH"] >= 1.1 - 1e-9),
        (Leverage(gross=1.3), lambda _, after: after[["exchange/ETH", "aave/ETH"]].sum() <= 1.3 + 1e-9),
        (BuyOnly(["exchange/ETH"]), lambda plan, _: not len(plan.orders)),
        (SellOnly(["exchange/ETH"]), lambda plan, _: (plan.orders["side"] == "sell").all()),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Rule) else "",
)
def test_rules_are_about_what_is_held_at_the_end(rule: Rule, kept: Any) -> None:
    """Cones, custom rules, rows and bounds count what transfers bring and take; rules of the trades do not."""
    free = CashBand(-5, 5)
    plan = rebalancer([rule, free], [SUPPLY, WITHDRAW], risk=ETHER).solve(table(aave__USDC_owed=0.0))
    assert plan.status in (Status.OPTIMAL, Status.NO_TRADE), plan.message
    assert kept(plan, plan.weights["after"])


def test_turnover_and_carry_do_not_see_transfers() -> None:
    plan = rebalancer([health(2.0), Turnover(0.0)], [SUPPLY]).solve(table())
    assert plan.status is Status.OPTIMAL and plan.turnover == 0.0 and len(plan.transfers) == 1


def test_cash_rules_of_an_account() -> None:
    rules: list[Rule] = [CashFloor(money=250.0, account="wallet"), CashBand(0.0, 0.1), NoTrade(["exchange/ETH"])]
    plan = rebalancer(rules, [BRIDGE, REPAY, BORROW]).solve(table())
    assert plan.status is Status.OPTIMAL, plan.message
    after = plan.weights["after"] * 5000
    assert after["wallet/USDC"] >= 250 - 1e-6 and after["exchange/USDT"] <= 500 + 1e-6


# Bad input ----------------------------------------------------------------------------------------------------

BAD: list[tuple[str, dict[str, Any], list[Transfer], str]] = [
    ("a debt without an account", {"account": (3, None)}, [], "account must be a name"),
    ("unknown account", {}, [Transfer("exchange/ETH", "avae/ETH")], "unknown account 'avae'"),
    ("no row there", {}, [Transfer("exchange/ETH", "wallet/ETH")], "does not have; add one with quantity 0"),
    ("another asset", {}, [Transfer("exchange/ETH", "wallet/USDC")], "leaves ETH and reaches USD"),
    ("two prices", {"price": (2, 1001.0)}, [SUPPLY], "one asset that can be moved has one price"),
    ("payer", {}, [replace(SUPPLY, paid_by="aave")], "no cash; there are exchange, wallet"),
    ("a price", {"price": (2, -1.0)}, [], "a price must be above zero"),
    ("twice", {"asset": (2, "USDC owed")}, [], "stands in the table twice"),
    ("targets", {"target": (1, 0.4)}, [], "add up to 0.9"),
    ("white space before an asset", {"asset": (2, " ETH")}, [], "column 'asset': the label has white space around it"),
    ("an asset no file holds", {"asset": (2, "E\ud800")}, [], "column 'asset': has half of a surrogate pair"),
    ("an account no file holds", {"account": (2, "a\ud800")}, [], "column 'account': has half of a surrogate pair"),
]


@pytest.mark.parametrize(("cell", "transfers", "text"), [x[1:] for x in BAD], ids=[x[0] for x in BAD])
def test_bad_input(cell: dict[str, Any], transfers: list[Transfer], text: str) -> None:
    rows = table().reset_index()
    for column, (row, value) in cell.items():
        rows[column] = rows[column].astype(object)
        rows.loc[row, column] = value
    with pytest.raises(InputError, match=text):
        rebalancer([], transfers).solve(rows)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Transfer("exchange/ETH", "aave/ETH", limit=-1.0), "at least 0"),
        (lambda: Transfer("exchange/ETH", "aave/ETH", cost=-0.1), "at least 0"),
        (lambda: Transfer("exchange/ETH", "aave/ETH", cost=1.0), "below 1"),
        (lambda: Transfer("exchange/ETH", "exchange/ETH"), "another row"),
        (lambda: Transfer("ETH", "aave/ETH"), "label of a row"),
        (lambda: Transfer("exchange/ETH", "aave/ETH", two_way=True, delay=1.0), "goes one way"),
        (lambda: Rebalancer(cash="USD", transfers=[SUPPLY]), "transfers need accounts"),
        (lambda: Rebalancer(cash={}), "cash of one account at least"),
        (lambda: rebalancer([CashFloor(0.1, account="aave")], []).solve(table()), "no cash of its own"),
        (lambda: Rebalancer(cash={"exchange": "USD"}).solve(table()), "cash has no row"),
        (lambda: Rebalancer(cash={"bank": "USD"}).solve(table()), "account that the table does not have"),
        (lambda: Rebalancer(cash={"exchange": "USDT"}, transfers=[REPAY]).solve(table()), "ShortOnly"),
    ],
)
def test_bad_arguments(make: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        make()


def test_debts_and_holdings_keep_their_side() -> None:
    """More than is owed cannot be repaid, more than is there cannot be sent."""
    rules: list[Rule] = [GroupLimit(by="account", lower={"aave": 0.75}), NoTrade(["exchange/ETH"])]
    plan = rebalancer(rules, [BRIDGE, REPAY]).solve(table(exchange__USDT=6000.0, aave__ETH=3.0, aave__USDC_owed=-500.0))
    assert plan.status is Status.INFEASIBLE  # 3000 of 10500, once nothing is owed
    assert DEBTS == ["lending/USDC owed"]


def test_what_a_plan_says() -> None:
    """Exposures over all accounts, reasons by underlying, the trigger, and the text."""
    from equipoise import Drift

    made = rebalancer([health(1.7), DriftBand(absolute=0.05, by="underlying")], [SUPPLY, WITHDRAW, BRIDGE, REPAY])
    plan = made.solve(table())
    assert plan.status.ok
    assert plan.exposures.loc["ETH", "before"] == pytest.approx(1.2)
    assert plan.exposures.loc["ETH", "target"] == pytest.approx(0.5)
    assert plan.exposures["after"].sum() == pytest.approx(plan.weights["after"].sum())
    assert "ETH towards its target (120.00% to 50.00% over all accounts)" in plan.orders.loc["exchange/ETH", "reason"]
    text = str(plan)
    assert "exposure to ETH" in text and "see plan.transfers" in text
    due = made.due(table(), trigger=Drift())
    assert due.fired and due.name == "ETH" and due.value == pytest.approx(0.7)


def test_a_band_on_an_underlying_is_on_all_of_it() -> None:
    """Cash and a loan of the same currency are one exposure: within its band nothing is repaid; `exposure` counts."""
    rules = [
        LongOnly(except_=["aave/USDC owed"]),
        ShortOnly(["aave/USDC owed"]),
        DriftBand(absolute=0.05, by="underlying"),
    ]
    rows = pd.DataFrame(
        [
            ("exchange", "USDT", "USD", 720_000.0, 1.0, 0.22, 1.0),
            ("exchange", "ETH", "ETH", 200.0, 2_000.0, 0.0, 1.0),
            ("exchange", "ETH call", "ETH", 1_000.0, 40.0, 0.04, 10.0),
            ("wallet", "USDC", "USD", 0.0, 1.0, 0.0, 1.0),
            ("aave", "ETH", "ETH", 180.0, 2_000.0, 0.74, 1.0),
            ("aave", "USDC owed", "USD", -520_000.0, 1.0, 0.0, 1.0),
        ],
        columns=["account", "asset", "underlying", "quantity", "price", "target", "exposure"],
    )
    transfers = [Transfer("exchange/USDT", "wallet/USDC"), Transfer("wallet/USDC", "aave/USDC owed")]
    made = Rebalancer(cash={"exchange": "USDT", "wallet": "USDC"}, constraints=rules, transfers=transfers)
    # Of a NAV of 1,000,000: 200,000 net in USD for 220,000 wanted, 1,160,000 in ETH for 1,140,000 wanted.
    plan = made.solve(rows)
    assert plan.status is Status.OPTIMAL, plan.message
    assert plan.transfers.empty
    band = plan.checks[plan.checks["rule"] == "DriftBand"].set_index("detail")
    after = plan.exposures["after"]
    assert band.loc["ETH above its band", "value"] == pytest.approx(after["ETH"], abs=1e-12)
    assert band.loc["ETH above its band", "limit"] == pytest.approx(1.14 + 0.05)
    assert band.loc["USD above its band", "value"] == pytest.approx(after["USD"], abs=1e-12)
    # A drift of the exposure is what fires, and what is mended.
    drifted = rows.assign(quantity=rows["quantity"].where(rows["asset"] != "ETH call", 2_000.0))
    drifted.loc[0, "quantity"] -= 40_000.0
    assert made.solve(drifted).exposures.loc["ETH", "after"] <= 1.19 + 1e-9


def test_a_batch_of_portfolios_in_accounts(tmp_path: Path) -> None:
    """One by one, with the same plans as alone; a bad one costs only itself; in processes too."""
    made = rebalancer([health(1.7)], [SUPPLY, WITHDRAW, BRIDGE, REPAY])
    good, rich, bad = table(), table(exchange__USDT=5000.0), table()
    bad.iloc[2, bad.columns.get_loc("price")] = -1.0
    parts = {"a": good, "b": bad, "c": rich}
    rows = pd.concat([part.reset_index().assign(portfolio_id=name) for name, part in parts.items()])
    plans = made.solve_batch(rows)
    assert list(plans.results["status"]) == ["OPTIMAL", "INVALID_INPUT", "OPTIMAL"]
    for name, part in (("a", good), ("c", rich)):
        alone = made.solve(part)
        assert plans.results.loc[name, "objective"] == alone.objective
        pd.testing.assert_frame_equal(plans[name].transfers, alone.transfers)
        assert list(plans.orders.loc[name].index) == list(alone.orders.index)
    again = made.solve_batch(rows, executor=1, chunk=10)
    pd.testing.assert_frame_equal(again.results, plans.results, check_index_type=False, check_column_type=False)
    for lossy in (made.stream, made.write_batch):
        with pytest.raises(InputError, match="would lose the transfers"):
            lossy(rows)


def test_the_command_line_writes_transfers(tmp_path: Path) -> None:
    from equipoise.optimizer.command.main import main
    from equipoise.optimizer.command.policy_text import dumps

    signs = list(SIGNS)
    made = Rebalancer(
        cash={"exchange": "USDT", "wallet": "USDC"},
        constraints=[*signs, WeightBounds(lower={"aave/USDC owed": -0.2}, assets=["aave/USDC owed"])],
        transfers=[BRIDGE, REPAY],
    )
    (tmp_path / "policy.toml").write_text(dumps(made))
    rows = table().reset_index().assign(target=[0.5, 0.5, 0.0, 0.0, 0.0])
    rows.to_csv(tmp_path / "one.csv", index=False)
    pd.concat([rows.assign(portfolio_id=name) for name in ("a", "b")]).to_csv(tmp_path / "two.csv", index=False)
    options = ["--policy", str(tmp_path / "policy.toml"), "--out"]
    assert main(["solve", str(tmp_path / "one.csv"), *options, str(tmp_path / "one")]) == 0
    assert main(["batch", str(tmp_path / "two.csv"), *options, str(tmp_path / "two")]) == 0
    one, two = (pd.read_csv(tmp_path / name / "transfers.csv") for name in ("one", "two"))
    assert list(one["to"]) == ["wallet/USDC", "aave/USDC owed"] and one["quantity"].iloc[1] == pytest.approx(1000.0)
    assert list(two["portfolio_id"]) == ["a", "a", "b", "b"]
    pd.testing.assert_frame_equal(
        two[two["portfolio_id"] == "b"].drop(columns="portfolio_id").reset_index(drop=True), one
    )


def test_the_next_table() -> None:
    """What a plan leaves, in units and in the order of the table, is what the next one starts from."""
    made = rebalancer([health(2.0)], [SUPPLY, WITHDRAW])
    plan = made.solve(table())
    rows = table()
    rows["quantity"] = plan.quantities["after"].to_numpy()
    assert list(plan.quantities.index) == ["/".join(label) for label in rows.index]
    assert made.solve(rows).transfers["value"].sum() < 1e-4


@pytest.mark.parametrize(("paid_by", "payer"), [(None, "wallet/USDC"), ("exchange", "exchange/USDT")])
def test_the_way_back_is_paid_where_it_leaves(paid_by: str | None, payer: str) -> None:
    """600 flow back to the exchange for 1 %: 6, paid by the account that they leave unless another is named."""
    rows = pd.DataFrame(
        [("exchange", "USDT", 100.0, 1.0), ("wallet", "USDC", 1_006.0, 0.0)],
        columns=["account", "asset", "quantity", "target"],
    ).assign(price=1.0, underlying="USD")
    made = Rebalancer(
        cash={"exchange": "USDT", "wallet": "USDC"},
        constraints=[CashFloor(money=694.0 if paid_by else 700.0)],
        transfers=[Transfer("exchange/USDT", "wallet/USDC", cost=0.01, two_way=True, paid_by=paid_by)],
    )
    plan = made.solve(rows)
    assert plan.status.ok and plan.verified is not None and plan.problem is not None, plan.message
    assert plan.transfers[["from", "to"]].to_numpy().tolist() == [["wallet/USDC", "exchange/USDT"]]
    moved = Fraction(max(plan.trades))
    assert float(moved) == pytest.approx(600.0, abs=1e-4)
    fee = moved / 100
    paid = {"exchange/USDT": 100 + moved, "wallet/USDC": 1006 - moved}
    paid[payer] -= fee
    after = dict(zip(plan.asked.assets, plan.verified.quantities, strict=True))
    assert after == paid and plan.verified.cost == fee


def _bounds(form: str, tight: float) -> list[Rule]:
    """An upper limit of 0.1 + `tight` on exchange/ETH, beside others that are slack."""
    at = ["exchange/ETH"]
    upper, wide = WeightBounds(upper=0.1 + tight, assets=at), WeightBounds(upper=0.3, assets=at)
    lower = WeightBounds(lower=0.05, assets=at)
    return {
        "both sides": [WeightBounds(lower=0.05, upper=0.1 + tight, assets=at)],
        "upper, lower": [upper, lower],
        "lower, upper": [lower, upper],
        "tight, wide": [upper, wide],
        "wide, tight": [wide, upper],
        "next to it": [upper, WeightBounds(upper=0.1 + tight + 5e-8, assets=at)],
    }[form]


@pytest.mark.parametrize(
    "form", ["both sides", "upper, lower", "lower, upper", "tight, wide", "wide, tight", "next to it"]
)
def test_the_price_of_a_bound_is_that_of_its_own_limit(form: str) -> None:
    """On a row that transfers touch: the price is what moving that limit saves, and a slack one's is 0."""
    rows = table(aave__ETH=0.0, aave__USDC_owed=0.0)
    supply = Transfer("exchange/ETH", "aave/ETH", cost=0.01)

    def solved(tight: float) -> Plan:
        rules = [NoTrade(["aave/ETH"]), *_bounds(form, tight)]
        return rebalancer(rules, [supply], aversion=3.0).solve(rows)

    checks = solved(0.0).checks
    checks = checks[(checks.rule == "WeightBounds") & (checks.asset == "exchange/ETH")]
    low, high = (solved(e).objective for e in (-1e-4, 1e-4))
    tight = (checks.limit == 0.1).tolist()
    assert sum(tight) == 1
    for price, binds in zip(checks.shadow_price, tight, strict=True):
        assert price == (pytest.approx((low - high) / 2e-4, rel=1e-3) if binds else 0.0)
