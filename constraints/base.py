"""What a rule is: data over a portfolio.

A convex rule about a portfolio is one or more of these pieces, all in fractions of the pre-trade NAV:

    Row      weight·w + long·w⁺ + short·w⁻ + buy·z⁺ + sell·z⁻ ≤ upper
    Bound    lower ≤ w ≤ upper
    Cone     ‖(M (w − c), δ∘(w − c))‖₂ ≤ upper
    Step     a traded quantity is a whole number of lots, and zero or at least a minimum
    Semicontinuous    a position is zero or at least a minimum
    Count    at most so many orders, or names
    Envelope the worst of more rows than one can list (tiered margin, CVaR, k sigmas: see `terms`)

with w the weights after trading, w⁺ and w⁻ their long and short parts, z = w − w₀ the trades, z⁺ buys
and z⁻ sells. Whatever a rule's pieces say is derived from these numbers for every rule at once: the
cvxpy constraint, the closed forms, the exact check, the shadow price and the report.

At the settlement cash a rule must hold for what is left after trades *and* trading costs, and for what there is
before the costs; rules need not know that.
The arrays have one entry an asset, along the last axis. An account is one portfolio, with arrays (n,), or a
stack of B portfolios, with arrays (B, n); a rule that is written for the last axis serves both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import LARGEST

if TYPE_CHECKING:
    from equipoise.constraints.envelope import Envelope

Array: TypeAlias = NDArray[np.float64]

#: A number for all assets, one for each by label, or the name of a column of the portfolio's table.
Numbers: TypeAlias = float | Mapping[str, float] | str


class Account(Protocol):
    """What a rule may ask of the portfolio it is applied to, or of a stack of B portfolios with n assets each."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n,) for one portfolio, (B, n) for a stack: that of all arrays here."""
        ...

    @property
    def assets(self) -> Any:
        """The labels: a tuple, or an array (B, n)."""
        ...

    @property
    def cash(self) -> Any:
        """What `array[account.cash]` is the settlement cash's entry with: a position, or an index of all B."""
        ...

    def cash_of(self, account: str | None) -> Any:
        """The same for the cash of this account of the portfolio; None: the settlement cash."""
        ...

    @property
    def nav(self) -> Any:
        """A number, or an array (B, 1)."""
        ...

    @property
    def before(self) -> Array:
        """Weights before trading."""
        ...

    @property
    def target(self) -> Array: ...
    @property
    def price(self) -> Array: ...
    @property
    def risk_factors(self) -> Array:
        """F (k × n, or B × k × n) of the annual covariance FᵀF + diag(risk_specific)."""
        ...

    @property
    def risk_specific(self) -> Array: ...

    def numbers(
        self,
        given: Numbers,
        argument: str,
        *,
        cash: float | None = None,
        missing: float | None = None,
        blank: bool | NDArray[np.bool_] = False,
        where: NDArray[np.bool_] | None = None,
    ) -> Array:
        """One finite number an asset (see `numbers`), or an InputError that names asset, column and value.

        `cash`, if given, is the number of the settlement cash whatever the table says. `missing` is that of assets
        which a mapping does not name (None: that is an error). A blank cell is an error unless `blank`, for all
        assets or for a mask of them, says that it means the same; rules say so in their declaration
        (`Declared.blanks`). `where`: the assets that are asked for; cells of others are not read."""
        ...

    def labels(self, column: str) -> Any:
        """A text column: one label an asset, None where it is blank; a tuple, or an array (B, n)."""
        ...

    def members(self, column: str) -> Mapping[str, NDArray[np.bool_]]:
        """Each label of a text column, in sorted order, with the mask of its assets."""
        ...

    def exposure(self, column: str) -> Array:
        """What a unit of value counts in the sums of this label column: in those of `underlying` what the column
        `exposure` says (blank or no such column: 1), in all others 1."""
        ...

    def positions(self, assets: Iterable[str] | None, argument: str) -> NDArray[np.bool_]:
        """The mask of these assets (None: of all but the cash)."""
        ...

    def first(self, wrong: NDArray[np.bool_]) -> int:
        """The position of the first asset that is wrong, for an InputError that names it.

        A stack raises NotStackable instead: each of these portfolios makes its own error."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Parts:
    """weight·w + long·w⁺ + short·w⁻ + buy·z⁺ + sell·z⁻; an absent coefficient is None."""

    weight: Array | None = None
    long: Array | None = None
    short: Array | None = None
    buy: Array | None = None
    sell: Array | None = None

    NAMES: ClassVar[tuple[str, ...]] = ("weight", "long", "short", "buy", "sell")

    def take(self, i: int) -> Any:
        """Those of portfolio i of a stack."""
        fixed = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in fixed.items():
            if name in self.NAMES:
                fixed[name] = value[i] if np.ndim(value) > 1 else value
            elif isinstance(value, Parts):
                fixed[name] = value.take(i)
            elif isinstance(value, np.ndarray):
                fixed[name] = float(value[i])
        return type(self)(**fixed)

    def of(self, weights: Array, trades: Array) -> Any:
        """The value at these weights and trades: a float, or (B,) for those of a stack."""
        given = [(c, name) for name in self.NAMES if (c := getattr(self, name)) is not None]
        return sum((dot(c, part(name, weights, trades)) for c, name in given), 0.0)


def dot(one: Array, other: Array) -> Any:
    """Σ one·other over the assets: a float for one portfolio, (B,) for a stack, with the same bits.

    A product of matrices would not do: what it gives for one row depends on how many rows there are.
    """
    summed = np.sum(one * other, axis=-1)
    return summed if summed.ndim else float(summed)


def part(name: str, weights: Any, trades: Any) -> Any:
    """w, w⁺, w⁻, z⁺ or z⁻ by its name in `Parts`; for arrays of any shape, or single Fractions."""
    of_weights = name in ("weight", "long", "short")
    value = weights if of_weights else trades
    if name == "weight":
        return value
    signed = value if name in ("long", "buy") else -value
    return np.maximum(signed, 0.0) if isinstance(signed, np.ndarray) else max(signed, 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Row(Parts):
    """weight·w + long·w⁺ + short·w⁻ + buy·z⁺ + sell·z⁻ ≤ upper.

    Convex exactly when long + short ≥ 0 and buy + sell ≥ 0 for every asset, which is checked here.

    A report shows the row in the user's words: `limit` (± `upper` unless given), the sense in which it was
    stated (`at_least` for a floor), and, for ratios such as a health factor, `per`: the row's excess over
    its upper is divided by the value of `per` before it is added to the limit. `liquidation`: the value at
    which the venue liquidates (None: it is not known).

    For a stack, a coefficient is (n,) or (B, n), and `upper` and `limit` are floats or (B,).
    """

    label: str
    upper: Any
    at_least: bool = False
    limit: Any = None
    per: Parts | None = None
    #: By how much `upper` is above what the rule asks for, because what is held breaks it already: plans say so.
    relaxed: Any = 0.0
    liquidation: float | None = None

    @property
    def stated(self) -> Any:
        """The limit as the user stated it."""
        if self.limit is not None:
            return self.limit
        return 0.0 - self.upper if self.at_least else self.upper  # never −0

    def shown(self, excess: Any, per: Any = 1.0) -> Any:
        """The rule's value in the user's words, from the row's excess over `upper` and the value of `per`.

        Both floats, both Fractions, or arrays (B,). Over nothing (a health factor without debt) it is infinite.
        """
        sign = -1.0 if self.at_least else 1.0
        if isinstance(excess, np.ndarray):
            with np.errstate(divide="ignore", invalid="ignore"):
                value = self.stated + sign * (excess / per)
            beyond = np.copysign(np.inf, np.where(excess == 0, -sign, sign * excess))
            return np.where(np.asarray(per) == 0, beyond, value)
        if per == 0:
            return float(np.copysign(np.inf, sign * float(excess) or -sign))
        return self.stated + sign * float(excess / per)

    def __post_init__(self) -> None:
        for one, other in (("long", "short"), ("buy", "sell")):
            pair = [c for c in (getattr(self, one), getattr(self, other)) if c is not None]
            if pair and np.any(sum(pair) < 0):
                raise InputError(
                    f"{self.label}: the coefficients of {one} and {other} add up to less than zero for some "
                    "asset, which is not a convex rule; check the sign of the numbers given"
                )


@dataclass(frozen=True, eq=False, kw_only=True)
class Bound:
    """lower ≤ w ≤ upper, one number an asset, (n,) or (B, n); ±inf where there is none."""

    label: str
    lower: Array
    upper: Array
    #: Whether it limits the trade, and not what is held at the end: with transfers between accounts they differ.
    of_trade: bool = False
    #: By how much `lower` is below what the rule asks for, as in `Row`.
    relaxed: Array | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Cone:
    """‖(M (w − c), δ∘(w − c))‖₂ ≤ upper: M (k × n) and δ (n) around the centre c (n).

    For a stack, M is (k, n) or (B, k, n), and δ and c are (n,) or (B, n).
    """

    label: str
    upper: float
    matrix: Array
    diagonal: Array
    centre: Array

    def of(self, weights: Array) -> Any:
        """The left side: a float, or (B,) for the weights of a stack."""
        away = weights - self.centre
        exposure = np.matmul(self.matrix, away[..., None])[..., 0]
        length = np.hypot(np.linalg.norm(exposure, axis=-1), np.linalg.norm(self.diagonal * away, axis=-1))
        return length if length.ndim else float(length)

    def over(self, weights: Array, trades: Array) -> float:
        """By how much one portfolio breaks it, raised by more than the rounding error."""
        return float(self.of(weights) * (1.0 + 1e-13) - self.upper)


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """Traded quantities are whole multiples of `lot` (0: any quantity), and zero or at least the larger
    of `min_quantity` (units) and `min_notional` (cash); closing a position is exempt. They are at most
    `max_quantity` and `max_notional` (None: no limit). Units, not weights; arrays (n,) or (B, n)."""

    label: str
    lot: Array
    min_quantity: Array
    min_notional: Array
    max_quantity: Array | None = None
    max_notional: Array | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Semicontinuous:
    """A position, long or short, is zero or at least the larger of `weight` (of NAV) and `notional` (cash) in size;
    arrays (n,), 0 where nothing is asked."""

    label: str
    weight: Array
    notional: Array


@dataclass(frozen=True, eq=False, kw_only=True)
class Count:
    """At most `limit` of the assets in the mask `counted` (n,) have an order, or a position after trading."""

    label: str
    of: Literal["orders", "names"]
    counted: NDArray[np.bool_]
    limit: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Opaque:
    """A convex rule that is no data: `build(weights, trades)` returns cvxpy constraints on two cvxpy
    expressions, `violation` measures them at numbers. Only the cvxpy program can solve it."""

    label: str
    build: Callable[[Any, Any], Sequence[Any]]
    violation: Callable[[Array, Array], float]


Piece: TypeAlias = "Row | Bound | Cone | Step | Semicontinuous | Count | Opaque | Envelope"


class Declared:
    """What a class says about itself where it is made: `class Mine(Rule, stacks=True, blanks=("cap",)): ...`"""

    #: Whether its method also serves a stack of portfolios. Not inherited: a subclass may do what only holds for one.
    stacks: ClassVar[bool] = False
    #: The arguments whose columns may have blank cells: their meaning is that of an asset which a mapping leaves out,
    #: and stands in the class's documentation. Blanks in all other columns are errors.
    blanks: ClassVar[tuple[str, ...]] = ()

    #: The arguments that say what an asset is, wherever it lies; the others say what a row may do or counts for there.
    own: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, *, stacks: bool = False, blanks: Sequence[str] = (), own: Sequence[str] = ()) -> None:
        super().__init_subclass__()
        cls.stacks, cls.blanks, cls.own = stacks, (*cls.blanks, *blanks), (*cls.own, *own)

    def numbers(self, account: Account, argument: str, **how: Any) -> Array:
        """One number an asset for this argument: see `Account.numbers`."""
        return account.numbers(getattr(self, argument), argument, blank=argument in self.blanks, **how)


@dataclass(frozen=True, kw_only=True)
class Rule(Declared, ABC):
    """A rule: `pieces` turns it into data for one portfolio.

    `name` is what reports call it; the class's own name unless given.
    """

    name: str | None = None

    @property
    def title(self) -> str:
        return self.name or type(self).__name__

    @abstractmethod
    def pieces(self, account: Account) -> Sequence[Piece]:
        """The rule as data for this portfolio. Raises InputError where the rule does not fit the table.

        For a stack, the same pieces with a leading axis B. Raises NotStackable for portfolios that do not fit.
        """

    def label_columns(self) -> tuple[str, ...]:
        """The columns whose labels say how many pieces there are: a stack's portfolios have the same labels."""
        return ()


