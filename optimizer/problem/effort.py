"""How a portfolio is solved: who is asked for the convex answer, and how much is spent on whole-lot plans."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TypedDict

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import check_number
from equipoise.constraints.pieces import Fields


class Spent(TypedDict, total=False):
    """The same as options."""

    effort: int
    exact: bool
    gap: float
    time_limit: float | None
    solver: str


@dataclass(frozen=True)
class Clock:
    """The one limit of time of a portfolio: handed down to everything that takes long, which asks it in its loops."""

    until: float = math.inf  # as time.monotonic counts

    @classmethod
    def of(cls, seconds: float | None) -> Clock:
        """From now on."""
        return cls() if seconds is None else cls(time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds, at least 0."""
        return math.inf if self.until == math.inf else max(0.0, self.until - time.monotonic())

    @property
    def over(self) -> bool:
        return self.until != math.inf and time.monotonic() >= self.until


#: No limit.
ENDLESS = Clock()


@dataclass(frozen=True)
class Effort:
    """How hard to look for a better whole-lot plan, and for a proof.

    effort: how much is spent on a plan whose gap is open, in levels of which each starts from what the one before
        left: 0 rounds and descends only, 1 is the default; a whole number. docs/lots.md says what a level spends.
    exact: whether to go on after that until the gap is at most `gap` of the objective.
    time_limit: seconds a portfolio for all of it, with and without `exact` (None: however long it takes).
    solver: who is asked for the convex answer: see `choose.named`.

    Raises InputError for a number that is none of these.
    """

    effort: int = 1
    exact: bool = False
    gap: float = 1e-6
    time_limit: float | None = 60.0
    solver: str = "auto"

    def __post_init__(self) -> None:
        check_number(self.effort, "effort", at_least=0)
        if int(self.effort) != self.effort:
            raise InputError("must be a whole number", column="effort", value=self.effort)
        if not isinstance(self.exact, bool):
            raise InputError("must be True or False", column="exact", value=self.exact)
        check_number(self.gap, "gap", at_least=0.0)
        if self.time_limit is not None:
            check_number(self.time_limit, "time_limit", at_least=0.0)
        if not isinstance(self.solver, str):
            raise InputError("must be the name of a solver", column="solver", value=self.solver)
        object.__setattr__(self, "effort", int(self.effort))

    def clock(self, portfolios: int = 1) -> Clock:
        """The time of so many portfolios, from now on."""
        return Clock.of(None if self.time_limit is None else portfolios * self.time_limit)

    @classmethod
    def taken(cls, options: Fields) -> Effort:
        """Made of those of the options that are its own, which are taken out of them."""
        return cls(**{name: options.pop(name) for name in cls.__dataclass_fields__ if name in options})
