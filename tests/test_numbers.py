"""One rule for numbers: every argument of every rule and cost, as a scalar, in a mapping and in a column.

What is no number is refused with the place named, alone and in a batch; blanks are refused wherever the class does not
declare that they mean something (`Declared.blanks`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import pytest
from test_every_rule import EVERY, RISK, TABLE, rule_classes

from equipoise import Rebalancer
from equipoise.constraints import BorrowLimit, CashBand, Custom, InputError, Rule
from equipoise.constraints.numbers import number
from equipoise.constraints.rules.rule import Declared
from equipoise.optimizer.formulas.lending import health_factor
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.portfolio.transfers import Transfer
from equipoise.optimizer.problem import costs
from equipoise.optimizer.problem.costs import Cost
from equipoise.optimizer.problem.policy import Policy
from equipoise.optimizer.risk.models import CovarianceRisk, FactorRisk
from equipoise.optimizer.triggers import Calendar, Drift

BLANKS = (None, float("nan"), pd.NA, pd.NaT, "", Decimal("NaN"))
# pandas itself raised at a signalling NaN in a column before.
BLANKS += (Decimal("sNaN"),) if int(pd.__version__.split(".")[0]) >= 3 else ()
GARBAGE = (
    "abc", "1_000", "1,000", "7_500_000e18", "0x10", "１", "٣", "1 000", "--1", "1e", "nan", b"1", True, np.True_,
    float("inf"), float("-inf"), "inf", Decimal("Infinity"), 1e308, -1e308, 1e101, 10**400, "1e400", "1e-999999999",
    1e-320, -5e-324, 1e-101, Decimal("1e-400"), "0." + "3" * 5000, 1j, np.timedelta64(5, "D"), pd.Timestamp(0), [1.0],
)  # fmt: skip
#: What a number that is no column's name is not, besides.
NO_SCALARS = (None, float("nan"), "0.5", "１", b"1", True, np.True_, float("inf"), 1e308, 10**400, 1e-320, 1j, [1.0])
BASES: dict[type[Declared], Any] = {
    costs.ProportionalCost: costs.ProportionalCost(0.001),
    costs.ImpactCost: costs.ImpactCost(0.02, 1000.0),
    costs.QuadraticCost: costs.QuadraticCost(0.1),
    costs.HoldingCost: costs.HoldingCost(0.02),
    costs.FixedFee: costs.FixedFee(1.0),
    costs.MinimumCommission: costs.MinimumCommission(1.0),
    **EVERY,
}
#: Arguments whose numbers stand deeper: how one is put there.
DEEPER: dict[str, Any] = {
    "moves": lambda x: {"crash": x},
    "emodes": lambda x: {"safe": x},
    "brackets": lambda x: {asset: [(0.0, one)] for asset, one in x.items()},
}


def declared() -> Iterator[type[Declared]]:
    yield from (found for found in rule_classes() if found is not Custom)
    for _, found in inspect.getmembers(costs, inspect.isclass):
        if issubclass(found, Cost) and not inspect.isabstract(found):
            yield found


def takes(hint: Any) -> set[str]:
    """How numbers are given: "scalar", "mapping" (by asset), "column"."""
    found: set[str] = set()
    for one in get_args(hint) or (hint,):
        kind = get_origin(one) or one
        found |= {float: {"scalar"}, str: {"column"}, Mapping: {"mapping"}}.get(kind, set())
    return found if found >= {"scalar"} else set()


def arguments(kind: str) -> list[Any]:
    found = []
    for cls in declared():
        hints = get_type_hints(cls)
        for field in fields(cls):  # type: ignore[arg-type]
            name = field.name
            deep = {"brackets": {"mapping"}, "emodes": {"mapping"}, "moves": {"mapping", "column"}}
            ways = deep[name] if name in deep else takes(hints[name])
            by_label = name in ("upper", "lower") and "column" not in ways  # limits by label or factor
            if kind in ways and name != "changes" and not (by_label and kind == "mapping"):
                found.append(pytest.param(cls, name, id=f"{cls.__name__}.{name}"))
    return found


def made(cls: type[Declared], argument: str, value: Any) -> Any:
    deeper = DEEPER.get(argument, lambda x: x)
    more = {"emode": "safe"} if argument == "emodes" else {}
    return replace(BASES[cls], **{argument: deeper(value)}, **more)


def policy(one: Any) -> Policy:
    return Policy(RISK, **{"constraints" if isinstance(one, Rule) else "costs": (one,)})


def refused(cls: type[Declared], argument: str, value: Any, table: pd.DataFrame = TABLE) -> InputError:
    """The InputError of this argument, when the class is made or applied."""
    with pytest.raises(InputError) as caught:
        policy(made(cls, argument, value)).problem(Portfolio.from_table(table, "USD", name="P1"))
    return caught.value


def test_every_argument_is_found() -> None:
    """Each class with arguments of numbers has some here; a class without a base is an error above."""
    found = {case.values[0] for kind in ("scalar", "mapping", "column") for case in arguments(kind)}
    without = {"LongOnly", "ShortOnly", "NoTrade", "BuyOnly", "SellOnly"}
    assert {cls.__name__ for cls in declared()} - {cls.__name__ for cls in found} == without
    assert len(arguments("column")) >= 35


@pytest.mark.parametrize(("cls", "argument"), arguments("scalar"))
def test_scalars(cls: type[Declared], argument: str) -> None:
    """No text, no boolean, nothing that is not finite or out of range is taken for a number."""
    optional = type(None) in get_args(get_type_hints(cls)[argument])
    column = "column" in takes(get_type_hints(cls)[argument])
    for value in NO_SCALARS:
        if (value is None and optional) or (cls is CashBand and argument == "upper" and value == float("inf")):
            continue
        error = refused(cls, argument, value)
        named = {argument, value} if column and isinstance(value, str) else {argument}
        assert error.column in named or any(str(error.column).startswith(f"{name} of") for name in named), (
            value,
            error,
        )


@pytest.mark.parametrize(("cls", "argument"), arguments("mapping"))
def test_mappings(cls: type[Declared], argument: str) -> None:
    """An entry that is no number names its asset; a blank entry is none either."""
    for value in (*BLANKS, *GARBAGE):
        error = refused(cls, argument, dict.fromkeys(TABLE.index, 0.5) | {"BOND": value})
        assert error.asset == "BOND", (value, error)
        assert argument in str(error.column), (value, error)


def with_cell(value: Any) -> pd.DataFrame:
    cells = pd.Series([0.5] * len(TABLE), TABLE.index, dtype=object)
    cells["BOND"] = value
    return TABLE.assign(given=cells)


@pytest.mark.parametrize(("cls", "argument"), arguments("column"))
def test_columns(cls: type[Declared], argument: str) -> None:
    """A cell that is no number names portfolio, asset and column; a blank does, unless the class gives it a meaning."""
    for value in GARBAGE:
        error = refused(cls, argument, "given", with_cell(value))
        assert (error.portfolio, error.asset, error.column) == ("P1", "BOND", "given"), (value, error)
    for value in BLANKS:
        if argument in cls.blanks:
            assert "blank" in (cls.__doc__ or "").lower()
            one = made(cls, argument, "given")
            if cls is BorrowLimit:  # it compares the two
                one = replace(one, **({"liquidation": 0.5} if argument == "borrow" else {"borrow": 0.0}))
            policy(one).problem(Portfolio.from_table(with_cell(value), "USD"))
        else:
            error = refused(cls, argument, "given", with_cell(value))
            assert (error.portfolio, error.asset, error.column) == ("P1", "BOND", "given"), (value, error)
            assert "blank" in str(error)


@pytest.mark.parametrize(("cls", "argument"), arguments("column"))
def test_columns_in_a_batch(cls: type[Declared], argument: str) -> None:
    """The same with each in a portfolio of its own: the others' results and orders do not change by a bit."""
    found = policy(made(cls, argument, "given"))
    rebalancer = Rebalancer(cash="USD", costs=found.costs, constraints=found.constraints)
    blanks = () if argument in cls.blanks else BLANKS
    wrong = {f"W{i:02}": with_cell(value) for i, value in enumerate((*GARBAGE, *blanks))}
    sound = {f"S{i}": with_cell(0.5) for i in range(2)}

    def solved(accounts: Mapping[str, pd.DataFrame]) -> Any:
        table = pd.concat([t.rename_axis("asset").reset_index().assign(portfolio_id=p) for p, t in accounts.items()])
        return rebalancer.solve_batch(table)

    alone, together = solved(sound), solved({"S0": sound["S0"], **wrong, "S1": sound["S1"]})
    for name in wrong:
        message = together.results.message[name]
        assert together.results.status[name] == "INVALID_INPUT", (name, message)
        assert message.startswith(f"portfolio '{name}', asset 'BOND', column 'given'"), message
    pd.testing.assert_frame_equal(alone.results, together.results.loc[list(sound)], check_exact=True)
    pd.testing.assert_frame_equal(
        alone.orders.reset_index(),
        together.orders.reset_index().query("portfolio_id in @sound").reset_index(drop=True),
        check_exact=True,
    )


