"""Policy files: whatever can be said in Python can be said in a file, and nothing else."""

from __future__ import annotations

import inspect
import re
import runpy
from collections import defaultdict
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise import Calendar, Drift, InputError, Rebalancer, read_table
from equipoise import constraints as rules
from equipoise.constraints import Custom, Rule
from equipoise.optimizer import CovarianceRisk, FactorRisk, Transfer, triggers
from equipoise.optimizer.command.policy_file import load
from equipoise.optimizer.command.policy_text import dumps
from equipoise.optimizer.problem import costs
from equipoise.optimizer.problem.costs import Cost
from equipoise.optimizer.triggers import Joined, Trigger

EXAMPLES = Path(__file__).parents[1] / "examples"
TABLE = pd.DataFrame(
    {
        "quantity": [30.0, 20.0, -10.0, 60.0],
        "price": [1.0, 2.0, 1.0, 1.0],
        "target": [0.3, 0.3, -0.1, 0.5],
        "one": [0.1, 0.2, 0.3, 0.0],
        "two": [0.5, 0.6, 0.7, 0.0],
        "group": ["x", "x", "y", "z"],
        "volume": [1e3, 1e4, 1e5, 1.0],
        "account": ["x", "x", "x", None],
    },
    index=["A", "B", "C-debt", "CASH"],
)
EACH = {"A": 0.1, "B": 0.2, "C-debt": 0.3}
COV = pd.DataFrame(np.diag([0.04, 0.09, 0.01]), index=list(EACH), columns=list(EACH))

RULES = [
    rules.DriftBand(absolute=0.05, relative=0.25, inside=0.5, combine="greater", assets=("A",), name='5/25 "wide"'),
    rules.DriftBand(absolute=(0.1, "one"), cash=True),
    rules.DriftBand(relative=(EACH, 0.5)),
    rules.DriftBand(absolute={"x": 0.1, "y": 0.2, "z": 0.3}, by="group"),
    rules.LongOnly(except_=("C-debt",)),
    rules.ShortOnly(assets=("C-debt",)),
    rules.WeightBounds(lower={"A": 0.1}, upper="two", assets=("A", "B")),
    rules.NoTrade(assets=("B",)),
    rules.BuyOnly(assets=("A", "B")),
    rules.SellOnly(assets=("A",)),
    rules.TradeLimit(participation=0.1, volume="volume", assets=("A",)),
    rules.CashFloor(weight=0.01, money=-3.0),
    rules.CashBand(lower=0.1, upper=0.9),
    rules.CashBand(lower=-0.1, name="no cap"),
    rules.HealthFactor(at_least=1.5, threshold={**EACH, "CASH": 1.0}),
    rules.HealthFactor(
        at_least=1.5, threshold="two", emode="e", emodes={"e": {"A": 0.9}, "f": {}}, assets=("A", "C-debt"), account="x"
    ),
    rules.LoanToValue(at_most=0.5, counts="two", assets=("A", "C-debt"), account="x"),
    rules.BorrowLimit(borrow="one", liquidation="two", at_least=1.1, assets=("A", "C-debt"), account="x"),
    rules.CollateralRatio(at_least=1.2, factor="two", cap={"A": 5.0}, share=0.5, assets=("A", "C-debt"), account="x"),
    rules.InitialMargin(
        rate="one", haircut=0.1, utilisation=0.9, cap=5.0, share=0.5, assets=("A", "C-debt"), account="x"
    ),
    rules.MaintenanceMargin(
        brackets={"A": ((0.0, 0.01), (10.0, 0.05)), "B": ((0.0, 0.02),)},
        haircut="one",
        utilisation=0.9,
        cap=5.0,
        share=0.5,
        assets=("A", "C-debt"),
        account="x",
    ),
    rules.AfterShock(rule=rules.HealthFactor(at_least=1.1, threshold="two"), fall="one", rise={"C-debt": 0.1}),
    rules.AfterScenarios(
        rule=rules.HealthFactor(at_least=1.1, threshold="two"),
        moves={"crash": {"A": -0.3}, "all": -0.1, "column": "one"},
        changes={"tuned": {"threshold": 0.5, "at_least": 1.0}, "column": {"threshold": "one"}},
    ),
    rules.CVaR(rule=rules.LoanToValue(at_most=0.5), moves={"a": {"A": -0.3}, "b": 0.1}, level=0.5),
    rules.AfterMove(
        rule=rules.HealthFactor(at_least=1.1, threshold="two"), years=0.01, probability=0.01, distribution="cantelli"
    ),
    rules.AfterMove(rule=rules.HealthFactor(at_least=1.1, threshold="two"), years=0.01, sigmas=3.0),
    rules.GreekLimit(greek="one", upper=0.5, lower=-0.5, assets=("A",), account="x"),
    rules.PoolCaps(supply="volume", borrow={"C-debt": 5.0}, assets=("A", "C-debt")),
    rules.Reserve(units={"A": 5.0, "CASH": 1.0}),
    rules.SettledCash(unsettled=5.0, late="one", by="group"),
    rules.Leverage(gross=2.0, net=1.0, except_=("C-debt",)),
    rules.GroupLimit(by="group", upper={"x": 0.9}, lower=0.0),
    rules.FactorLimit(loadings={"size": EACH, "value": "one"}, upper={"size": 1.0}, lower=-1.0, relative=True),
    rules.FactorLimit(loadings=EACH, upper=2.0),
    rules.FactorLimit(loadings="two", upper=2.0),
    rules.TrackingErrorLimit(limit=0.2),
    rules.Turnover(limit=0.3, kind="two_way"),
    rules.LotSize(lot="one", min_notional=0.5, min_quantity=0.25, max_notional=9.0, max_quantity=EACH),
    rules.MinimumPosition(weight=0.01, notional="one", assets=("A",)),
    rules.NameLimit(limit=3, assets=("A", "B")),
    rules.OrderLimit(limit=2, assets=("A",)),
]
#: Rules with arguments that need a portfolio in several accounts.
OF_ACCOUNTS = [rules.CashFloor(weight=0.1, account="perps"), rules.CashBand(lower=0.1, account="perps")]
COSTS = [
    costs.ProportionalCost(buy="one", sell=0.002),
    costs.ImpactCost(volatility=0.01, volume="volume", coefficient=EACH),
    costs.QuadraticCost(rate=0.1, volume="volume"),
    costs.HoldingCost(long=0.001, short="one"),
    costs.FixedFee(fee="one"),
    costs.MinimumCommission(minimum=EACH, rate=0.001),
]
TRIGGERS = [
    Drift(0.05),
    Drift(tracking_error=0.02),
    Drift(absolute=0.05, relative=(0.25, "one"), combine="greater", assets=("A",), cash=True),
    Drift(absolute=0.05, by="group"),
    Calendar("1MS", tz="Europe/London"),
    Calendar("7D") & (Drift(0.05) | Drift()),
]


