"""Tables in: what a portfolio becomes, and what every bad table is told."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Instance, instances

from equipoise.constraints import (
    DriftBand,
    GroupLimit,
    InputError,
    LongOnly,
    NoTrade,
    Rule,
    WeightBounds,
)
from equipoise.constraints.numbers import exact
from equipoise.optimizer.portfolio.portfolio import Portfolio, read_table
from equipoise.optimizer.problem.costs import Cost, HoldingCost, ImpactCost, ProportionalCost, QuadraticCost
from equipoise.optimizer.problem.policy import Policy

LABELS = ["BTC", "ETH", "LOAN", "USD"]


def table(**changed: Any) -> pd.DataFrame:
    """An account of 1000: BTC 600, ETH 500, a loan of 200, and 100 of cash."""
    columns = {
        "quantity": [2.0, 50.0, -200.0, 100.0],
        "price": [300.0, 10.0, 1.0, 1.0],
        "target": [0.5, 0.5, -0.1, 0.1],
        "fee": [0.001, 0.002, 0.0, 0.0],
        "group": ["coin", "coin", "debt", None],
    }
    return pd.DataFrame(columns | changed, index=pd.Index(LABELS, name="asset"))


def cell(column: str, asset: str, value: Any) -> pd.DataFrame:
    """The table with one cell replaced, whatever its type."""
    values = table()[column].astype(object)
    values[asset] = value
    return table().assign(**{column: values})


def relabelled(*labels: Any) -> pd.DataFrame:
    return table().set_axis(pd.Index(labels, dtype=object), axis="index")


def test_a_good_table() -> None:
    """NAV counts the cash and the debt; the order is that of the labels; `order` leads back to the table."""
    shuffled = table().loc[["USD", "ETH", "LOAN", "BTC"]]
    portfolio = Portfolio.from_table(shuffled, "USD", name="main")
    assert portfolio.name == "main"
    assert portfolio.assets == ("BTC", "ETH", "LOAN", "USD")
    assert portfolio.cash == 3
    assert portfolio.nav == 1000.0
    assert portfolio.before.tolist() == [0.6, 0.5, -0.2, 0.1]
    assert portfolio.target.tolist() == [0.5, 0.5, -0.1, 0.1]
    assert shuffled.index[portfolio.order].tolist() == list(portfolio.assets)
    assert portfolio.labels("group") == ("coin", "coin", "debt", None)
    assert portfolio.numbers("fee", "buy").tolist() == [0.001, 0.002, 0.0, 0.0]


def test_a_column_asset_serves_as_the_index() -> None:
    one, other = (Portfolio.from_table(t, "USD") for t in (table(), table().reset_index()))
    assert one.assets == other.assets
    assert one.quantity.tobytes() == other.quantity.tobytes()


def test_later_changes_of_the_table_do_not_matter() -> None:
    mine = table()
    portfolio = Portfolio.from_table(mine, "USD")
    mine.loc["BTC", ["quantity", "price"]] = 99.0
    mine.loc["BTC", "group"] = "changed"
    assert portfolio.before.tolist() == [0.6, 0.5, -0.2, 0.1]
    assert portfolio.labels("group")[0] == "coin"
    assert portfolio.exact_quantity[0] == 2


def test_targets_may_miss_one_by_rounding_only() -> None:
    for miss, good in ((9e-10, True), (-9e-10, True), (1.2e-9, False), (-1.2e-9, False)):
        shifted = table(target=[0.5 + miss, 0.5, -0.1, 0.1])
        if good:
            Portfolio.from_table(shifted, "USD")
        else:
            with pytest.raises(InputError, match="targets add up to"):
                Portfolio.from_table(shifted, "USD")


BAD_TABLES: dict[str, tuple[Callable[[], pd.DataFrame], dict[str, Any], str]] = {
    # labels
    "no label": (lambda: relabelled("BTC", None, "LOAN", "USD"), {"column": "asset"}, "row 2 has no asset label"),
    "NaN label": (lambda: relabelled("BTC", "ETH", np.nan, "USD"), {"column": "asset"}, "row 3 has no asset label"),
    "empty label": (lambda: relabelled("", "ETH", "LOAN", "USD"), {"column": "asset"}, "row 1 has no asset label"),
    "NA label": (
        lambda: table().set_axis(pd.Index(["BTC", pd.NA, "LOAN", "USD"], dtype=object), axis="index"),
        {"column": "asset"},
        "row 2 has no asset label",
    ),
    "integer label": (lambda: relabelled(1, "ETH", "LOAN", "USD"), {"asset": 1, "column": "asset"}, "must be text"),
    "boolean label": (lambda: relabelled("BTC", True, "LOAN", "USD"), {"asset": True}, "must be text"),
    "number label": (lambda: relabelled("BTC", "ETH", 1.5, "USD"), {"asset": 1.5}, "must be text"),
    "tuple label": (lambda: relabelled("BTC", ("A", "B"), "LOAN", "USD"), {"asset": ("A", "B")}, "must be text"),
    "double label": (lambda: relabelled("BTC", "BTC", "LOAN", "USD"), {"asset": "BTC"}, "stands in the table twice"),
    "Unicode twins": (
        lambda: relabelled("\u00c5", "A\u030a", "LOAN", "USD"),
        {"asset": "A\u030a"},
        "as '\u00c5' too, in another Unicode form",
    ),
    "Unicode singleton": (
        lambda: relabelled("\u212b", "\u00c5", "LOAN", "USD"),
        {"asset": "\u00c5"},
        "in another Unicode form",
    ),
    "space after": (lambda: relabelled("BTC ", "ETH", "LOAN", "USD"), {"asset": "BTC "}, "white space"),
    "tab before": (lambda: relabelled("BTC", "\tETH", "LOAN", "USD"), {"asset": "\tETH"}, "white space"),
    "no-break space": (lambda: relabelled("BTC", "ETH\u00a0", "LOAN", "USD"), {"asset": "ETH\u00a0"}, "white space"),
    "only space": (lambda: relabelled("BTC", " ", "LOAN", "USD"), {"asset": " "}, "white space"),
    "no cash": (lambda: table().drop(index="USD"), {"asset": "USD"}, "settlement cash has no row"),
    "cash in other letters": (
        lambda: relabelled("BTC", "ETH", "LOAN", "usd"),
        {"asset": "USD"},
        "settlement cash has no row",
    ),
    "empty table": (lambda: table().iloc[:0], {"asset": "USD"}, "settlement cash has no row"),
    # columns
    "no price": (lambda: table().drop(columns="price"), {"column": "price"}, "no such column; it has quantity, tar"),
    "no quantity": (lambda: table().drop(columns="quantity"), {"column": "quantity"}, "no such column"),
    "no target": (lambda: table().drop(columns="target"), {"column": "target"}, "no such column"),
    "double column": (
        lambda: pd.concat([table(), table()[["fee"]]], axis=1),
        {"column": "fee"},
        "has this column twice",
    ),
    # cells
    "blank price": (lambda: cell("price", "ETH", None), {"asset": "ETH", "column": "price"}, "blank"),
    "NaN price": (lambda: cell("price", "ETH", np.nan), {"asset": "ETH", "column": "price"}, "blank"),
    "NA price": (lambda: cell("price", "ETH", pd.NA), {"asset": "ETH", "column": "price"}, "blank"),
    "NA in a nullable column": (
        lambda: table(price=pd.array([300, None, 1, 1], dtype="Float64")),
        {"asset": "ETH", "column": "price"},
        "blank",
    ),
    "empty text": (lambda: cell("quantity", "ETH", ""), {"asset": "ETH", "column": "quantity"}, "blank"),
    "missing target": (lambda: cell("target", "BTC", None), {"asset": "BTC", "column": "target"}, "blank"),
    "infinite": (
        lambda: cell("quantity", "BTC", np.inf),
        {"asset": "BTC", "column": "quantity", "value": np.inf},
        "finite",
    ),
    "minus infinity": (lambda: cell("target", "BTC", -np.inf), {"asset": "BTC", "column": "target"}, "finite"),
    "infinity as text": (lambda: cell("price", "BTC", "inf"), {"asset": "BTC", "value": "inf"}, "finite"),
    "text": (
        lambda: cell("price", "BTC", "dear"),
        {"asset": "BTC", "column": "price", "value": "dear"},
        "must be a number",
    ),
    "NA as text": (lambda: cell("price", "BTC", "NA"), {"asset": "BTC", "value": "NA"}, "must be a number"),
    "nan as text": (lambda: cell("price", "BTC", "nan"), {"asset": "BTC", "value": "nan"}, "must be a number"),
    "1,000": (lambda: cell("price", "BTC", "1,000"), {"asset": "BTC", "value": "1,000"}, "must be a number"),
    "boolean": (lambda: cell("quantity", "BTC", True), {"asset": "BTC", "value": True}, "must be a number"),
    "numpy boolean": (lambda: cell("quantity", "BTC", np.True_), {"asset": "BTC"}, "must be a number"),
    "complex": (lambda: cell("quantity", "BTC", 1j), {"asset": "BTC", "value": 1j}, "must be a number"),
    "list": (lambda: cell("quantity", "BTC", None).assign(quantity=[[1], 1, 1, 1]), {"asset": "BTC"}, "number"),
    "date": (lambda: cell("price", "BTC", pd.Timestamp("2024-01-01")), {"asset": "BTC"}, "must be a number"),
    "not a date": (lambda: cell("price", "BTC", pd.NaT), {"asset": "BTC", "column": "price"}, "blank"),
    "too many digits": (lambda: cell("quantity", "BTC", 10**400), {"asset": "BTC", "column": "quantity"}, "must be"),
    # figures
    "price of zero": (
        lambda: cell("price", "ETH", 0.0),
        {"asset": "ETH", "column": "price", "value": 0.0},
        "above zero",
    ),
    "negative price": (
        lambda: table(price=[300.0, -1.0, -2.0, 1.0]),
        {"asset": "ETH", "column": "price", "value": -1.0},
        "above zero",
    ),
    "cash not at 1": (
        lambda: cell("price", "USD", 0.9999),
        {"asset": "USD", "column": "price", "value": 0.9999},
        "its price must be 1",
    ),
    "targets below 1": (
        lambda: cell("target", "BTC", 0.4),
        {"column": "target"},
        r"targets add up to 0\.9, not 1",
    ),
    "targets above 1": (lambda: cell("target", "LOAN", 0.1), {"column": "target"}, r"add up to 1\.2, not 1"),
    "NAV of zero": (lambda: cell("quantity", "LOAN", -1200.0), {"column": "quantity"}, "net asset value is 0"),
    "NAV below zero": (lambda: cell("quantity", "LOAN", -1500.0), {"column": "quantity"}, "net asset value is -300"),
    "NAV too large": (lambda: cell("quantity", "BTC", 1e99), {"asset": "BTC", "column": "quantity"}, "too large"),
    "beyond floats": (lambda: cell("quantity", "BTC", 1e308), {"asset": "BTC", "column": "quantity"}, "at most 1e"),
    "subnormal": (lambda: cell("price", "BTC", 1e-320), {"asset": "BTC", "column": "price"}, "nearer to 0"),
    "far below floats": (lambda: cell("quantity", "BTC", "1e-999999999"), {"asset": "BTC"}, "nearer to 0"),
    "with underscores": (lambda: cell("quantity", "BTC", "7_500_000e18"), {"value": "7_500_000e18"}, "plain digits"),
    "full-width digits": (lambda: cell("price", "BTC", "３００"), {"asset": "BTC"}, "plain digits"),
    "bytes": (lambda: cell("price", "BTC", b"300"), {"asset": "BTC", "value": b"300"}, "plain digits"),
    "an endless text": (lambda: cell("price", "BTC", "0." + "3" * 5000), {"asset": "BTC"}, "plain digits"),
    "a length of time": (lambda: cell("price", "BTC", np.timedelta64(5, "D")), {"asset": "BTC"}, "plain digits"),
}


@pytest.mark.parametrize(("make", "where", "match"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_bad_tables(make: Callable[[], pd.DataFrame], where: dict[str, Any], match: str) -> None:
    """Each says what is wrong, and where; with the portfolio's name if it has one."""
    with pytest.raises(InputError, match=match) as caught:
        Portfolio.from_table(make(), "USD")
    assert {name: getattr(caught.value, name) for name in where} == where
    assert caught.value.portfolio is None
    with pytest.raises(InputError, match=match) as named:
        Portfolio.from_table(make(), "USD", name="0007")
    assert named.value.portfolio == "0007"
    assert {name: getattr(named.value, name) for name in where} == where
    assert str(named.value).startswith("portfolio '0007', ")
    for name, value in where.items():
        assert f"{name} {value!r}" in str(named.value)