@pytest.mark.parametrize("value", [*NO_SCALARS[1:]])
def test_other_arguments(value: Any) -> None:
    """The policy's own numbers, and those of transfers."""
    for argument in ("aversion", "horizon"):
        with pytest.raises(InputError) as caught:
            Rebalancer(cash="USD", **{argument: value})
        assert caught.value.column == argument
    for argument in ("cost", "limit", "delay"):
        if argument == "limit" and value == float("inf"):
            continue
        with pytest.raises(InputError) as caught:
            Transfer("a/X", "b/X", **{argument: value})
        assert caught.value.column == argument


LABELS = ("STOCK", "BOND", "GOLD")
#: Arguments of risk models, made of a square of numbers, and how its cell (1, 2) is named.
RISKS: dict[str, tuple[Any, Any, str]] = {
    "covariance": (lambda x: CovarianceRisk(x), ("BOND", "GOLD"), ""),
    "returns": (lambda x: CovarianceRisk.from_returns(x), "GOLD", "row 'BOND': "),
    "loadings": (lambda x: FactorRisk(x, [0.1] * 3), "GOLD", "row 'BOND': "),
    "specific_variance": (lambda x: FactorRisk(RISK_TABLE, x.loc["BOND"]), "GOLD", ""),
    "factor_covariance": (
        lambda x: FactorRisk(RISK_TABLE, [0.1] * 3, factor_covariance=x),
        ("BOND", "GOLD"),
        "",
    ),
}
RISK_TABLE = pd.DataFrame(np.diag([0.04, 0.01, 0.02]), LABELS, LABELS)