def classes(module, base):
    found = {c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base)}
    return {c for c in found if not inspect.isabstract(c)}


def reread(tmp_path, rebalancer, risk=None):
    (tmp_path / "p.toml").write_text(dumps(rebalancer, risk), encoding="utf-8")
    return load(tmp_path / "p.toml").rebalancer


@pytest.mark.parametrize(
    ("module", "base", "examples"),
    [(rules, Rule, [*RULES, *OF_ACCOUNTS]), (costs, Cost, COSTS), (triggers, Trigger, TRIGGERS)],
    ids=["rules", "costs", "triggers"],
)
def test_there_is_an_example_of_every_argument_of_every_class(module, base, examples):
    used = defaultdict(set)
    for one in examples:
        used[type(one)] |= {f.name for f in fields(one) if getattr(one, f.name) != f.default}
    expected = classes(module, base) - {Custom}
    assert set(used) == expected
    for kind in expected:
        # `name` is the same for every rule.
        assert used[kind] | {"name"} == {f.name for f in fields(kind)} | {"name"}, kind


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_rule_from_a_file_is_the_rule_from_python(tmp_path, rule):
    (tmp_path / "cov.csv").write_text(COV.to_csv())
    made = Rebalancer(cash="CASH", risk=CovarianceRisk(COV), constraints=[rule], aversion=3.0, horizon=0.5)
    read = reread(tmp_path, made, {"type": "CovarianceRisk", "covariance": "cov.csv"})
    assert read.policy.constraints == (rule,)
    pieces = [[asdict(piece) for _, piece in r.problem(TABLE).pieces] for r in (made, read)]
    np.testing.assert_equal(*pieces)