def test_the_text_of_an_error() -> None:
    """Where it stands, what was found there, what to do about it."""
    with pytest.raises(InputError) as caught:
        Portfolio.from_table(cell("price", "ETH", -1.0), "USD", name="0007")
    assert str(caught.value) == (
        "portfolio '0007', asset 'ETH', column 'price', value -1.0: "
        "a price must be above zero; correct it or leave the asset out"
    )


# --- what a rule or a cost asks of the table ------------------------------------------------------------------

BAD_RULES: dict[str, tuple[Rule, dict[str, Any], str]] = {
    "unknown column": (
        WeightBounds(upper="cap"),
        {"column": "cap"},
        "upper names a column that the table does not have",
    ),
    "text column": (WeightBounds(upper="group"), {"asset": "BTC", "column": "group", "value": "coin"}, "number"),
    "no label column": (GroupLimit("sector", upper=1.0), {"column": "sector"}, "no such label column; it has quantity"),
    "unknown asset": (NoTrade(["BTC", "XRP"]), {"asset": "XRP", "column": "assets"}, "neither the table nor"),
    "unknown exception": (LongOnly(except_=["DEBT"]), {"asset": "DEBT", "column": "except_"}, "neither the table nor"),
    "unknown key": (DriftBand(absolute={"XRP": 0.1}), {"asset": "XRP", "column": "absolute"}, "neither the table nor"),
    "one text": (NoTrade("BTC"), {"column": "assets", "value": "BTC"}, "a list of assets"),
    "NaN by asset": (WeightBounds(upper={"ETH": np.nan}), {"asset": "ETH", "column": "upper"}, "must be a number"),
    "text for all": (WeightBounds(upper=[0.1]), {"column": "upper"}, "must be a number"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("rule", "where", "match"), BAD_RULES.values(), ids=BAD_RULES.keys())
def test_rules_that_do_not_fit_the_table(rule: Rule, where: dict[str, Any], match: str) -> None:
    portfolio = Portfolio.from_table(table(), "USD", name="0007")
    with pytest.raises(InputError, match=match) as caught:
        Policy(constraints=(rule,)).problem(portfolio)
    assert caught.value.portfolio == "0007"
    assert {name: getattr(caught.value, name) for name in where} == where


def test_a_mapping_needs_every_asset() -> None:
    """A fee is given for each asset but the cash, or the error names the first one without."""
    portfolio = Portfolio.from_table(table(), "USD")
    with pytest.raises(InputError, match="buy has no entry for this asset") as caught:
        Policy(costs=(ProportionalCost({"BTC": 0.001, "LOAN": 0.0}),)).problem(portfolio)
    assert (caught.value.asset, caught.value.column) == ("ETH", "buy")
    with pytest.raises(InputError, match="blank") as caught:
        Policy(costs=(ProportionalCost("fee"),)).problem(Portfolio.from_table(cell("fee", "ETH", None), "USD"))
    assert (caught.value.asset, caught.value.column) == ("ETH", "fee")
    Policy(costs=(ProportionalCost("fee"),)).problem(Portfolio.from_table(cell("fee", "USD", "none"), "USD"))


@pytest.mark.parametrize(
    ("cost", "column"),
    [
        (ProportionalCost(0.0, -0.1), "sell"),
        (ProportionalCost(0.0, 1.0), "sell"),
        (QuadraticCost(-0.1), "rate"),
        (QuadraticCost(0.1, 0.0), "volume"),
        (ImpactCost(0.02, -1.0), "volume"),
        (HoldingCost(-0.02, 0.01), "long + short"),
    ],
)
def test_bad_costs(cost: Cost, column: str) -> None:
    """A rate outside its range is refused with the first asset that has it."""
    with pytest.raises(InputError) as caught:
        Policy(costs=(cost,)).problem(Portfolio.from_table(table(), "USD"))
    assert (caught.value.asset, caught.value.column) == ("BTC", column)


def test_numbers() -> None:
    """One number for all, by asset, or a column; the cash, assets left out and blanks as the rule wants them."""
    portfolio = Portfolio.from_table(cell("fee", "ETH", None), "USD")
    assert portfolio.numbers(2, "x").tolist() == [2.0] * 4
    assert portfolio.numbers(2, "x", cash=0.0).tolist() == [2.0, 2.0, 2.0, 0.0]
    assert portfolio.numbers({"BTC": 1, "USD": 3}, "x", missing=-1.0).tolist() == [1.0, -1.0, -1.0, 3.0]
    assert portfolio.numbers({"BTC": 1}, "x", missing=-1.0, cash=7.0).tolist() == [1.0, -1.0, -1.0, 7.0]
    assert portfolio.numbers("fee", "x", missing=0.5, blank=True).tolist() == [0.001, 0.5, 0.0, 0.0]
    assert portfolio.numbers("fee", "x", missing=0.5, blank=True, cash=9.0).tolist() == [0.001, 0.5, 0.0, 9.0]
    eth = np.array([False, True, False, False])
    assert portfolio.numbers("fee", "x", missing=0.5, blank=eth).tolist() == [0.001, 0.5, 0.0, 0.0]
    assert portfolio.numbers("fee", "x", missing=0.5, where=~eth).tolist() == [0.001, 0.5, 0.0, 0.0]
    for how in ({"missing": 0.5}, {"missing": 0.5, "blank": ~eth}, {"where": eth}):
        with pytest.raises(InputError, match="blank"):
            portfolio.numbers("fee", "x", **how)


def test_rules_may_name_assets_of_the_universe() -> None:
    """One policy serves a batch: an asset that only other accounts hold is no slip of the pen."""
    portfolio = Portfolio.from_table(table(), "USD", universe=["SOL"])
    rules = (NoTrade(["SOL", "BTC"]), WeightBounds(upper={"SOL": 0.1, "ETH": 0.4}))
    problem = Policy(constraints=rules).problem(portfolio)
    assert problem.lower.tolist()[0] == problem.upper.tolist()[0] == 0.6
    assert problem.upper.tolist()[1] == 0.4


def test_blank_labels() -> None:
    """However a blank is written, it is no label."""
    for blank in (None, np.nan, pd.NA, ""):
        assert Portfolio.from_table(cell("group", "ETH", blank), "USD").labels("group")[1] is None


# --- exact numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0.1, Fraction(1, 10)),
        (1e-18, Fraction(1, 10**18)),
        (np.float64(2460.68), Fraction(246068, 100)),
        (Decimal("0.123456789012345678"), Fraction(123456789012345678, 10**18)),
        ("37002.4", Fraction(370024, 10)),
        (2**53 + 1, Fraction(2**53 + 1)),
    ],
)
def test_exact(value: Any, number: Fraction) -> None:
    """The decimal number that a person sees, not the binary one behind it."""
    assert exact(value) == number


