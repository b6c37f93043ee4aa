"""A stack is its portfolios, bit for bit: arrays, rules, costs and risk, whatever else is in the table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import CASH, instance
from test_every_rule import CASES, COVARIANCE, RISKY, TABLE, rule_classes
from test_portfolio import BAD_TABLES
from test_portfolio import table as small_table

from equipoise.constraints import (
    Cone,
    Custom,
    Envelope,
    InputError,
    LotSize,
    MinimumPosition,
    NameLimit,
    OrderLimit,
    Row,
    Rule,
    Turnover,
    WeightBounds,
)
from equipoise.constraints.errors import NotStackable
from equipoise.constraints.pieces import dot
from equipoise.optimizer.portfolio.portfolio import Portfolio, blank
from equipoise.optimizer.portfolio.stack import Stack, stacks
from equipoise.optimizer.problem import costs
from equipoise.optimizer.problem.costs import (
    Cost,
    FixedFee,
    HoldingCost,
    ImpactCost,
    MinimumCommission,
    ProportionalCost,
    QuadraticCost,
    total,
)
from equipoise.optimizer.risk.models import CovarianceRisk, FactoredRisk, FactorRisk, Risk, SquaredDistance, stacked

ARRAYS = ("quantity", "price", "target", "before")


def bits(value: Any) -> bytes:
    return np.ascontiguousarray(value, dtype=np.float64).tobytes()


def long_table(**tables: pd.DataFrame) -> pd.DataFrame:
    """One long table of these portfolios."""
    parts = [t.rename_axis(index="asset").reset_index().assign(portfolio_id=name) for name, t in tables.items()]
    return pd.concat(parts, ignore_index=True)


def accounts(rng: np.random.Generator, count: int, assets: int | None = None) -> dict[str, pd.DataFrame]:
    """Random accounts by id, of different sizes and different assets; the cash is not the last by label."""
    found = {}
    for number in range(count):
        one = instance(rng, assets=assets, rules=[]).table
        labels = rng.choice([f"{letter}{i}" for letter in "AZ" for i in range(12)], len(one) - 1, replace=False)
        one.index = pd.Index([CASH if a == CASH else labels[int(a[1:])] for a in one.index], name="asset")
        found[f"p{rng.integers(1000)}-{number}"] = one
    return found


def assert_same(stack: Stack, i: int, portfolio: Portfolio) -> None:
    """Portfolio i of the stack is this one, bit for bit."""
    assert tuple(stack.assets[i]) == portfolio.assets
    assert stack.cash[1][i] == portfolio.cash
    assert float(stack.nav[i, 0]).hex() == portfolio.nav.hex()
    for name in ARRAYS:
        assert bits(getattr(stack, name)[i]) == bits(getattr(portfolio, name))
        assert bits(getattr(stack, name)[stack.cash][i]) == bits(getattr(portfolio, name)[portfolio.cash])
    alone = stack.portfolio(i)
    for field in ("name", "assets", "cash", "nav", "universe", "exact_quantity", "exact_price"):
        assert getattr(alone, field) == getattr(portfolio, field)
    assert alone.order.tolist() == portfolio.order.tolist()
    assert alone.columns.keys() == portfolio.columns.keys()
    for name, cells in portfolio.columns.items():
        assert [repr(cell) for cell in alone.columns[name]] == [repr(cell) for cell in cells]


# --- arrays ---------------------------------------------------------------------------------------------------


def test_two_accounts_by_hand() -> None:
    """Rows in any order, interleaved; sorted by label; NAV is a column."""
    table = pd.DataFrame(
        [
            ("b", "USD", 40.0, 1.0, 0.25),
            ("a", "BTC", 2.0, 30.0, 0.5),
            ("b", "XRP", 20.0, 3.0, 0.75),
            ("a", "USD", 140.0, 1.0, 0.5),
        ],
        columns=["portfolio_id", "asset", "quantity", "price", "target"],
    )
    (stack,), odd = stacks(table, "USD", universe=["ETH"])
    assert odd == []
    assert stack.names == ("b", "a")
    assert stack.universe == ("BTC", "ETH", "USD", "XRP")
    assert stack.codes.tolist() == [[2, 3], [0, 2]]
    assert stack.rows.tolist() == [[0, 2], [1, 3]]
    assert stack.cash[1].tolist() == [0, 1]
    assert stack.nav.tolist() == [[100.0], [200.0]]
    assert stack.before.tolist() == [[0.4, 0.6], [0.3, 0.7]]
    assert stack.target[stack.cash].tolist() == [0.25, 0.5]
    assert stack.positions(None, "x").tolist() == [[False, True], [True, False]]
    assert stack.positions(["ETH", "BTC"], "x").tolist() == [[False, False], [True, False]]


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_stacks_are_their_portfolios(seed: int, count: int) -> None:
    """For any mixture of accounts, in any order of rows, with or without a split by labels or assets."""
    rng = np.random.default_rng(seed)
    tables = accounts(rng, count)
    table = long_table(**tables)
    shuffled = table.iloc[rng.permutation(len(table))].reset_index(drop=True)
    order = shuffled.portfolio_id.drop_duplicates().tolist()
    for options in ({}, {"label_columns": ["group"]}, {"same_assets": True}):
        found, odd = stacks(shuffled, CASH, **options)
        assert odd == []
        assert {name: place for s in found for name, place in zip(s.names, s.places, strict=True)} == {
            name: place for place, name in enumerate(order)
        }
        for stack in found:
            assert all(getattr(stack, name).flags.c_contiguous for name in ARRAYS)
            assert stack.places.tolist() == sorted(stack.places)
            for i, name in enumerate(stack.names):
                rows = shuffled[shuffled.portfolio_id == name].drop(columns="portfolio_id")
                portfolio = Portfolio.from_table(rows, CASH, name=name, universe=table.asset)
                assert_same(stack, i, portfolio)
                assert bits(stack.numbers("fee", "x")[i]) == bits(portfolio.numbers("fee", "x"))
                if options.get("same_assets"):
                    assert (stack.codes == stack.codes[0]).all()
                if "label_columns" in options:
                    assert tuple(stack.labels("group")[i]) == portfolio.labels("group")
                    members = {label: mask[i].tolist() for label, mask in stack.members("group").items()}
                    alone = {label: mask.tolist() for label, mask in portfolio.members("group").items()}
                    assert list(members.items()) == list(alone.items())


def as_kind(values: pd.Series, kind: str) -> pd.Series:
    if kind == "numerals":
        return values.map(lambda x: format(x, "f")).astype(object)
    return values.astype(kind)


@pytest.mark.parametrize("numbers", ["int64", "float32", "Float64", "Int64", "object", "uint8", "category", "numerals"])
@pytest.mark.parametrize("labels", ["object", "str", "string", "category"])
def test_types_of_columns(numbers: str, labels: str) -> None:
    """What a column's type is makes no difference."""
    table = long_table(a=small_table(), b=small_table(quantity=[4.0, 60.0, 100.0, 80.0]))
    table["quantity"] = as_kind(table.quantity.abs(), numbers)
    for column in ("asset", "portfolio_id", "group"):
        table[column] = table[column].astype(labels)
    (stack,), odd = stacks(table, "USD", label_columns=["group"])
    assert odd == []
    assert stack.quantity.tolist() == [[2.0, 50.0, 200.0, 100.0], [4.0, 60.0, 100.0, 80.0]]
    assert stack.names == ("a", "b")
    for i, name in enumerate(stack.names):
        rows = table[table.portfolio_id == name].drop(columns="portfolio_id")
        portfolio = Portfolio.from_table(rows, "USD", name=name)
        assert_same(stack, i, portfolio)
        assert tuple(stack.labels("group")[i]) == portfolio.labels("group") == ("coin", "coin", "debt", None)