def test_accounts_and_transfers_from_a_file_are_those_from_python(tmp_path):
    moves = [Transfer("a/USD", "b/USD", cost=0.001, limit=5.0, two_way=True), Transfer("b/USD", "c/USD", delay=2.0)]
    moves.append(Transfer("c/USD", "a/USD", paid_by="b"))
    made = Rebalancer(cash={"b": "USD", "a": "USD"}, constraints=OF_ACCOUNTS, transfers=moves)
    read = reread(tmp_path, made)
    assert (read.policy, read.accounts, read.cash) == (made.policy, made.accounts, "b/USD")
    assert list(read.accounts) == ["b", "a"]
    assert dumps(read) == dumps(made)


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: type(cost).__name__)
def test_a_cost_from_a_file_is_the_cost_from_python(tmp_path, cost):
    made = Rebalancer(cash="CASH", costs=[cost])
    read = reread(tmp_path, made)
    assert read.policy == made.policy
    np.testing.assert_equal(asdict(read.problem(TABLE).cost), asdict(made.problem(TABLE).cost))


@pytest.mark.parametrize("trigger", TRIGGERS, ids=repr)
def test_a_trigger_from_a_file_is_the_trigger_from_python(tmp_path, trigger):
    assert reread(tmp_path, Rebalancer(cash="CASH", trigger=trigger)).trigger == trigger


def test_joined_triggers_as_a_person_writes_them(tmp_path):
    text = 'cash = "CASH"\n[trigger]\ntype = "Joined"\nsign = "&"\n'
    text += (
        '[[trigger.triggers]]\ntype = "Calendar"\nevery = "1MS"\n[[trigger.triggers]]\ntype = "Drift"\ntotal = 0.1\n'
    )
    (tmp_path / "p.toml").write_text(text)
    assert load(tmp_path / "p.toml").rebalancer.trigger == Joined("&", (Calendar("1MS"), Drift(0.1)))


@pytest.mark.parametrize(("name", "cash"), [("treasury", "USDC"), ("equity", "USD")])
def test_the_example_in_python_and_the_one_in_a_file_give_the_same_orders(name, cash):
    python = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    read = load(EXAMPLES / "data" / f"{name}.toml").rebalancer
    assert (read.cash, read.trigger) == (cash, Drift())
    orders = [r.solve(python["holdings"]).orders for r in (python["rebalancer"], read)]
    assert len(orders[0]) > 5
    pd.testing.assert_frame_equal(*orders, check_exact=True)


def test_the_text_of_a_policy_does_not_depend_on_its_layout(tmp_path):
    first, second = tmp_path / "1.toml", tmp_path / "2.toml"
    first.write_text('cash="CASH"\naversion=10\n[[constraints]]\ntype="Turnover"\nlimit=1\nkind="one_way"')
    second.write_text("# like the first\ncash = 'CASH'\n[[constraints]]\nlimit = 1.0\ntype = \"Turnover\"\n")
    assert load(first).text == load(second).text
    assert load(first).digest == load(second).digest
    second.write_text('cash = "CASH"\n[[constraints]]\nlimit = 1.1\ntype = "Turnover"\n')
    assert load(first).digest != load(second).digest


def test_text_of_any_kind_survives(tmp_path):
    nasty = 'a"b\\c\n\t\x7f\x01 é🙂 ]['
    rule = rules.WeightBounds(upper={nasty: 0.5, "plain-1": 1.0, "": 2.0}, name=nasty)
    assert reread(tmp_path, Rebalancer(cash=nasty, constraints=[rule])).policy.constraints == (rule,)