def ones(account: Account, value: float = 1.0) -> Array:
    """`value` at all assets but the cash, where it is zero."""
    return np.where(account.positions(None, "assets"), value, 0.0)


def exempted(account: Account, except_: Sequence[str] | None) -> NDArray[np.bool_]:
    """The mask of the assets that a rule leaves out; None would read as "all of them" and is refused."""
    if except_ is None:
        raise InputError("must be a list of assets; leave it out for none", column="except_", value=None)
    return account.positions(except_, "except_")


def unbounded(account: Account) -> tuple[Array, Array]:
    """A fresh pair of (−inf, +inf) bounds to be narrowed."""
    return np.full(account.shape, -np.inf), np.full(account.shape, np.inf)


def check_range(
    values: Array,
    account: Account,
    argument: str,
    *,
    at_least: float,
    at_most: float = LARGEST,
    of: str | None = None,
) -> None:
    """Every asset's number within [at_least, at_most], or an InputError that names the first asset outside.

    `of` is the account that the rule is about, for the error."""
    wrong = ~((values >= at_least) & (values <= at_most))
    if wrong.any():
        where = account.first(wrong)
        wanted = f"a finite number of at least {at_least:g}" + (f", at most {at_most:g}" if at_most < LARGEST else "")
        problem = f"must be {wanted}" if of is None else f"account {of!r}: must be {wanted}"
        raise InputError(problem, asset=account.assets[where], column=argument, value=values[where])
