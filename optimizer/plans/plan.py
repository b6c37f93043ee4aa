"""The answer: orders that were verified, and everything that says what they do and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from equipoise.constraints.numbers import exact
from equipoise.constraints.pieces import Array, Bound, Check
from equipoise.optimizer.plans.reasons import MEANT, reasons, sentence
from equipoise.optimizer.portfolio.exact_sums import nearest
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Prices
from equipoise.optimizer.verification.certificate import reduced_costs
from equipoise.optimizer.verification.outcome import Outcome

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.optimizer.sequence.steps import OrderSequence

ORDER_COLUMNS = ("side", "quantity", "lots", "price", "notional", "cost", "reason")
TRANSFER_COLUMNS = ("from", "to", "quantity", "value", "cost", "hours")
CHECK_COLUMNS = (
    "rule",
    "detail",
    "asset",
    "value",
    "limit",
    "sense",
    "slack",
    "slack_money",
    "shadow_price",
    "passed",
)

#: A limit: the rule's title, its label, and the asset where it is on one.
_Key: TypeAlias = "tuple[str, str, str | None]"
#: A limit that the plan is further away from, as a fraction of NAV, does not bind.
_BINDS = 1e-7


@dataclass(frozen=True, eq=False)
class Plan(Outcome):
    """A rebalance of one portfolio: its status, orders, weights, checks and certificate.

    `objective`, `bound` and `gap` are of the plan itself (whole lots, if there are lots), in fractions of NAV
    per year; those of the convex program are in `solution`. There are orders only if `status.ok`, and then
    every check has passed. `message` says what went wrong where something did, and which rules are short of what they
    ask for but need not be made good (`Reserve`).
    """

    @cached_property
    def orders(self) -> pd.DataFrame:
        """The orders by asset, in a sequence that is safe on the way if there is one (`listing`): each is sent when
        those above are filled. Where that is safe, and elsewhere: sales first (they fund the buys), larger ones first.
        """
        import pandas as pd

        rows = self.order_rows() if self.status.ok else []
        table = pd.DataFrame([row[1:] for row in rows], columns=list(ORDER_COLUMNS))
        table.index = pd.Index([row[0] for row in rows], name="asset", dtype=object)
        return table.astype({"quantity": float, "lots": "Int64", "price": float, "notional": float, "cost": float})

    @property
    def listing(self) -> str:
        """Whether the orders, one after the other as `orders` lists them, are safe on the way: "whole", if every rule
        on the state of the account (cash, collateral, margin, leverage) holds after each of them and at every partial
        fill; "slices", if that takes some cuts, see `sequence`; "none found"; or "" without orders. With several
        accounts: together with `transfers`, in the order of `sequence`."""
        return self._listed[0]

    @cached_property
    def _listed(self) -> tuple[str, tuple[int, ...]]:
        from equipoise.optimizer.sequence.steps import listing

        return listing(self)

    @cached_property
    def sequence(self) -> OrderSequence:
        """The orders, and transfers, as steps that are safe at every partial fill: `sequenced(plan)`."""
        from equipoise.optimizer.sequence.steps import sequenced

        return sequenced(self)

    @cached_property
    def rounding(self) -> pd.DataFrame:
        """Who gains from rounding to whole lots: see `rounding`. Rows buy and sell; NaN where there are too few."""
        from equipoise.optimizer.plans.rounding_bias import Residuals, summary

        return summary([Residuals.of_plan(self)], clusters=False)

    def order_rows(self) -> list[tuple[Any, ...]]:
        """The rows of `orders`, the asset first."""
        assert self.problem is not None and self.verified is not None and self.planned is not None
        portfolio, solution = self.asked.portfolio, self.solution
        prices = solution.prices.rows if solution is not None and solution.prices is not None else None
        traded = np.array([quantity != 0 for quantity in self.trades], dtype=bool)
        why = reasons(self.problem, self.planned, prices, traded)
        rows = []
        for i, quantity in enumerate(self.trades[: len(portfolio.assets)]):
            if not quantity:
                continue
            side = "buy" if quantity > 0 else "sell"
            notional = abs(nearest(quantity, portfolio.exact_price[i]))
            step = self.problem.step
            lots = abs(quantity) / exact(step.lot[i]) if step is not None and step.lot[i] > 0 else None
            # A position closed in full may be no whole number of lots (or of more lots than a column holds).
            whole = int(lots) if lots is not None and lots.denominator == 1 and lots < 2**63 else None
            cost, price = float(self.verified.costs[i]), float(portfolio.price[i])
            reason = sentence(self.problem, why, i)
            rows.append((portfolio.assets[i], side, float(abs(quantity)), whole, price, notional, cost, reason))
        place = {portfolio.assets[i]: k for k, i in enumerate(self._listed[1])}
        return sorted(rows, key=lambda row: (place.get(row[0], 0), row[1] != "sell", -row[5], row[0]))

    @cached_property
    def transfers(self) -> pd.DataFrame:
        """What is moved between accounts: from and to (labels of rows), quantity, value, cost, and the hours until it
        arrives (0: before it is used there). Empty without accounts."""
        import pandas as pd

        rows = []
        accounts = self.problem.accounts if self.status.ok and self.problem is not None else None
        if accounts is not None and self.problem is not None and self.verified is not None:
            price = self.problem.portfolio.exact_price
            for i, transfer in enumerate(accounts.transfers, accounts.rows):
                if quantity := self.trades[i]:
                    ends = (transfer.source, transfer.destination)
                    source, destination = ends if quantity > 0 else ends[::-1]
                    size = abs(quantity)
                    cost = float(self.verified.costs[i])
                    rows.append((source, destination, float(size), float(size * price[i]), cost, transfer.delay))
        return pd.DataFrame(rows, columns=list(TRANSFER_COLUMNS))

    @cached_property
    def exposures(self) -> pd.DataFrame:
        """before, after, target of each underlying over all accounts, in fractions of NAV. Empty without accounts."""
        import pandas as pd

        accounts = self.problem.accounts if self.problem is not None else None
        if accounts is None:
            return pd.DataFrame(columns=["before", "after", "target"], dtype=float)
        asked = self.asked
        after = self.verified.weights if self.status.ok and self.verified else asked.before
        states = {"before": asked.before, "after": after, "target": asked.target}
        return pd.DataFrame({name: accounts.exposures(held) for name, held in states.items()})

    @cached_property
    def quantities(self) -> pd.DataFrame:
        """before and after, in units, by row of the table; of a verified plan `after` is what the next table holds."""
        import pandas as pd

        portfolio = self.asked.portfolio
        after = self.verified.quantities if self.status.ok and self.verified else portfolio.exact_quantity
        back = np.argsort(portfolio.order)
        index = pd.Index([portfolio.assets[i] for i in back], name="asset", dtype=object)
        units = {"before": portfolio.quantity[back], "after": np.array([float(after[i]) for i in back])}
        return pd.DataFrame(units, index=index)

    @cached_property
    def weights(self) -> pd.DataFrame:
        """before, solved (convex), after (these orders), target, lower, upper: fractions of the pre-trade NAV.

        The cash is after trading costs; limits are the narrowest of all rules on the single asset, infinite
        where there are none. Without a plan, `solved` or `after` are what is held.
        """
        import pandas as pd

        if self.problem is None:
            columns = ["before", "solved", "after", "target", "lower", "upper"]
            return pd.DataFrame(columns=columns, dtype=float, index=pd.Index([], name="asset", dtype=object))
        problem, accounts = self.asked, self.problem.accounts
        solved = self.solution.weights if self.solution is not None else None
        if solved is not None:
            solved = self.problem.relaxation.after_costs(solved)
            solved = solved if accounts is None else accounts.held(solved)
        unchanged = problem.before
        after = self.verified.weights if self.status.ok and self.verified else unchanged
        lower, upper = problem.lower, problem.upper
        table = {
            "before": problem.before,
            "solved": unchanged if solved is None else solved,
            "after": after,
            "target": problem.target,
            "lower": np.where(lower <= -problem.outer, -np.inf, lower),
            "upper": np.where(upper >= problem.outer, np.inf, upper),
        }
        back = np.argsort(problem.portfolio.order)
        index = pd.Index([problem.assets[i] for i in back], name="asset", dtype=object)
        return pd.DataFrame({name: values[back] for name, values in table.items()}, index=index)

    @cached_property
    def checks(self) -> pd.DataFrame:
        """Every rule at the final orders: value and limit in its own unit, slack, shadow price, passed.

        `slack` is in fractions of NAV and `slack_money` in cash: how much of the rule is left. The shadow
        price is what one unit of NAV more of the limit would save of the objective, in NAV per year.
        """
        import pandas as pd

        if self.verified is None or self.problem is None:
            return pd.DataFrame(columns=list(CHECK_COLUMNS))
        nav = self.problem.portfolio.nav
        prices = self._shadow_prices(self.verified.checks)
        rows = [
            (
                c.rule,
                c.detail,
                c.asset,
                c.value,
                c.limit,
                ">=" if c.at_least else "<=",
                c.slack,
                c.slack * nav,
                price,
                c.passed,
            )
            for c, price in zip(self.verified.checks, prices, strict=True)
        ]
        return pd.DataFrame(rows, columns=list(CHECK_COLUMNS))

    def _shadow_prices(self, checks: Sequence[Check]) -> list[float]:
        """The price of each check: of the limit that it is about, and 0 where that limit does not bind."""
        problem, solution = self.problem, self.solution
        if problem is None or solution is None or solution.prices is None or solution.weights is None:
            return [0.0] * len(checks)
        found = _priced_limits(problem, solution.weights, solution.prices)
        seen: Counter[_Key] = Counter()
        prices = []
        for check in checks:
            key = check.rule, check.detail, check.asset
            given = found.get(key, [0.0])
            # The limits of one name and asset stand in the order of their rules, as their checks do.
            price = given[min(seen[key], len(given) - 1)]
            seen[key] += 1
            prices.append(0.0 if check.slack > _BINDS or price <= MEANT else price)
        return prices

    def __str__(self) -> str:
        from equipoise.optimizer.plans.report import text

        return text(
            self,
            listing=self.listing,
            weights=self.weights,
            orders=self.orders,
            transfers=self.transfers,
            exposures=self.exposures,
            checks=self.checks,
        )


def _priced_limits(problem: Problem, weights: Array, prices: Prices) -> dict[_Key, list[float]]:
    """The prices of all limits by title, label and asset; those of one key in the order of the rules."""
    found: defaultdict[_Key, list[float]] = defaultdict(list)
    of_rows = list(zip(problem.rows.titles, problem.rows.rows, prices.rows.tolist(), strict=True))
    met: Counter[tuple[str, str]] = Counter()  # the rows of an envelope together
    for title, row, price in of_rows[problem.found_rows]:
        met[title, row.label] += price
    own_label = problem.accounts.bound_rows if problem.accounts else {}
    joint: dict[tuple[str, bool], float] = {}  # bounds that became rows, by asset and whether it is the lower one
    for title, row, price in of_rows[: problem.found_rows.start]:
        label, asset = own_label.get((title, row.label), (row.label, None))
        if asset is not None:
            joint[asset, row.at_least] = price
        if asset is None or title == "Transfer":  # which is no rule's own limit
            found[title, label, asset].append(price)
    for title, envelope in problem.envelopes:
        found[title, envelope.label, None].append(met.pop((title, envelope.label), 0.0))
    for (title, cone), price in zip(problem.cones, prices.cones.tolist(), strict=True):
        found[title, cone.label, None].append(price)
    for key, price in _bound_prices(problem, weights, prices, joint):
        found[key].append(price)
    return found


def _bound_prices(
    problem: Problem, weights: Array, prices: Prices, joint: Mapping[tuple[str, bool], float]
) -> Iterator[tuple[_Key, float]]:
    """The price of each limit on an asset, in the order of the problem's bounds."""
    accounts = problem.accounts
    of_rows = list(zip(problem.rows.rows, prices.rows.tolist(), strict=True))
    floors = dict(zip(reversed(problem.cashes), reversed(of_rows), strict=False))
    pushed = reduced_costs(problem, weights, prices)
    asked = problem.asked.bounds

    def price(i: int, given: Bound, piece: Bound) -> float:
        if accounts and not (np.isfinite(piece.lower[i]) or np.isfinite(piece.upper[i])):
            # The narrowest of all limits on a row that transfers touch is a row of the problem.
            sides = zip((given.lower[i], given.upper[i]), accounts.edges, (True, False), strict=True)
            asset = problem.assets[i]
            return sum(joint.get((asset, lower), 0.0) for limit, edge, lower in sides if limit == edge[i])
        if i in problem.cashes:  # its floor is a row: it holds after costs
            floor = floors.get(i)
            return floor[1] if floor is not None and -floor[0].upper == piece.lower[i] else 0.0
        limit = piece.lower[i] if pushed[i] > 0 else piece.upper[i]
        return abs(float(pushed[i])) if abs(weights[i] - limit) < _BINDS else 0.0

    for k, (title, piece) in enumerate(problem.bounds):
        given = asked[k][1] if k < len(asked) else piece
        for i in np.flatnonzero(given.bounded).tolist():
            yield (title, piece.label, problem.assets[i]), price(i, given, piece)