class TestRisk:
    def policy(self, folder, table, **options):
        (folder / "p.toml").write_text(f'cash = "CASH"\n[risk]\n{table}')
        return load(folder / "p.toml", **options)

    def covariance(self, policy):
        return policy.rebalancer.policy.risk.aligned(["A", "B"], "CASH").covariance()

    def test_labels_of_data_files_are_text(self, tmp_path):
        labels = ["001", "NA", "TRUE", "=x"]
        cov = pd.DataFrame(np.diag([1.0, 2.0, 3.0, 4.0]), index=labels, columns=labels)
        (tmp_path / "c.csv").write_text(cov.to_csv(), encoding="utf-8-sig")
        policy = self.policy(tmp_path, 'type = "CovarianceRisk"\ncovariance = "c.csv"')
        assert policy.rebalancer.policy.risk.assets == tuple(labels)

    def test_returns_and_their_options(self, tmp_path):
        returns = pd.DataFrame(np.random.default_rng(1).normal(size=(50, 2)), columns=["A", "B"])
        (tmp_path / "r.csv").write_text(returns.to_csv())
        policy = self.policy(
            tmp_path,
            'type = "CovarianceRisk"\nreturns = "r.csv"\nmethod = "ewma"\nhalf_life = 9\nperiods_per_year = 12',
        )
        expected = CovarianceRisk.from_returns(returns, method="ewma", half_life=9, periods_per_year=12)
        np.testing.assert_array_equal(self.covariance(policy), expected.aligned(["A", "B"], "CASH").covariance())

    def test_data_from_the_command_line(self, tmp_path):
        (tmp_path / "c.csv").write_text(COV.to_csv())
        expected = np.diag([0.04, 0.09])
        for table in ('type = "CovarianceRisk"', 'type = "CovarianceRisk"\ncovariance = "not there.csv"'):
            policy = self.policy(tmp_path, table, covariance=tmp_path / "c.csv")
            np.testing.assert_allclose(self.covariance(policy), expected, atol=1e-15)
        (tmp_path / "p.toml").write_text('cash = "CASH"\n')
        np.testing.assert_allclose(
            self.covariance(load(tmp_path / "p.toml", covariance=tmp_path / "c.csv")), expected, atol=1e-15
        )
        with pytest.raises(InputError, match="exactly one of covariance, returns"):
            self.policy(tmp_path, 'type = "CovarianceRisk"\nreturns = "r.csv"', covariance=tmp_path / "c.csv")

    @pytest.mark.parametrize("variance", ['"s.csv"', "{ A = 0.01, B = 0.02 }"])
    def test_factors(self, tmp_path, variance):
        loadings = pd.DataFrame([[1.0, 0.5]], index=["market"], columns=["A", "B"])
        omega = pd.DataFrame([[0.04]], index=["market"], columns=["market"])
        for name, frame in (("l", loadings), ("o", omega), ("s", pd.Series({"A": 0.01, "B": 0.02}, name="s"))):
            (tmp_path / f"{name}.csv").write_text(frame.to_csv())
        table = f'type = "FactorRisk"\nloadings = "l.csv"\nfactor_covariance = "o.csv"\nspecific_variance = {variance}'
        expected = FactorRisk(loadings, {"A": 0.01, "B": 0.02}, factor_covariance=omega)
        actual = self.covariance(self.policy(tmp_path, table))
        np.testing.assert_array_equal(actual, expected.aligned(["A", "B"], "CASH").covariance())

    def test_the_digest_covers_the_data(self, tmp_path):
        table = 'type = "CovarianceRisk"\ncovariance = "c.csv"'
        (tmp_path / "c.csv").write_text(COV.to_csv())
        first = self.policy(tmp_path, table).digest
        (tmp_path / "c.csv").write_text((2 * COV).to_csv())
        assert self.policy(tmp_path, table).digest != first

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("", "is not a table"),
            (",A\nA,x\n", "row 'A', column 'A', value 'x': must be a number, finite and in plain digits"),
            (",A\nA,TRUE\n", "value true: must be a number"),
            (",A\nA,1_000\n", "value '1_000': must be a number"),
            (",A\nA,１\n", "value '１': must be a number"),
            (",A\nA,nan\n", "value 'nan': must be a number"),
            (",A\nA,inf\n", "value inf: must be finite"),
            (",A\nA,1e400\n", "value '1e400': must be finite"),
            (",A\nA,1e101\n", "value '1e101': must be finite"),
            (",A\nA,1e-400\n", "value '1e-400': is nearer to 0 than 1e-100"),
            (f",A\nA,0.{'0' * 400}1\n", "is nearer to 0 than 1e-100"),
            (",A\nA,\n", "a covariance must be a finite number"),
            (",A,A\nA,1,1\nA,1,1\n", "the label occurs more than once"),
            (",A\n,1\n", "needs a label"),
            (",A\nA,1,2\n", "as many cells in each"),
            (",A\nA,1\nB,1,2\n", "is not a table"),
            (",A\nA,-1\n", "a variance must not be negative"),
            (b"\xff\xfe\x00", "is not a table"),
        ],
    )
    def test_bad_data_files(self, tmp_path, content, said):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "c.csv").write_bytes(data)
        with pytest.raises(InputError) as caught:
            self.policy(tmp_path, 'type = "CovarianceRisk"\ncovariance = "c.csv"')
        assert said in str(caught.value)
        assert "[risk] (CovarianceRisk)" in str(caught.value)