@pytest.mark.parametrize("kind", ["int64", "Int64", "object", "category"])
def test_whole_numbers_as_labels(kind: str) -> None:
    """The label 2 is the text "2", as for one portfolio, and comes after "10"."""
    table = long_table(a=small_table(group=[2, 10, 2, 3]), b=small_table(group=[10, 2, 10, 3]))
    table["group"] = table.group.astype(kind)
    (stack,), _ = stacks(table, "USD", label_columns=["group"])
    assert list(stack.members("group")) == ["10", "2", "3"]
    assert stack.labels("group").tolist() == [["2", "10", "2", "3"], ["10", "2", "10", "3"]]


def test_portfolios_of_a_stack_have_the_same_labels() -> None:
    """Rows of a rule are one for each label; a label that only the cash has makes none in a band."""
    groups = {
        "a": ["coin", "coin", "debt", None],
        "b": ["debt", "coin", "coin", None],
        "c": ["coin", "coin", "coin", None],
        "d": ["coin", "coin", "coin", "debt"],
        "e": ["debt", "coin", "coin", "debt"],
        "f": [None, "debt", "coin", None],
    }
    table = long_table(**{name: small_table(group=group) for name, group in groups.items()})
    found, _ = stacks(table, "USD", label_columns=["group"])
    assert sorted(stack.names for stack in found) == [("a", "b", "f"), ("c",), ("d",), ("e",)]
    together, _ = stacks(table, "USD")
    with pytest.raises(NotStackable):
        together[0].members("group")