def test_the_exact_numbers_of_a_table() -> None:
    quantities = [Decimal("2.000000000000000001"), 50, "-200.1", 100.3]
    portfolio = Portfolio.from_table(table(quantity=pd.Series(quantities, LABELS, dtype=object)), "USD")
    assert portfolio.exact_quantity == (
        2 + Fraction(1, 10**18),
        Fraction(50),
        Fraction(-2001, 10),
        Fraction(1003, 10),
    )
    assert portfolio.exact_price == (300, 10, 1, 1)


# --- CSV files ------------------------------------------------------------------------------------------------


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_labels_of_a_csv_file_stay_text(tmp_path: Path) -> None:
    """NA is an asset, so are TRUE, 001, nan, null, None, 1e5 and inf; only an empty cell is missing."""
    labels = ["NA", "TRUE", "001", "nan", "null", "None", "1e5", "inf", "N/A", "-", "2024-01-01", "USD"]
    rows = "".join(f"{label},1,1,{target}\n" for label, target in zip(labels, [0] * 11 + [1], strict=True))
    found = read_table(written(tmp_path / "t.csv", "asset,quantity,price,target\n" + rows))
    assert found.index.tolist() == labels
    portfolio = Portfolio.from_table(found, "USD")
    assert portfolio.assets == tuple(sorted(labels))
    assert portfolio.nav == 12.0