@pytest.mark.parametrize("argument", RISKS)
def test_risk(argument: str) -> None:
    """A cell of a risk model's table that is no number is named with its row, asset, table and value."""
    make, asset, row = RISKS[argument]
    make(RISK_TABLE.astype(object))
    for value in (*BLANKS, *GARBAGE):
        table = RISK_TABLE.astype(object)
        table.loc["BOND", "GOLD"] = None
        table.iat[1, 2] = value
        with pytest.raises(InputError) as caught:
            make(table)
        error = caught.value
        assert (error.asset, error.column) == (asset, argument), (value, error)
        assert error.problem.startswith(row), (value, error)


@pytest.mark.parametrize("value", [b"1", "1_000", "１", True, 1e-320, 1e101, 10**400, 1j, None, np.timedelta64(5, "D")])
def test_arrays_of_risk(value: Any) -> None:
    """Lists and arrays of whatever type: a boolean among floats is none of them, and what is masked is no number."""
    rows = [[0.04, 0.0], [0.0, value]]
    for given in (rows, np.array(rows, dtype=object)):
        with pytest.raises(InputError) as caught:
            CovarianceRisk(given, assets=["STOCK", "BOND"])
        assert caught.value.asset == "BOND"
    for array in (np.eye(2) > 0, np.eye(2).astype("S8"), np.eye(2) * 1j, np.ma.masked_less(np.eye(2), 0.5)):
        with pytest.raises(InputError):
            CovarianceRisk(array, assets=["STOCK", "BOND"])
    for array in (np.array([[0.04, 0.0], [0.0, 0.01]], dtype="U8"), [[Decimal("0.04"), 0], [0, Fraction(1, 100)]]):
        model = CovarianceRisk(array, assets=["STOCK", "BOND"]).aligned(["STOCK", "BOND"], "")
        np.testing.assert_allclose(model.covariance(), np.diag([0.04, 0.01]), rtol=1e-15)