def test_later_changes_of_the_table_do_not_matter() -> None:
    table = long_table(a=small_table())
    (stack,), _ = stacks(table, "USD")
    table.loc[:, "fee"] = 99.0
    table.loc[0, "quantity"] = 99.0
    assert stack.numbers("fee", "x").tolist() == [[0.001, 0.002, 0.0, 0.0]]
    assert stack.portfolio(0).columns["quantity"].tolist() == [2.0, 50.0, -200.0, 100.0]


# --- what is odd ----------------------------------------------------------------------------------------------


def refused(rows: pd.DataFrame, name: Any = None) -> bool:
    try:
        Portfolio.from_table(rows, "USD", name=name)
    except InputError:
        return True
    return False


@pytest.mark.parametrize("kind", [kind for kind in BAD_TABLES if kind not in ("empty table", "double column")])
def test_bad_tables_are_odd(kind: str) -> None:
    """Whatever is wrong with one portfolio, its neighbours are stacked as if it were not there."""
    make, _, _ = BAD_TABLES[kind]
    good = small_table(quantity=[3.0, 50.0, -100.0, 90.0])
    table = long_table(first=small_table(), bad=make(), last=good)
    (stack,), odd = stacks(table, "USD")
    assert [(one.place, one.name) for one in odd] == [(1, "bad")]
    assert odd[0].rows.tolist() == np.flatnonzero(table.portfolio_id == "bad").tolist()
    assert refused(table.iloc[odd[0].rows].drop(columns="portfolio_id"))
    assert stack.names == ("first", "last")
    assert stack.places.tolist() == [0, 2]
    for i, alone in enumerate((small_table(), good)):
        portfolio = Portfolio.from_table(alone, "USD")
        assert float(stack.nav[i, 0]).hex() == portfolio.nav.hex()
        for name in ARRAYS:
            assert bits(getattr(stack, name)[i]) == bits(getattr(portfolio, name))


def test_a_bad_table_as_a_whole() -> None:
    """A column that is missing or there twice makes every portfolio odd."""
    table = long_table(a=small_table(), b=small_table())
    for bad in (table.drop(columns="price"), pd.concat([table, table[["fee"]]], axis=1)):
        found, odd = stacks(bad, "USD")
        assert found == []
        assert [one.name for one in odd] == ["a", "b"]
    assert stacks(table.iloc[:0], "USD") == ([], [])


@pytest.mark.parametrize(
    ("value", "stacked_too"),
    [
        (Decimal("50"), False),
        (2**53 + 1, False),
        ("50.00000000000000000001", False),
        ("5e1", False),
        ("50", True),
        ("50.0", True),
        (50, True),
        (np.float32(50.0), True),
    ],
)
def test_numbers_that_are_no_plain_floats(value: Any, stacked_too: bool) -> None:
    """What a float cannot hold to the last digit is left to `Portfolio`, which keeps it."""
    columns = small_table()
    cells = columns.quantity.astype(object)
    cells["ETH"] = value
    table = long_table(a=columns.assign(quantity=cells), b=small_table())
    found, odd = stacks(table, "USD")
    assert [one.name for one in odd] == ([] if stacked_too else ["a"])
    assert not refused(columns.assign(quantity=cells))
    if stacked_too:
        assert found[0].portfolio(0).exact_quantity == Portfolio.from_table(columns, "USD").exact_quantity


@pytest.mark.parametrize("name", [None, float("nan"), pd.NA, "", " a", "a\t", 1, True, 1.5, ("a",), ["a"]])
def test_bad_ids_are_odd(name: Any) -> None:
    table = long_table(a=small_table(), b=small_table(), c=small_table())
    ids = table.portfolio_id.astype(object).tolist()
    ids[4:8] = [name] * 4
    table["portfolio_id"] = pd.Series(ids, dtype=object)
    (stack,), (odd,) = stacks(table, "USD")
    assert stack.names == ("a", "c")
    assert stack.places.tolist() == [0, 2]
    assert odd.place == 1
    assert odd.rows.tolist() == [4, 5, 6, 7]
    assert odd.name == (None if blank(name) else name)


def test_ids_that_are_equal_but_not_the_same() -> None:
    """1, True and "1" are three portfolios."""
    table = long_table(a=small_table(), b=small_table(), c=small_table())
    table["portfolio_id"] = pd.Series([1] * 4 + [True] * 4 + ["1"] * 4, dtype=object)
    (stack,), odd = stacks(table, "USD")
    assert stack.names == ("1",)
    assert [repr(one.name) for one in odd] == ["1", "True"]


JUNK = st.one_of(
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([None, pd.NA, "", "1", "0.5", "x", "inf", True, Decimal("0.1"), "BTC", "USD", " ETH", 0.5, 1.0, 1]),
)