ERRORS = [
    ("", "the key 'cash' is missing"),
    ("cash = 3", "key 'cash': must be text or a table by label, not 3"),
    ('cash = "C"\ncashh = 1', "unknown key 'cashh' (did you mean 'cash'?); it takes cash, risk, costs, constraints"),
    ('cash = "C"\naversion = nan', "key 'aversion', value nan: must be a number, finite"),
    ('cash = "C"\naversion = inf', "key 'aversion', value inf: must be finite"),
    ('cash = "C"\naversion = 1e-400', "key 'aversion', value 1e-400: is nearer to 0 than 1e-100"),
    ('cash = "C"\naversion = 1e99999999999999999999', "key 'aversion', value nan: must be a number"),
    ('cash = "C"\naversion = true', "key 'aversion': must be a number, not true"),
    ('cash = "C"\naversion = 2027-01-01', "key 'aversion': must be a number"),
    ('cash = "C"\naversion = "5"', "key 'aversion': must be a number, not '5'"),
    (
        'cash = "C"\naversion = 1' + "0" * 400,
        "value 'an integer of more than 40 digits': must be finite, and at most 1e+100",
    ),
    ('cash = "C"\naversion = -1', "must be above 0"),
    ('cash = "C"\n[constraints]\ntype = "LongOnly"', "[[constraints]]: must be a list, not a table"),
    ('cash = "C"\n[[risk]]\ntype = "CovarianceRisk"', "[risk]: must be a table, not a list"),
    ('cash = "C"\n[[constraints]]\nkind = "LongOnly"', "[[constraints]] 1: no key 'type'; it is one of"),
    ('cash = "C"\n[[constraints]]\ntype = "LongOny"', "unknown type 'LongOny' (did you mean 'LongOnly'?)"),
    ('cash = "C"\n[[constraints]]\ntype = 3', "unknown type 3"),
    ('cash = "C"\n[[constraints]]\ntype = "Rule"', "unknown type 'Rule'"),
    ('cash = "C"\n[[constraints]]\ntype = "ProportionalCost"', "unknown type 'ProportionalCost'"),
    ('cash = "C"\n[[constraints]]\ntype = "Custom"\nbuild = "1"', "Python code, which is never read from a file"),
    ('cash = "C"\n[[constraints]]\ntype = "Turnover"', "[[constraints]] 1 (Turnover): the key 'limit' is missing"),
    (
        'cash = "C"\n[[constraints]]\ntype = "LongOnly"\n[[constraints]]\ntype = "Turnover"\nlimt = 1',
        "[[constraints]] 2 (Turnover): unknown key 'limt' (did you mean 'limit'?)",
    ),
    ('cash = "C"\n[[constraints]]\ntype = "LongOnly"\nexcept_ = ["A"]', "did you mean 'except'?"),
    ('cash = "C"\n[[constraints]]\ntype = "LongOnly"\nexcept = "A"', "key 'except': must be a list, not 'A'"),
    ('cash = "C"\n[[constraints]]\ntype = "LongOnly"\nexcept = [1]', "key 'except', entry 1: must be text, not 1"),
    (
        'cash = "C"\n[[constraints]]\ntype = "Turnover"\nlimit = 1\nkind = "x"',
        "key 'kind': must be one of one_way, two_way, buy, sell, not 'x'",
    ),
    ('cash = "C"\n[[constraints]]\ntype = "DriftBand"\nabsolute = [1, 2, 3]', "key 'absolute': must have 2 entries"),
    ('cash = "C"\n[[constraints]]\ntype = "DriftBand"\nabsolute = { A = "x" }', "entry 'A': must be a number, not 'x'"),
    ('cash = "C"\n[[constraints]]\ntype = "DriftBand"\nabsolute = { A = inf }', "entry 'A', value inf: must be finite"),
    ('cash = "C"\n[[constraints]]\ntype = "DriftBand"', "a drift band needs a width"),
    ('cash = "C"\n[[constraints]]\ntype = "CashBand"\nlower = -inf', "value -inf: must be finite"),
    ('cash = "C"\n[risk]\ntype = "CovarianceRisk"', "takes exactly one of covariance, returns, not none"),
    ('cash = "C"\n[risk]\ntype = "CovarianceRisk"\ncovariance = "no.csv"', "cannot be read: No such file"),
    ('cash = "C"\n[risk]\ntype = "CovarianceRisk"\ncovariance = [1]', "must be the path of a CSV file, not a list"),
    ('cash = "C"\n[trigger]\ntype = "Calendar"\nevery = 3', "key 'every': must be text, not 3"),
    ('cash = "C"\ncash = "D"', "not a TOML file"),
    ("cash = \n", "not a TOML file"),
    ("a = " + "[" * 100_000, "not a TOML file"),
]


