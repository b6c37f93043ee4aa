"""What every piece of a rule can be asked: its verbs, which the kinds define."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np

from equipoise.constraints.pieces.parts import Array, Fields, Figure, Mask, Parts
from equipoise.constraints.pieces.states import Check, Settlement, StackState

Kind = TypeVar("Kind", bound="Piece")


@dataclass(frozen=True, eq=False, kw_only=True)
class Words:
    """A limit as the user stated it.

    `limit` (± `upper` unless given), the sense in which it was stated (`at_least` for a floor), and, for ratios such as
    a health factor, `per`: the piece's excess over its upper is divided by the value of `per` before it is added to the
    limit. `liquidation`: the value at which the venue liquidates (None: it is not known).
    """

    upper: Figure
    at_least: bool = False
    limit: Figure = None
    per: Parts | None = None
    #: By how much `upper` is above what the rule asks for, because what is held breaks it already: plans say so.
    relaxed: Figure = 0.0
    liquidation: float | None = None

    @property
    def stated(self) -> Figure:
        """The limit as the user stated it."""
        if self.limit is not None:
            return self.limit
        return 0.0 - self.upper if self.at_least else self.upper  # never −0

    def shown(self, excess: Figure, per: Figure = 1.0) -> Figure:
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


@dataclass(frozen=True, eq=False)
class Rounding:
    """How far rounding to lots may move weights: each by `size`, and each trade's cost by `cost` (0 at the cash), (n,);
    all of it is paid from the cash. What does not say how far it moves is kept by `custom` more."""

    size: Array
    cost: Array
    cash: int
    custom: float = 0.0

    @property
    def of_cash(self) -> float:
        return float(np.sum(self.size) + np.sum(self.cost))


class Wider(Protocol):
    """What is held in several accounts, w = y + M·T, as a function of (y, T): see `optimizer.problem.joint`."""

    @property
    def moves(self) -> Array:
        """M: which rows a transfer leaves and reaches."""
        ...

    @property
    def touched(self) -> Mask:
        """The rows that transfers touch."""
        ...

    def wide(self, of_rows: Array, of_transfers: float = 0.0) -> Array:
        """Numbers of the rows, followed by that of each transfer."""
        ...

    def parts(self, parts: Parts) -> Fields:
        """The coefficients of (y, T)."""
        ...

    def term(self, term: Any) -> Any:
        """A term of an envelope, of what is held, as one of (y, T)."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Piece(ABC):
    """A piece of a rule. What a kind does not define is as here: nothing convex, asked of the final orders alone."""

    label: str

    #: Whether only the cvxpy program knows it (`Shape`), and whether it asks for a search order by order.
    opaque: ClassVar[bool] = False
    discrete: ClassVar[bool] = False

    @property
    def words(self) -> Words | None:
        """How its limit was stated; None where that is one number an asset, or none."""
        return None

    @property
    def shortfall(self) -> Array | None:
        """By how much it asks for less than the rule, because what is held breaks that: (…, n), or (…, 1) in all."""
        return None

    def excess(self, weights: Array, trades: Array) -> Figure:
        """By how much it is broken (at most 0: not): a float, or (B,) for those of a stack."""
        return -np.inf

    def over(self, weights: Array, trades: Array) -> float:
        """`excess` of one portfolio, raised by more than its rounding error."""
        return float(self.excess(weights, trades))

    def ratio(self, weights: Array, trades: Array) -> Figure:
        """The value of a ratio in the rule's words, a float or (B,); None for what is no ratio."""
        words = self.words
        if words is None or words.per is None:
            return None
        return words.shown(self.excess(weights, trades), words.per.of(weights, trades))

    @abstractmethod
    def checks(self, title: str, settled: Settlement) -> Iterator[Check]:
        """The exact check of final orders, of the rule of this title: one or more results."""

    def slack(self, state: StackState) -> tuple[Array, Figure] | None:
        """What is left of it (B,), and a number that its largest coefficient is not above; None: it is not asked."""
        return None

    def on_the_way(self, named: bool, cashes: Sequence[int]) -> bool:
        """Whether it is asked after every order, and not at the end only; `named`: the user, or its rule, says so."""
        return False

    def restated(self, limit: float, at: Sequence[int] = (), side: str = "lower") -> Piece:
        """The same with another limit, in the user's words: of bounds the side's limits of the assets `at`.

        Raises InputError where it would not be convex (a health factor below the largest threshold).
        """
        return self

    def unlimited(self, none: float) -> Self:
        """The same with limits that are none, as large as this."""
        return self

    def tightened(self, rounding: Rounding) -> Any:
        """The same, kept by as much more as rounding to lots may move it."""
        return self

    def paying(self, fees: float, cash: int, rises: Iterator[float]) -> Piece:
        """The same with this much less in the cash; a row takes the next of `rises`: how much each unit raises it."""
        return self

    def joined(self, by: Wider) -> Piece | None:
        """The same, of what is held in several accounts; None where that cannot be said."""
        return None


def of_kind(pieces: Iterable[tuple[str, Piece]], kind: type[Kind]) -> tuple[tuple[str, Kind], ...]:
    """Those of this kind, with their titles."""
    return tuple((title, piece) for title, piece in pieces if isinstance(piece, kind))