@pytest.mark.slow
@given(st.integers(0, 3), st.sampled_from(["asset", "quantity", "price", "target", "group"]), JUNK)
@settings(deadline=None, max_examples=300)
def test_no_stack_takes_what_a_portfolio_refuses(row: int, column: str, junk: Any) -> None:
    """With anything in any cell: stacked with the bits of `Portfolio`, or odd if that refuses it."""
    table = long_table(a=small_table(), b=small_table())
    cells = table[column].astype(object)
    cells[row] = junk
    table[column] = cells
    found, odd = stacks(table, "USD", label_columns=["group"])
    rows = table.iloc[:4].drop(columns="portfolio_id")
    assert "b" in [name for stack in found for name in stack.names]
    if refused(rows):
        assert [one.name for one in odd] == ["a"]
    for stack in found:
        if "a" in stack.names:
            alone = Portfolio.from_table(rows, "USD", name="a", universe=table.asset)
            assert_same(stack, stack.names.index("a"), alone)


# --- rules and costs ------------------------------------------------------------------------------------------

RULES = [case.rule for cases in CASES.values() for case in cases if not isinstance(case.rule, Custom)]
RULES += [LotSize("lot", min_notional=10.0, min_quantity={"COIN": 0.25})]
COSTS: dict[type[Cost], list[Cost]] = {
    ProportionalCost: [ProportionalCost(0.001), ProportionalCost("haircut", dict.fromkeys((*RISKY, "ZINC"), 0.1))],
    ImpactCost: [ImpactCost("beta", "volume"), ImpactCost(0.02, 1e5, 0.7)],
    QuadraticCost: [QuadraticCost(0.1, "volume"), QuadraticCost("margin")],
    HoldingCost: [HoldingCost("haircut", "margin"), HoldingCost(0.01, {"LOAN": 0.05})],
}
RISK = CovarianceRisk(COVARIANCE, assets=RISKY, riskless=["ZINC"])


def treasuries(count: int = 7, *, sided: bool = False) -> pd.DataFrame:
    """Accounts like that of test_every_rule; in some, ZINC (after the cash by label) takes the place of LOAN.

    `sided`: what is held is wanted on the same side, for rules to which that matters.
    """
    rng = np.random.default_rng(0)
    found = {}
    for i in range(count):
        one = TABLE.assign(quantity=TABLE.quantity * rng.uniform(0.7, 1.3, 5), target=rng.permutation(TABLE.target))
        if sided:
            one["target"] = [-0.1 if a == "LOAN" else max(b, 0.0) + 0.05 * (b < 0) for a, b in one.target.items()]
            one.loc["USD", "target"] += 1.0 - one.target.sum()
        one[["threshold", "margin", "haircut", "beta", "volume"]] *= rng.uniform(0.9, 1.0, (5, 5))
        found[f"t{i}"] = one.rename(index={"LOAN": "ZINC"}) if i % 3 == 1 else one
    return long_table(**found)


def pairs(rule: Rule | None = None) -> Iterator[tuple[Stack, int, Portfolio]]:
    """Each stack of the treasuries with each of its portfolios on its own, the risk set for both."""
    table = treasuries(sided=rule is not None)
    found, odd = stacks(table, "USD", label_columns=rule.label_columns() if rule else ())
    assert odd == []
    for stack in found:
        risky = replace(stack, risk=stacked(RISK, stack.universe, stack.codes, stack.cash))
        for i in range(len(stack)):
            rows = table.iloc[stack.rows[i]].drop(columns="portfolio_id")
            portfolio = Portfolio.from_table(rows, "USD", name=stack.names[i], universe=stack.universe)
            yield risky, i, replace(portfolio, risk=risky.risk.take(i))


def assert_same_data(one: Any, many: Any, i: int) -> None:
    """A piece of one portfolio is entry i of that of the stack: every field, bit for bit."""
    assert type(one) is type(many)
    entries = [(field.name, getattr(one, field.name), getattr(many, field.name)) for field in fields(one)]
    for name, mine, all_ in entries:
        if isinstance(mine, tuple):  # the terms of an envelope, the masks of its venues
            for a, b in zip(mine, all_, strict=True):
                if isinstance(a, np.ndarray):
                    assert bits(a) == bits(b[i])
                else:
                    assert_same_data(a, b, i)
            continue
        if mine is None or isinstance(mine, str | bool):
            assert mine == all_
        elif isinstance(mine, np.ndarray | float | int):
            assert bits(mine) == bits(all_[i] if np.ndim(all_) > np.ndim(mine) else all_), name
        else:
            assert_same_data(mine, all_, i)


def test_every_class_is_here() -> None:
    """A new rule or cost serves stacks, or says here that it does not."""
    assert {rule for rule in rule_classes() if not rule.stacks} == {Custom, MinimumPosition, NameLimit, OrderLimit}
    assert {rule for rule in rule_classes() if rule.stacks} == {type(rule) for rule in RULES}
    classes = [found for _, found in inspect.getmembers(costs, inspect.isclass) if issubclass(found, Cost)]
    assert {cost for cost in classes if cost.stacks} == set(COSTS) == {*classes} - {Cost, FixedFee, MinimumCommission}


