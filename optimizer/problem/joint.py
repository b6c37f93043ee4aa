"""A portfolio in several accounts: each with its own cash and budget, joined by transfers.

The problem's vector is x = (y, T): a row of the table as its trades leave it, y = w₀ + z (of a cash: as everything
leaves it), and the value that each transfer moves, T. What is held at the end is

    w = y + M·T        M: −1 at the row that a transfer leaves, +1 at the one that it reaches; cashes have it in y

and every account k with a cash has its own budget in place of Σ w = 1,

    Σ y over its rows + Σ T out of its cash − Σ T into its cash  =  Σ w₀ over its rows         S·x = S·x₀

so that its cash, after its own costs, pays for its own trades. (The budgets of all accounts and M add up to Σ w = 1.)
Trading costs stay separable in x. Rules are about w: a coefficient c of w becomes (c, Mᵀc), a bound on a row that
transfers touch becomes a row, and as such a row keeps its sign (held, or owed), its long or short part is linear.
Rules and costs of the trades, z = y − w₀, know nothing of transfers.

Risk is that of the economic exposure: rows with the same `underlying` share its column of the model, each `exposure`
(1 unless given) times its value, so that only the sum over all accounts counts, and moving an asset changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import Cells
from equipoise.constraints.pieces import (
    Array,
    Bound,
    Fields,
    Figure,
    Mask,
    Modelled,
    Parts,
    Piece,
    Plane,
    Row,
    Term,
)
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.portfolio.transfers import Transfer, route
from equipoise.optimizer.problem.accounts import Accounts, Budgets, of_holdings
from equipoise.optimizer.problem.costs import CostTerms
from equipoise.optimizer.risk.factored import FactoredRisk

if TYPE_CHECKING:
    import cvxpy as cp

    from equipoise.optimizer.problem.problem import Problem

#: Of plans that are equally good, the one that moves less: what moving the whole NAV counts, in NAV a year.
PREFERENCE = 1e-6


def joined(asked: Problem, transfers: Sequence[Transfer]) -> Problem:
    """The problem of all accounts at once, over (y, T), from that of the rows and the transfers between them.

    Raises InputError for transfers that do not fit the table.
    """
    if asked.fees is not None:
        raise InputError("fees for each order cannot be asked of a portfolio in several accounts yet", column="costs")
    account: Portfolio = asked.portfolio
    n = len(account.assets)
    one_way = [way for transfer in transfers for way in transfer.ways]
    ordered = sorted(one_way, key=lambda transfer: (transfer.label, transfer.cost, transfer.limit, transfer.delay))
    ends = tuple(route(transfer, account) for transfer in ordered)
    labels = account.labels("account")
    cashes, names = tuple(account.cashes.values()), list(account.cashes)
    owner = tuple(names.index(label) if label in names else -1 for label in labels)
    payers = [_payer(transfer, pair, owner, names) for transfer, pair in zip(ordered, ends, strict=True)]
    moves, spends, pays = _moved(owner, cashes, ends, payers)
    build = _Joined(asked, moves, cashes)
    pieces = [*build.pieces(), *_limits(ordered, ends, account, np.array(owner) < 0)]
    flows = _Flows(account, ordered, ends)
    joint = replace(
        account,
        assets=(*account.assets, *(transfer.label for transfer in ordered)),
        quantity=np.append(account.quantity, np.zeros(len(ends))),
        price=np.append(account.price, flows.price),
        target=np.append(account.target, np.zeros(len(ends))),
        order=np.arange(n + len(ends)),
        columns={"quantity": flows.column("quantity"), "price": flows.column("price")},
    )
    accounts = Accounts(
        account,
        tuple(ordered),
        ends,
        cashes,
        owner,
        moves,
        Budgets(spends, spends @ joint.before, pays),
        build.owed,
        build.edges,
        build.bound_rows,
    )
    risk, cost = build.risk(), build.cost(np.array([transfer.cost for transfer in ordered]))
    return replace(
        asked, portfolio=joint, risk=risk, cost=cost, pieces=tuple(pieces), accounts=accounts, unjoined=asked
    )


def _moved(
    owner: Sequence[int], cashes: Sequence[int], ends: Sequence[tuple[int, int]], payers: Sequence[int]
) -> tuple[Array, Array, Array]:
    """M of `Accounts`, and what each account spends on and pays for of `Budgets`."""
    n, size = len(owner), len(owner) + len(ends)
    moves, spends, pays = np.zeros((n, len(ends))), np.zeros((len(cashes), size)), np.zeros((len(cashes), size))
    for i, k in enumerate(owner):
        spends[k, i] = float(k >= 0)
        pays[max(k, 0), i] = 1.0
    for e, (pair, payer) in enumerate(zip(ends, payers, strict=True)):
        for i, sign in zip(pair, (-1.0, 1.0), strict=True):
            if i in cashes:
                spends[cashes.index(i), n + e] = -sign
            else:
                moves[i, e] = sign
        pays[payer, n + e] = 1.0
    return moves, spends, pays


@dataclass(frozen=True)
class _Flows:
    """The transfers as further rows: nothing is held of them, and a unit is one of what they move."""

    account: Portfolio
    transfers: Sequence[Transfer]
    ends: Sequence[tuple[int, int]]

    @property
    def price(self) -> Array:
        return np.array([self.account.price[source] for source, _ in self.ends])

    def column(self, name: str) -> Cells:
        cells = self.account.columns[name]
        more = [cells[source] if name == "price" else 0 for source, _ in self.ends]
        return np.concatenate([cells, np.array(more, dtype=object)])


def _payer(transfer: Transfer, ends: tuple[int, int], owner: Sequence[int], names: Sequence[str]) -> int:
    """The account whose cash pays for a transfer: that given, else that it leaves, else that it reaches."""
    if transfer.paid_by is not None:
        if transfer.paid_by not in names:
            raise InputError(
                f"names an account that has no cash; there are {', '.join(names)}",
                column="paid_by",
                value=transfer.paid_by,
            )
        return names.index(transfer.paid_by)
    return next((owner[i] for i in ends if owner[i] >= 0), 0)


def _limits(
    transfers: Sequence[Transfer], ends: Sequence[tuple[int, int]], account: Portfolio, locked: Mask
) -> list[tuple[str, Piece]]:
    """What each transfer may move; and rows of accounts without a cash change by transfers alone."""
    none = np.full(len(account.assets), np.inf)
    most = np.array([transfer.limit for transfer in transfers]) * _Flows(account, transfers, ends).price / account.nav
    least = np.zeros(len(transfers))
    label = "limit of the transfer"
    found: list[tuple[str, Piece]] = [
        ("Transfer", Bound(label=label, lower=np.append(-none, least), upper=np.append(none, most)))
    ]
    if locked.any():
        low, high = np.where(locked, account.before, -np.inf), np.where(locked, account.before, np.inf)
        free = np.full(len(ends), np.inf)
        bound = Bound(label="no cash to trade with", lower=np.append(low, -free), upper=np.append(high, free))
        found.append(("Transfer", bound))
    return found


@dataclass(frozen=True, eq=False)
class _Term:
    """A term of an envelope, of what is held, as one of (y, T)."""

    term: Term
    joined: _Joined

    @property
    def of_holdings(self) -> bool:
        return self.term.of_holdings

    def _own(self, weights: Array, trades: Array) -> tuple[Array, Array]:
        moves = self.joined.moves
        n = len(moves)
        return weights[..., :n] + np.matmul(moves, weights[..., n:, None])[..., 0], trades[..., :n]

    def of(self, weights: Array, trades: Array) -> Figure:
        return self.term.of(*self._own(weights, trades))

    def plane(self, weights: Array, trades: Array) -> Plane:
        return self._of_all(self.term.plane(*self._own(weights, trades)))

    def modelled(self, parts: Mapping[str, cp.Expression]) -> Modelled:
        import cvxpy as cp

        moves = self.joined.moves
        n = len(moves)
        own = {name: part[:n] for name, part in parts.items()}
        own["weight"] = own["weight"] + moves @ parts["weight"][n:]
        own["long"], own["short"] = cp.Variable(n, nonneg=True), cp.Variable(n, nonneg=True)
        value, constraints, plane = self.term.modelled(own)
        split = own["long"] - own["short"] == own["weight"]
        return Modelled(value, [*constraints, split], lambda price: self._of_all(plane(price)))

    def _of_all(self, plane: Plane) -> Plane:
        slopes, constant = plane
        own = Parts(**{name: np.reshape(slope, -1) for name, slope in slopes.items()})  # one problem, or a stack of one
        return {name: c for name, c in self.joined.parts(own).items() if c is not None}, constant

    def shocked(self, low: Array, high: Array) -> Term:
        raise InputError("a rule is stressed before its accounts are joined", column="rule")

    @property
    def steepness(self) -> Figure:
        return self.term.steepness * (1.0 + np.linalg.norm(self.joined.moves))


class _Joined:
    """Rules, risk and costs of what is held, w = y + M·T, as such of (y, T)."""

    def __init__(self, asked: Problem, moves: Array, cashes: Sequence[int]) -> None:
        self.asked, self.moves = asked, moves
        self.touched = np.any(moves != 0, axis=1)
        self.edges = self._edges()
        before, assets = asked.before, asked.assets
        self.owed = self.touched & (self.edges[1] <= 0)
        # What is held and moved stays held, whatever the rules say.
        self.edges[0][self.touched & ~self.owed & (self.edges[0] < 0)] = 0.0
        wrong = self.touched & ~self.owed & (before < 0)
        if wrong.any():
            i = int(np.argmax(wrong))
            raise InputError(
                "is owed, and transfers touch it: say so by ShortOnly for it (and leave it out of LongOnly)",
                asset=assets[i],
                column="quantity",
                value=asked.portfolio.quantity[i],
            )
        self.bound_rows: dict[tuple[str, str], tuple[str, str]] = {}

    def _edges(self) -> tuple[Array, Array]:
        """The narrowest bounds on what is held at the end, without outer ones."""
        bounds = [b for _, b in self.asked.bounds if not b.of_trade]
        shape = self.asked.before.shape
        lower = np.max([np.full(shape, -np.inf), *(np.broadcast_to(b.lower, shape) for b in bounds)], axis=0)
        upper = np.min([np.full(shape, np.inf), *(np.broadcast_to(b.upper, shape) for b in bounds)], axis=0)
        return lower, upper

    def wide(self, of_rows: Array, of_transfers: float = 0.0) -> Array:
        return np.append(of_rows, np.full(self.moves.shape[1], of_transfers))

    def pieces(self) -> list[tuple[str, Piece]]:
        found: list[tuple[str, Piece]] = []
        for title, piece in self.asked.pieces:
            if (wide := piece.joined(self)) is None:
                raise InputError("this rule cannot be asked of a portfolio in several accounts yet", column=title)
            found.append((title, wide))
        return [*found, *self._bounds()]

    def parts(self, parts: Parts) -> Fields:
        """The coefficients of (y, T): a long or short part is linear where a row keeps its sign."""
        n, zero = len(self.asked.assets), np.zeros(len(self.asked.assets))
        given = {name: np.broadcast_to(parts.given.get(name, zero), (n,)) for name in Parts.NAMES}
        long, short = given["long"], given["short"]
        straight = self.touched | ((long != 0) & (long + short == 0))
        linear = given["weight"] + np.where(straight, np.where(self.owed, -short, long), 0.0)
        bent = {name: np.where(straight, 0.0, given[name]) for name in ("long", "short")}
        found = {
            "weight": of_holdings(linear, self.moves),
            "buy": self.wide(given["buy"]),
            "sell": self.wide(given["sell"]),
        }
        found |= {name: self.wide(values) for name, values in bent.items()}
        return {name: values if values.any() else None for name, values in found.items()}

    def term(self, term: Term) -> _Term:
        return _Term(term, self)

    def _bounds(self) -> list[tuple[str, Piece]]:
        """The narrowest bounds on rows that transfers touch, as rows; what is held stays held, what is owed owed."""
        found: list[tuple[str, Piece]] = []
        bounds = [(title, b) for title, b in self.asked.bounds if not b.of_trade]
        for i in np.flatnonzero(self.touched):
            asset = self.asked.assets[i]
            for sign, edge, name in ((-1.0, self.edges[0][i], "lower"), (1.0, self.edges[1][i], "upper")):
                title, own = next(
                    ((t, b.label) for t, b in bounds if np.isfinite(edge) and getattr(b, name)[i] == edge),
                    ("Transfer", "no more than there is"),
                )
                if np.isfinite(edge):
                    label = f"{own} of {asset}"
                    self.bound_rows[title, label] = (own, asset)
                    unit = np.zeros(len(self.asked.assets))
                    unit[i] = sign
                    row = Row(
                        label=label, weight=of_holdings(unit, self.moves), upper=sign * float(edge), at_least=sign < 0
                    )
                    found.append((title, row))
        return found

    def risk(self) -> FactoredRisk:
        """Specific risk of rows that transfers touch becomes a factor of theirs."""
        risk = self.asked.risk
        own = np.diag(np.sqrt(risk.specific))[self.touched & (risk.specific > 0)]
        factors = np.concatenate([risk.factors, own])
        factors = np.concatenate([factors, factors @ self.moves], axis=1)
        return FactoredRisk(factors, self.wide(np.where(self.touched, 0.0, risk.specific)))

    def cost(self, rates: Array) -> CostTerms:
        """Trading costs of the rows, the rate of each transfer, and what holding costs: linear where a row keeps its
        sign."""
        cost = self.asked.cost
        terms = {f.name: self.wide(getattr(cost, f.name)) for f in fields(CostTerms)}
        n = len(self.asked.assets)
        terms["buy"][n:] = terms["sell"][n:] = rates
        carry = np.where(self.touched, np.where(self.owed, -cost.short, cost.long), 0.0)
        for name, sign in (("long", 1.0), ("short", -1.0)):
            terms[name][:n] = np.where(self.touched, sign * carry, terms[name][:n])
            terms[name][n:] = PREFERENCE + sign * (self.moves.T @ carry)
        return CostTerms(**terms)