@pytest.mark.parametrize(("text", "said"), ERRORS, ids=range(len(ERRORS)))
def test_errors_name_file_table_and_key(tmp_path, text, said):
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load(tmp_path / "p.toml")
    (tmp_path / "p.toml").write_bytes(b"\xff")
    with pytest.raises(InputError, match="not a TOML file"):
        load(tmp_path / "p.toml")


def test_infinity_where_it_is_the_default(tmp_path):
    (tmp_path / "p.toml").write_text('cash = "C"\n[[constraints]]\ntype = "CashBand"\nupper = inf\n')
    assert load(tmp_path / "p.toml").rebalancer.policy.constraints == (rules.CashBand(),)


def test_what_no_file_can_say():
    class Own(rules.LongOnly):
        pass

    for rule in (Custom(lambda t: t.weights <= 1), Own()):
        with pytest.raises(InputError):
            dumps(Rebalancer(cash="C", constraints=[rule]))
    with pytest.raises(InputError, match="does not remember its data"):
        dumps(Rebalancer(cash="C", risk=CovarianceRisk(COV)))
    with pytest.raises(InputError, match="cannot be written"):
        dumps(Rebalancer(cash="C", trigger=Calendar(pd.offsets.MonthBegin())))


def test_no_key_is_called_type():
    # It names the class; a field of that name could not be given.
    for kind in [*map(type, RULES), *map(type, COSTS), *map(type, TRIGGERS)]:
        assert "type" not in {f.name for f in fields(kind)}


def test_the_documentation_names_every_key():
    text = (EXAMPLES.parent / "docs" / "policy.md").read_text(encoding="utf-8")
    arguments = {f.name for one in [*RULES, *COSTS, *TRIGGERS] for f in fields(one)}
    for make in (Rebalancer, CovarianceRisk.from_returns, CovarianceRisk, FactorRisk):
        arguments |= set(inspect.signature(make).parameters) - {"assets"}
    keys = {{"cov": "covariance"}.get(name, name.rstrip("_")) for name in arguments}
    types = {type(one).__name__ for one in [*RULES, *COSTS, *TRIGGERS]} | {"CovarianceRisk", "FactorRisk"}
    missing = {word for word in keys | types if not re.search(rf"`{word}`|[\[.]{word}[\].]|\b{word} = ", text)}
    assert not missing


def test_the_example_of_the_documentation(tmp_path):
    text = (EXAMPLES.parent / "docs" / "policy.md").read_text(encoding="utf-8")
    (tmp_path / "p.toml").write_text(re.search("```toml\n(.*?)```", text, re.S)[1])
    policy = load(tmp_path / "p.toml", covariance=EXAMPLES / "data" / "treasury_covariance.csv")
    policy.rebalancer.problem(read_table(EXAMPLES / "data" / "treasury.csv"))


def test_the_shipped_policies_are_read_with_their_tables():
    for name in ("treasury", "equity"):
        table = read_table(EXAMPLES / "data" / f"{name}.csv")
        assert load(EXAMPLES / "data" / f"{name}.toml").rebalancer.due(table)