def test_serving_stacks_is_not_inherited() -> None:
    """A user's subclass may do in `pieces` what only holds for one portfolio."""

    class Mine(Turnover):
        pass

    class Own(ProportionalCost):
        pass

    assert not Mine.stacks
    assert not Own.stacks


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_rules(rule: Rule) -> None:
    """The pieces of a stack are those of its portfolios, and have their values at any point."""
    rng = np.random.default_rng(1)
    weights, trades = rng.normal(size=(2, 7, 5))
    for stack, i, portfolio in pairs(rule):
        many, one = rule.pieces(stack), rule.pieces(portfolio)
        assert len(many) == len(one) > 0
        w, z = weights[: len(stack)], trades[: len(stack)]
        for theirs, mine in zip(many, one, strict=True):
            assert_same_data(mine, theirs, i)
            if isinstance(mine, Row) and isinstance(theirs, Row):
                excess, alone = theirs.of(w, z) - theirs.upper, mine.of(w[i], z[i]) - mine.upper
                assert bits(excess[i]) == bits(alone)
                assert isinstance(mine.of(w[i], z[i]), float)
                per = (theirs.per.of(w, z), mine.per.of(w[i], z[i])) if theirs.per and mine.per else (1.0, 1.0)
                assert bits(theirs.shown(excess, per[0])[i]) == bits(mine.shown(alone, per[1]))
            if isinstance(mine, Envelope) and isinstance(theirs, Envelope):
                assert bits(theirs.excess(w, z)[i]) == bits(mine.excess(w[i], z[i]))
                assert_same_data(mine.support(w[i], z[i]), theirs.support(w, z), i)
            if isinstance(mine, Cone) and isinstance(theirs, Cone):
                assert bits(theirs.of(w)[i]) == bits(mine.of(w[i]))


def test_shown_over_nothing() -> None:
    """A ratio without a denominator is infinite, on the side on which the rule is."""
    for at_least in (False, True):
        row = Row(label="x", upper=0.0, at_least=at_least, limit=1.5)
        excess, per = np.array([0.0, 0.2, -0.2, 0.2]), np.array([0.0, 0.0, 0.0, 0.1])
        alone = [row.shown(float(e), float(p)) for e, p in zip(excess, per, strict=True)]
        assert row.shown(excess, per).tolist() == alone


@pytest.mark.parametrize("cost", [cost for given in COSTS.values() for cost in given], ids=repr)
def test_costs(cost: Cost) -> None:
    w = np.random.default_rng(1).normal(size=(7, 5))
    for stack, i, portfolio in pairs():
        many, one = total([cost, ProportionalCost(0.002)], stack), total([cost, ProportionalCost(0.002)], portfolio)
        assert_same_data(one, many, i)
        assert bits(many.each(w[: len(stack)])[i]) == bits(one.each(w[i]))
        assert bits(many.carry(w[: len(stack)])[i]) == bits(one.carry(w[i]))


def test_custom_rules_are_not_stacked() -> None:
    stack, _, _ = next(pairs())
    with pytest.raises(NotStackable) as caught:
        Custom(lambda t: t.weights <= 1).pieces(stack)
    assert caught.value.portfolios is None


def changed(column: str, asset: str, value: Any, name: str = "b") -> pd.DataFrame:
    table = long_table(**dict.fromkeys("abc", small_table(volume=7.0)))
    cells = table[column].astype(object)
    cells[(table.portfolio_id == name) & (table.asset == asset)] = value
    return table.assign(**{column: cells})


@pytest.mark.parametrize(
    ("apply", "table"),
    [
        (lambda a: a.numbers("fee", "x"), changed("fee", "ETH", None)),
        (lambda a: a.numbers("fee", "x"), changed("fee", "ETH", "dear")),
        (lambda a: a.numbers("fee", "x"), changed("fee", "ETH", True)),
        (lambda a: a.numbers("fee", "x", missing=0.0), changed("fee", "ETH", -np.inf)),
        (lambda a: ProportionalCost("fee").terms(a), changed("fee", "ETH", -0.1)),
        (lambda a: total([ProportionalCost("fee"), ProportionalCost(0.5)], a), changed("fee", "BTC", 0.5)),
        (lambda a: QuadraticCost(0.1, "volume").terms(a), changed("volume", "ETH", 0.0)),
        (lambda a: WeightBounds("fee", 0.1).pieces(a), changed("fee", "ETH", 0.2)),
        (lambda a: LotSize("fee").pieces(a), changed("fee", "BTC", -1.0)),
        (lambda a: a.numbers(dict.fromkeys(("BTC", "ETH", "LOAN", "USD"), 1.0), "x"), changed("asset", "ETH", "SOL")),
        (lambda a: a.numbers({"SOL": "x"}, "x", missing=0.0), changed("asset", "ETH", "SOL")),
    ],
)
def test_errors_cost_their_own_portfolio(apply: Callable[[Any], Any], table: pd.DataFrame) -> None:
    """The stack says which portfolios raise an InputError; without them it works."""
    (stack,), odd = stacks(table, "USD")
    assert odd == []
    with pytest.raises(NotStackable) as caught:
        apply(stack)
    assert caught.value.portfolios is not None
    assert caught.value.portfolios.tolist() == [False, True, False]
    with pytest.raises(InputError):
        apply(stack.portfolio(1))
    apply(stack.take(~caught.value.portfolios))