def test_what_is_riskless_is_not_read() -> None:
    table = RISK_TABLE.astype(object)
    table.loc["GOLD"] = "n/a"
    table["GOLD"] = True
    assert CovarianceRisk(table, riskless=["GOLD"]).assets == ("STOCK", "BOND")


def test_tables_with_blanks_of_pandas_own() -> None:
    table = RISK_TABLE.astype("Float64")
    assert CovarianceRisk(table).assets == LABELS
    table.iloc[1, 2] = pd.NA
    with pytest.raises(InputError, match="a covariance must be a finite number") as caught:
        CovarianceRisk(table)
    assert caught.value.asset == ("BOND", "GOLD")


@pytest.mark.parametrize("value", ["0.5", "1_000", b"1", True, np.True_, 1e-320, 1e101, 10**400, None, pd.NA, 1j])
def test_formulas(value: Any) -> None:
    """Arguments of the closed forms, alone, in lists and in arrays."""
    given: list[Any] = [
        value,
        [1.0, value],
        np.array([1.0, value], dtype=object),
        pd.Series([1.0, value], dtype=object),
    ]
    for one in given:
        with pytest.raises(InputError) as caught:
            health_factor(one, 0.8)
        assert caught.value.column == "value"
    assert health_factor([Fraction(10), Decimal(-4)], 0.8) == 2.0


@pytest.mark.parametrize("value", NO_SCALARS[1:])
def test_triggers(value: Any) -> None:
    problem = Policy().problem(Portfolio.from_table(TABLE, "USD"))
    for argument in ("total", "tracking_error", "absolute", "relative"):
        with pytest.raises(InputError) as caught:
            Drift(**{argument: value}).due(problem)
        assert argument in str(caught.value.column) or caught.value.column == value
    for every in (value, "１D", "٣D"):
        with pytest.raises(InputError) as caught:
            Calendar(every)
        assert caught.value.column == "every"


def test_the_limit_of_a_transfer_may_be_infinite_and_nothing_else() -> None:
    for value in (pd.NA, np.array([1.0, 2.0]), "inf", -float("inf")):
        with pytest.raises(InputError) as caught:
            Transfer("a/X", "b/X", limit=value)
        assert caught.value.column == "limit"


@pytest.mark.parametrize(
    ("value", "found"),
    [(0, 0.0), ("-0", 0.0), ("0e999999", 0.0), ("0.000", 0.0), (" 1.5\t", 1.5), ("+.5", 0.5), ("5.", 5.0),
     ("1E-3", 1e-3), (Decimal("0.1"), 0.1), (np.float32(0.5), 0.5), (np.int8(3), 3.0), (1e100, 1e100),
     (-1e-100, -1e-100)],
)  # fmt: skip
def test_numbers(value: Any, found: float) -> None:
    assert number(value, None, "x") == found