@pytest.mark.parametrize("labels", [("001", "002"), ("001", "NA"), ("TRUE", "FALSE"), ("1e5", "2e5")])
def test_groups_of_a_csv_file_are_never_garbled(tmp_path: Path, labels: tuple[str, str]) -> None:
    """The group 001 is not 1.0: labels stay the text that they are, or are refused by name of their column."""
    rows = "".join(f"{asset},1,1,0.5,{label}\n" for asset, label in zip("AB", labels, strict=True))
    text = f"asset,quantity,price,target,group\n{rows}USD,1,1,0,\n"
    portfolio = Portfolio.from_table(read_table(written(tmp_path / "t.csv", text)), "USD")
    found: Any
    try:
        found = portfolio.labels("group")
    except InputError as refused:
        found = f"refused for its column {refused.column}"
    assert found in ((*labels, None), "refused for its column group")


def test_numbers_of_a_csv_file_keep_their_digits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    prices = [repr(float(x)) for x in rng.random(500) * 10.0 ** rng.integers(-6, 7, 500)]
    rows = "".join(f"A{i:03d},0,{price},0\n" for i, price in enumerate(prices))
    text = f"asset,quantity,price,target\n{rows}USD,1,1,1\n"
    portfolio = Portfolio.from_table(read_table(written(tmp_path / "t.csv", text)), "USD")
    assert portfolio.exact_price[:-1] == tuple(map(Fraction, prices))


