"""A rule, and what it may ask of the portfolio that it is applied to: the base of every file in this folder.

A rule turns itself into `pieces` for an account: one portfolio, with arrays (n,), or a stack of B portfolios, with
arrays (B, n); a rule that is written for the last axis serves both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import LARGEST
from equipoise.constraints.pieces import Array, Bound, Figure, Mask, Piece, Place

#: One for each asset: of a portfolio a tuple, of a stack an array (B, n).
Labels: TypeAlias = Any
#: A number for all assets, one for each by label, or the name of a column of the portfolio's table.
Numbers: TypeAlias = float | Mapping[str, float] | str


class Account(Protocol):
    """What a rule may ask of the portfolio it is applied to, or of a stack of B portfolios with n assets each."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n,) for one portfolio, (B, n) for a stack: that of all arrays here."""
        ...

    @property
    def assets(self) -> Labels:
        """The labels: a tuple, or an array (B, n)."""
        ...

    @property
    def cash(self) -> Place:
        """What `array[account.cash]` is the settlement cash's entry with: a position, or an index of all B."""
        ...

    def cash_of(self, account: str | None) -> Place:
        """The same for the cash of this account of the portfolio; None: the settlement cash."""
        ...

    @property
    def nav(self) -> Figure:
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
        blank: bool | Mask = False,
        where: Mask | None = None,
    ) -> Array:
        """One finite number an asset (see `numbers`), or an InputError that names asset, column and value.

        `cash`, if given, is the number of the settlement cash whatever the table says. `missing` is that of assets
        which a mapping does not name (None: that is an error). A blank cell is an error unless `blank`, for all
        assets or for a mask of them, says that it means the same; rules say so in their declaration
        (`Declared.blanks`). `where`: the assets that are asked for; cells of others are not read."""
        ...

    def labels(self, column: str) -> Labels:
        """A text column: one label an asset, None where it is blank; a tuple, or an array (B, n)."""
        ...

    def members(self, column: str) -> Mapping[str, Mask]:
        """Each label of a text column, in sorted order, with the mask of its assets."""
        ...

    def exposure(self, column: str) -> Array:
        """What a unit of value counts in the sums of this label column: in those of `underlying` what the column
        `exposure` says (blank or no such column: 1), in all others 1."""
        ...

    def positions(self, assets: Iterable[str] | None, argument: str) -> Mask:
        """The mask of these assets (None: of all but the cash)."""
        ...

    def first(self, wrong: Mask) -> int:
        """The position of the first asset that is wrong, for an InputError that names it.

        A stack raises NotStackable instead: each of these portfolios makes its own error."""
        ...


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


def exempted(account: Account, except_: Sequence[str] | None) -> Mask:
    """The mask of the assets that a rule leaves out; None would read as "all of them" and is refused."""
    if except_ is None:
        raise InputError("must be a list of assets; leave it out for none", column="except_", value=None)
    return account.positions(except_, "except_")


def unbounded(account: Account) -> tuple[Array, Array]:
    """A fresh pair of (−inf, +inf) bounds to be narrowed."""
    return np.full(account.shape, -np.inf), np.full(account.shape, np.inf)


def bounded(
    label: str, where: Mask, lower: Array | float = -np.inf, upper: Array | float = np.inf, **more: Any
) -> Bound:
    """lower ≤ w ≤ upper at these assets, no bound elsewhere."""
    low, high = np.where(where, lower, -np.inf), np.where(where, upper, np.inf)
    return Bound(label=label, lower=low, upper=high, **more)


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
    wanted = f"must be a finite number of at least {at_least:g}" + (
        f", at most {at_most:g}" if at_most < LARGEST else ""
    )
    problem = wanted if of is None else f"account {of!r}: {wanted}"
    refuse(~((values >= at_least) & (values <= at_most)), values, account, argument, problem)


def refuse(wrong: Mask, values: Array, account: Account, argument: str, problem: str) -> None:
    """An InputError that names the first asset whose value is wrong, if there is one."""
    if wrong.any():
        i = account.first(wrong)
        raise InputError(problem, asset=account.assets[i], column=argument, value=values[i])