@pytest.mark.parametrize(
    "apply",
    [
        lambda a: a.numbers("fees", "x"),
        lambda a: a.numbers("group", "x"),
        lambda a: a.numbers("x", "x"),
        lambda a: a.numbers([1.0], "x"),
        lambda a: a.numbers({"XRP": 1.0}, "x"),
        lambda a: a.positions(["XRP"], "x"),
        lambda a: a.positions("BTC", "x"),
        lambda a: a.members("sector"),
        lambda a: a.risk_factors,
        lambda a: a.risk_specific,
    ],
)
def test_errors_of_all(apply: Callable[[Any], Any]) -> None:
    """What no portfolio can do, no stack can; a portfolio then says why."""
    (stack,), _ = stacks(long_table(a=small_table(), b=small_table()), "USD", label_columns=["group", "sector"])
    with pytest.raises((NotStackable, InputError)):
        apply(stack)
    with pytest.raises(InputError):
        apply(stack.portfolio(0))


def test_numbers() -> None:
    """One number for all, by asset, or a column; the cash and blanks as the rule wants them."""
    (stack,), _ = stacks(changed("fee", "ETH", None), "USD")
    for given_, options in (
        (2, {}),
        (2, {"cash": 0.0}),
        ({"BTC": 1, "USD": 3}, {"missing": -1.0}),
        ({"BTC": 1}, {"missing": -1.0, "cash": 7.0}),
        ({"BTC": 1, "ETH": 2, "LOAN": 3e99}, {"cash": 7.0}),
        ("fee", {"missing": 0.5, "blank": True}),
        ("fee", {"missing": 0.5, "blank": stack.assets[0] == "ETH"}),
        ("fee", {"where": stack.assets[0] != "ETH"}),
        ("fee", {"missing": np.inf, "blank": True, "cash": 9.0}),
    ):
        if isinstance(options.get("where"), np.ndarray):
            options = {"where": np.broadcast_to(options["where"], stack.shape)}
        many = stack.numbers(given_, "x", **options)
        for i in range(3):
            alone = options | ({"where": options["where"][i]} if "where" in options else {})
            assert bits(many[i]) == bits(stack.portfolio(i).numbers(given_, "x", **alone))
    for options in ({}, {"missing": 0.5}):
        with pytest.raises(NotStackable):
            stack.numbers("fee", "x", **options)
    (stack,), _ = stacks(changed("fee", "USD", "none"), "USD")  # the cash's cell is not looked at
    assert stack.numbers("fee", "x", cash=0.0)[1].tolist() == [0.001, 0.002, 0.0, 0.0]