def test_a_csv_file_of_a_batch(tmp_path: Path) -> None:
    """With a column portfolio_id, both keys stay columns, and 0001 keeps its zeros."""
    found = read_table(written(tmp_path / "t.csv", "portfolio_id,asset,quantity\n0001,NA,1\n0002,007,2\n"))
    assert found.portfolio_id.tolist() == ["0001", "0002"]
    assert found.asset.tolist() == ["NA", "007"]


@pytest.mark.parametrize(
    ("text", "where", "match"),
    [
        ("name,quantity\nBTC,1\n", {"column": "asset"}, "has no column 'asset'"),
        (" asset,quantity\nBTC,1\n", {"column": "asset"}, "has no column 'asset'"),
        ("asset,quantity,price,target\n,1,1,1\nUSD,1,1,0\n", {"column": "asset"}, "row 1 has no asset label"),
        ("asset,quantity,price,target\nBTC,NA,1,1\nUSD,1,1,0\n", {"asset": "BTC", "value": "NA"}, "must be a number"),
        ("asset,quantity,price,target\nBTC,1,,1\nUSD,1,1,0\n", {"asset": "BTC", "column": "price"}, "blank"),
        ("asset,quantity,price,target\nBTC,1,-inf,1\nUSD,1,1,0\n", {"asset": "BTC", "column": "price"}, "finite"),
        ("asset,quantity,price,target\nBTC,TRUE,1,1\nUSD,1,1,0\n", {"asset": "BTC"}, "must be a number"),
        ("asset,quantity,price,target\nBTC ,1,1,1\nUSD,1,1,0\n", {"asset": "BTC "}, "white space"),
        ("asset,quantity,price,target\nBTC,1,1,1\nBTC,1,1,0\nUSD,1,1,0\n", {"asset": "BTC"}, "twice"),
        ("asset,quantity,price\nBTC,1,1\nUSD,1,1\n", {"column": "target"}, "no such column"),
    ],
    ids=["no column", "space in header", "blank label", "NA", "blank", "-inf", "TRUE", "space", "twice", "no target"],
)
def test_bad_csv_files(tmp_path: Path, text: str, where: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        Portfolio.from_table(read_table(written(tmp_path / "t.csv", text)), "USD")
    assert {name: getattr(caught.value, name) for name in where} == where


# --- the order of rows ----------------------------------------------------------------------------------------


@given(instances(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_row_order_does_not_matter(x: Instance, seed: int) -> None:
    """Not one bit of the portfolio and the problem depends on the order of the table's rows or columns."""
    rng = np.random.default_rng(seed)
    shuffled = x.table.iloc[rng.permutation(len(x.table)), rng.permutation(x.table.shape[1])]
    one, other = x.portfolio(), Portfolio.from_table(shuffled, "USD")
    assert one.assets == other.assets == tuple(sorted(x.table.index))
    assert shuffled.index[other.order].tolist() == list(one.assets)
    assert one.nav.hex() == other.nav.hex()
    for name in ("quantity", "price", "target", "before"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    a, b = x.policy.problem(one), x.policy.problem(other)
    for mine, yours in (
        (a.lower, b.lower),
        (a.upper, b.upper),
        (a.rows.upper, b.rows.upper),
        (a.rows.weight, b.rows.weight),
        (a.risk.factors, b.risk.factors),
        (a.cost.impact, b.cost.impact),
    ):
        assert mine.tobytes() == yours.tobytes()
    assert one.nav == pytest.approx(float((x.table.quantity * x.table.price).sum()), rel=1e-12)
    assert one.before.sum() == pytest.approx(1.0, abs=1e-9)
