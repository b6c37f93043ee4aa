"""A policy: what stays the same from portfolio to portfolio, and how it makes a program of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from equipoise.constraints.errors import InputError, NotStackable
from equipoise.constraints.numbers import check_number, encodable
from equipoise.constraints.pieces import Step, of_kind
from equipoise.constraints.rules.cash import CashBand, CashFloor
from equipoise.constraints.rules.rule import Declared, Rule
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.portfolio.transfers import Transfer
from equipoise.optimizer.portfolio.transfers import portfolio as in_accounts
from equipoise.optimizer.problem.accounts import look_through
from equipoise.optimizer.problem.costs import Cost, told, total, total_fees
from equipoise.optimizer.problem.joint import joined
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.risk.factored import FactoredRisk
from equipoise.optimizer.risk.models import Risk, SquaredDistance, stacked

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.optimizer.portfolio.stack import Stack


@dataclass(frozen=True)
class Policy:
    """What stays the same from portfolio to portfolio; see `Rebalancer` for the meaning and the units."""

    risk: Risk | None = None
    costs: tuple[Cost, ...] = ()
    constraints: tuple[Rule, ...] = ()
    aversion: float = 10.0
    horizon: float = 1.0
    compiled: bool = False
    #: What may be moved between the accounts of a portfolio (see `accounts`).
    transfers: tuple[Transfer, ...] = ()
    #: The settlement cash of the tables, or the cash of each account that trades.
    cash: str | Mapping[str, str] = ""

    def __post_init__(self) -> None:
        if self.transfers and not self.accounts:
            raise InputError("transfers need accounts: give cash={account: asset, ...}", column="cash", value=self.cash)
        if isinstance(self.cash, Mapping) and not self.cash:
            raise InputError("needs the cash of one account at least", column="cash", value={})
        if self.compiled and find_spec("numba") is None:
            raise InputError('needs numba: pip install "equipoise[fast]"', column="compiled", value=self.compiled)
        for number, argument in ((self.aversion, "aversion"), (self.horizon, "horizon")):
            check_number(number, argument, above=0.0)
            if not 1e-50 <= number <= 1e50:
                raise InputError("must lie between 1e-50 and 1e50", column=argument, value=number)
        _check_kind(self.costs, Cost, "costs")
        _check_kind(self.constraints, Rule, "constraints")
        _check_kind(self.transfers, Transfer, "transfers")

    @property
    def accounts(self) -> dict[str, str]:
        """The cash of each account that trades; none for a portfolio in one account."""
        return dict(self.cash) if isinstance(self.cash, Mapping) else {}

    @property
    def settlement(self) -> str:
        """The label of the settlement cash: with several accounts "account/asset" of the first."""
        return "/".join(next(iter(self.cash.items()))) if isinstance(self.cash, Mapping) else self.cash

    def portfolio(self, table: pd.DataFrame, *, name: str | None = None, universe: Iterable[str] = ()) -> Portfolio:
        """The table, parsed and checked. Raises InputError; see `Portfolio.from_table`."""
        known = {*universe, *getattr(self.risk, "assets", ())}
        if self.accounts:
            transfers, own = self.transfers, self.asset_columns
            return in_accounts(table, self.accounts, transfers, asset_columns=own, name=name, universe=known)
        return Portfolio.from_table(table, self.settlement, name=name, universe=known)

    def problem(self, portfolio: Portfolio) -> Problem:
        """The program of this portfolio. Raises InputError where a rule or the risk does not fit its table."""
        model = self.risk or SquaredDistance()
        try:
            if portfolio.cashes:
                return self._in_accounts(portfolio, model)
            risk = model.aligned(portfolio.assets, portfolio.assets[portfolio.cash])
            return self._problem(portfolio, risk)
        except InputError as error:
            raise error.within(portfolio.name) from None

    def _in_accounts(self, portfolio: Portfolio, model: Risk) -> Problem:
        asked = self._problem(portfolio, look_through(model, portfolio))
        return joined(asked, self.transfers)

    @property
    def stacks(self) -> bool:
        """Whether portfolios can be taken together: by rules and costs that are written for stacks."""
        return all(rule.stacks for rule in self.constraints) and all(cost.stacks for cost in self.costs)

    @property
    def asset_columns(self) -> frozenset[str]:
        """The columns that say what an asset is, wherever it lies: labels, exposures, and `Declared.own`."""
        return frozenset({"exposure", *self.label_columns}.union(*map(_of_asset, (*self.constraints, *self.costs))))

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns of the table whose labels say which rows there are."""
        return tuple({column for rule in self.constraints for column in rule.label_columns()})

    def stacked(self, stack: Stack) -> Problem:
        """The programs of these portfolios as one, with arrays (B, n).

        Raises NotStackable where only one by one will do, for a wrong input too, and InputError where the policy
        itself is wrong.
        """
        if not self.stacks:
            raise NotStackable
        risk = stacked(self.risk or SquaredDistance(), stack.universe, stack.codes, stack.cash)
        return self._problem(stack, risk)

    def _problem(self, portfolio: Portfolio | Stack, risk: FactoredRisk) -> Problem:
        portfolio = replace(portfolio, risk=risk if self.risk is not None else None)
        rules = self.constraints
        floored = {rule.account for rule in rules if isinstance(rule, CashFloor | CashBand)}
        for account in (None, *list(getattr(portfolio, "cashes", ()))[1:]):
            if account not in floored:
                rules = (*rules, CashFloor(account=account))
        pieces = tuple((rule.title, piece) for rule in rules for piece in told(rule, rule.pieces, portfolio))
        if len(of_kind(pieces, Step)) > 1:
            raise InputError("two rules give lot sizes; give one LotSize", column="LotSize")
        costs = total(self.costs, portfolio), self.aversion, self.horizon
        fees = total_fees(self.costs, portfolio)
        return Problem(portfolio, risk, *costs, pieces, rules, fees=fees, compiled=self.compiled)


def _check_kind(given: Iterable[object], kind: type, argument: str) -> None:
    for one in given:
        if isinstance(one, Rule) and not encodable(one.title):
            raise InputError("has half of a surrogate pair, which no file holds", column="name", value=one.title)
        if not isinstance(one, kind):
            raise InputError(f"takes a list of {kind.__name__} objects", column=argument, value=one)


def _of_asset(one: Declared) -> set[str]:
    """The columns that its arguments of this kind name, those of a rule within it too."""
    inner = getattr(one, "rule", None)
    found = _of_asset(inner) if isinstance(inner, Declared) else set()
    for argument in one.own:
        given = getattr(one, argument)
        names = given.values() if isinstance(given, Mapping) else (given,)
        found |= {name for name in names if isinstance(name, str)}
    return found