@given(st.integers(1, 200), st.integers(1, 30), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_sums_do_not_depend_on_the_number_of_rows(n: int, count: int, seed: int) -> None:
    """Σ over assets, with a coefficient for all rows or each its own, has the bits of a single row's."""
    one, other = np.random.default_rng(seed).normal(size=(2, count, n))
    for coefficient in (one, one[0]):
        many = dot(coefficient, other)
        for i in range(count):
            assert float(many[i]).hex() == dot(np.broadcast_to(coefficient, other.shape)[i], other[i]).hex()
    assert dot(one, other) == pytest.approx(np.einsum("ij,ij->i", one, other), rel=1e-12, abs=1e-13 * n)


# --- neighbours -----------------------------------------------------------------------------------------------


def everything(stack: Stack, risk: Risk) -> list[Any]:
    """All arrays that a stack leads to, with the portfolios along the first axis."""
    assert stack.universe
    found = stacked(risk, stack.universe, stack.codes, stack.cash)
    x = stack.before - stack.target
    factors = np.broadcast_to(found.factors, (len(stack), *found.factors.shape[-2:]))
    specific = np.broadcast_to(found.specific, stack.shape)
    terms = total([ProportionalCost("fee"), ImpactCost("volatility", "volume")], stack)
    return [
        *(getattr(stack, name) for name in (*ARRAYS, "nav", "codes")),
        *(factors, specific, found.variance(x), found.gradient(x), found.exposure(x)),
        *(terms.buy, terms.impact, terms.each(x), stack.numbers("beta", "x")),
    ]


@pytest.mark.parametrize("kind", ["factor", "dense", "none"])
def test_neighbours_do_not_matter(kind: str) -> None:
    """Not one bit of a portfolio depends on which others are in its stack, or on how it came there."""
    rng = np.random.default_rng(5)
    tables = accounts(rng, 40, assets=9)
    twins = {f"twin {i}": next(iter(tables.values())) for i in range(3)}  # of these the factors are shared
    table = long_table(**tables, **twins)
    labels = [f"{letter}{i}" for letter in "AZ" for i in range(12)]
    L = rng.normal(size=(24 if kind == "dense" else 4, 24))
    risk: Risk = SquaredDistance() if kind == "none" else FactorRisk(L, rng.uniform(0.01, 0.1, 24), assets=labels)
    (whole,), _ = stacks(table, CASH)
    wanted = everything(whole, risk)
    for chosen in (slice(3, 4), slice(10, 25), np.array([40, 0, 41]), np.array([7, 7, 3]), rng.random(43) < 0.5):
        part = whole.take(chosen)
        again, _ = stacks(table[table.portfolio_id.isin(part.names)].reset_index(drop=True), CASH, universe=labels)
        assert part.names == tuple(np.array(whole.names)[chosen])
        for mine, all_ in zip(everything(part, risk), wanted, strict=True):
            assert mine.tobytes() == np.ascontiguousarray(all_[chosen]).tobytes()
        where = [whole.names.index(name) for name in again[0].names]
        for number, (mine, all_) in enumerate(zip(everything(again[0], risk), wanted, strict=True)):
            assert number == 5 or mine.tobytes() == np.ascontiguousarray(all_[where]).tobytes()


def test_taking_a_stack_with_risk() -> None:
    """What is sliced, and what is shared."""
    (whole,), _ = stacks(long_table(**accounts(np.random.default_rng(3), 6, assets=4)), CASH)
    own = FactoredRisk(np.arange(6 * 2 * 5.0).reshape(6, 2, 5), np.arange(30.0).reshape(6, 5))
    part = replace(whole, risk=own).take(slice(2, 4))
    assert part.risk_factors.tolist() == own.factors[2:4].tolist()
    assert part.risk_specific.tolist() == own.specific[2:4].tolist()
    shared = FactoredRisk(np.ones((2, 5)), np.ones(5))
    assert replace(whole, risk=shared).take(slice(2, 4)).risk_factors.shape == (2, 5)
    assert replace(whole, risk=shared).portfolio(1).risk_factors.shape == (2, 5)
    assert replace(whole, risk=own).portfolio(1).risk_specific.tolist() == own.specific[1].tolist()


# --- risk -----------------------------------------------------------------------------------------------------

LABELS = [f"C{i:02d}" for i in range(30)]


def usd(universe: list[str], codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(len(codes)), np.argmax(codes == universe.index("USD"), axis=1)


def models() -> dict[str, Risk]:
    rng = np.random.default_rng(2)
    L, s = rng.normal(size=(5, 30)), rng.uniform(0.01, 0.1, 30)
    s[::7] = 0.0
    X = rng.normal(size=(40, 30)) * rng.uniform(0.1, 1.0, 30)
    cov = X.T @ X / 40
    debts = {"D0": "C03", "D1": "C03", "D2": "C11", "D3": "C00", "D4": "R0"}
    return {
        "distance": SquaredDistance(),
        "factors": FactorRisk(L, s, assets=LABELS),
        "riskless": FactorRisk(L, s, assets=LABELS, riskless=["C05", "R0", "R1"]),
        "alias": FactorRisk(L, s, assets=LABELS, riskless=["R0"], alias=debts),
        "dense": CovarianceRisk(cov, assets=LABELS),
        "dense with aliases": CovarianceRisk(cov, assets=LABELS, riskless=["R0"], alias=debts),
        "diagonal": CovarianceRisk(np.diag(s), assets=LABELS, riskless=LABELS[::7]),
        "cash in the model": FactorRisk(L, s, assets=["USD", *LABELS[1:]]),
    }


@pytest.mark.parametrize("n", [1, 4, 12, 28])
@pytest.mark.parametrize("kind", models())
def test_stacked_risk_is_the_aligned_risk(kind: str, n: int) -> None:
    """Σ of each portfolio is that of its assets alone, for the same assets or others; the first two share."""
    risk, rng = models()[kind], np.random.default_rng(n)
    universe = sorted({*LABELS, "USD", *("D0", "D1", "D2", "D3", "D4", "R0", "R1")})
    held = [label for label in universe if label in getattr(risk, "_columns", universe) and label != "USD"]
    rows = [sorted([*rng.choice(held, n - 1, replace=False), "USD"]) for _ in range(9)]
    for chosen in (rows, rows[:1] * 3):
        codes = np.array([[universe.index(label) for label in row] for row in chosen])
        found = stacked(risk, universe, codes, usd(universe, codes))
        assert found.factors.shape[-2] <= n
        assert found.factors.ndim == 2 or chosen is rows
        for i, row in enumerate(chosen):
            one, alone = found.take(i), risk.aligned(row, "USD")
            sigma = np.sqrt(np.diag(alone.covariance()))
            assert (np.abs(one.covariance() - alone.covariance()) <= 4e-15 * np.outer(sigma, sigma)).all()
            assert one.specific.tolist() == alone.specific.tolist()
        assert found.is_diagonal or kind not in ("distance", "diagonal")


def test_a_block_of_factors_is_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large models are reduced block by block, which no bit depends on."""
    risk, rng = models()["dense with aliases"], np.random.default_rng(0)
    universe = sorted([*LABELS, "D0", "D1", "D2", "D3", "D4", "R0", "USD"])
    others = np.argsort(rng.random((50, 36)), axis=1)[:, :7]
    codes = np.sort(np.hstack([others, np.full((50, 1), universe.index("USD"))]), axis=1)
    whole = stacked(risk, universe, codes, usd(universe, codes))
    monkeypatch.setattr("equipoise.optimizer.risk.factored._BLOCK", 600)
    blocks = stacked(risk, universe, codes, usd(universe, codes))
    assert whole.factors.tobytes() == blocks.factors.tobytes()
    assert whole.specific.tobytes() == blocks.specific.tobytes()


def test_assets_that_the_model_does_not_know() -> None:
    risk = models()["factors"]
    codes = np.array([[0, 2], [2, 1], [0, 2]])
    with pytest.raises(NotStackable) as caught:
        stacked(risk, ["C01", "NEW", "USD"], codes, (np.arange(3), np.array([1, 0, 1])))
    assert caught.value.portfolios is not None
    assert caught.value.portfolios.tolist() == [False, True, False]
    with pytest.raises(InputError):
        risk.aligned(["C01", "NEW"], "USD")


class Mine:
    """A user's own model."""

    def aligned(self, assets: Any, cash: str) -> FactoredRisk:
        return FactoredRisk(np.zeros((0, len(assets))), np.array([len(a) / 10 for a in assets]))


class Stressed(CovarianceRisk):
    """A user's own stress of ours."""

    def aligned(self, assets: Any, cash: str) -> FactoredRisk:
        calm = super().aligned(assets, cash)
        return FactoredRisk(2.0 * calm.factors, 4.0 * calm.specific)


@pytest.mark.parametrize("risk", [Mine(), Stressed(np.diag([0.1, 0.2]), assets=["A", "BB"])])
def test_a_model_that_only_aligns(risk: Risk) -> None:
    """It is asked by its own method, for stacks of the same assets."""
    universe, last = ["A", "BB", "USD"], (np.arange(2), np.array([1, 1]))
    found = stacked(risk, universe, np.array([[0, 2], [0, 2]]), last)
    assert found.covariance().tolist() == risk.aligned(["A", "USD"], "USD").covariance().tolist()
    with pytest.raises(NotStackable):
        stacked(risk, universe, np.array([[0, 2], [1, 2]]), last)


def test_variance_and_gradient_of_a_stack() -> None:
    """xᵀΣx and Σx by the matrices themselves."""
    rng = np.random.default_rng(4)
    for factors, specific in (
        (rng.normal(size=(6, 3, 5)), rng.uniform(size=(6, 5))),
        (rng.normal(size=(3, 5)), rng.uniform(size=(6, 5))),
        (rng.normal(size=(6, 3, 5)), rng.uniform(size=5)),
        (np.zeros((0, 5)), rng.uniform(size=(6, 5))),
    ):
        risk, x = FactoredRisk(factors, specific), rng.normal(size=(6, 5))
        sigma = np.broadcast_to(risk.covariance(), (6, 5, 5))
        np.testing.assert_allclose(risk.variance(x), np.einsum("bi,bij,bj->b", x, sigma, x), rtol=1e-13)
        np.testing.assert_allclose(risk.gradient(x), np.einsum("bij,bj->bi", sigma, x), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(sigma[2], risk.take(2).covariance(), rtol=1e-14, atol=1e-16)
    for bad in ((np.ones((6, 3, 5)), np.ones((5, 5))), (np.ones((6, 3, 5)), np.ones((6, 4))), (np.ones(5), np.ones(5))):
        with pytest.raises(InputError, match="factors must be"):
            FactoredRisk(*bad)
