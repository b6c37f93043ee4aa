"""When to trade: a trigger decides whether to trade, the rules decide where to go.

Every trigger measures one `value` against one `threshold` and reports what is left until it fires, whether it
fires or not. `a & b` and `a | b` join triggers; all of them are always measured. Another kind of trigger is a
class derived from `Trigger` with the one method `due`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from datetime import date, datetime, tzinfo
from math import inf
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import check_number
from equipoise.constraints.pieces import Array
from equipoise.constraints.rules.bands import DriftBand, Width, outside
from equipoise.optimizer.plans.report import clean
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import ROUNDING_TOLERANCE

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("trigger", "fired", "value", "threshold", "distance", "unit", "name", "reason")

#: A moment as users give it.
Moment: TypeAlias = "str | date | np.datetime64 | None"


@dataclass(frozen=True)
class Due:
    """What a trigger saw; true exactly if it fired.

    `name` is the asset or the label it is about, `reason` a sentence. `parts` are the answers of joined
    triggers, also of those that decided nothing; value and threshold then count those that fired and must.
    """

    trigger: str
    fired: bool
    value: float
    threshold: float
    unit: str
    reason: str
    name: str | None = None
    parts: tuple[Due, ...] = ()

    @property
    def distance(self) -> float:
        """threshold − value: how far it is from firing."""
        return self.threshold - self.value

    def __bool__(self) -> bool:
        return self.fired

    @property
    def table(self) -> pd.DataFrame:
        """One row a trigger: this one (level 0), then its parts (level 1), each followed by its own."""
        import pandas as pd

        rows = [[level, *(getattr(due, column) for column in COLUMNS)] for level, due in self._walk()]
        return pd.DataFrame(rows, columns=["level", *COLUMNS])

    def __str__(self) -> str:
        return "\n".join(
            f"{'  ' * level}{'due' if due.fired else 'not due'}: {clean(due.trigger)}: "
            + (f"{due.value:g} of {len(due.parts)} fired" if due.parts else due.reason)
            for level, due in self._walk()
        )

    def _walk(self, level: int = 0) -> Iterator[tuple[int, Due]]:
        yield level, self
        for part in self.parts:
            yield from part._walk(level + 1)


@dataclass(frozen=True, repr=False)
class Trigger(ABC):
    """Decides whether it is time to trade. `a & b` fires if both do, `a | b` if at least one does."""

    @abstractmethod
    def due(self, problem: Problem, *, now: Moment = None, last: Moment = None) -> Due:
        """Whether to trade this portfolio at `now`; `last` is when it was last rebalanced (None: never)."""

    def __and__(self, other: Trigger) -> Joined:
        return Joined.of("&", self, other) if isinstance(other, Trigger) else NotImplemented

    def __or__(self, other: Trigger) -> Joined:
        return Joined.of("|", self, other) if isinstance(other, Trigger) else NotImplemented

    def __bool__(self) -> bool:
        # `a and b` would silently be b alone.
        raise InputError("join triggers with & and |, not with and / or; ask due(...) whether one has fired")

    def __repr__(self) -> str:
        given = [(f, value) for f in fields(self) if (value := getattr(self, f.name)) != f.default]
        shown = (f"{f.name}={value!r}" if f.kw_only else repr(value) for f, value in given)
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class Joined(Trigger):
    """Triggers joined by "&" (all must fire) or "|" (one is enough); write `a & b` or `a | b`."""

    sign: Literal["&", "|"]
    triggers: tuple[Trigger, ...]

    @classmethod
    def of(cls, sign: Literal["&", "|"], *sides: Trigger) -> Joined:
        """a & b & c is one trigger of three, not two of two."""
        inner = (s.triggers if isinstance(s, Joined) and s.sign == sign else (s,) for s in sides)
        return cls(sign, tuple(trigger for triggers in inner for trigger in triggers))

    def due(self, problem: Problem, *, now: Moment = None, last: Moment = None) -> Due:
        parts = tuple(trigger.due(problem, now=now, last=last) for trigger in self.triggers)
        count, needed = sum(part.fired for part in parts), len(parts) if self.sign == "&" else 1
        fired = count >= needed
        reason = "; ".join(part.reason for part in parts if part.fired == fired)  # those that decided it
        return Due(repr(self), fired, float(count), float(needed), "triggers", reason, parts=parts)

    def __repr__(self) -> str:
        return f" {self.sign} ".join(f"({t!r})" if isinstance(t, Joined) else repr(t) for t in self.triggers)


@dataclass(frozen=True, repr=False)
class Calendar(Trigger):
    """Fires when `now` has reached the calendar's next date after `last`; at once if there is no `last`.

    `every` is a pandas offset alias or object. Dates: "1MS" (month starts), "QS", "B" (business days),
    "W-FRI", "WOM-3FRI", or a CustomBusinessDay with an exchange's holidays. A date begins at 00:00; it fires
    if one is in (last, now]. "2MS" is the second month start after `last`. Intervals: "12h" is time that
    passes, fired if now ≥ last + 12 hours; "1D" and "7D" are days by the wall clock, of 23 or 25 hours where
    summer time begins or ends. A time that the clock skips is its next one, a time that it shows twice the first.

    The clock is that of `tz`, or of `now` without it; all of now, last and tz have a time zone, or none has.
    value and threshold: days of 24 hours since `last`, and from `last` to the next date.
    """

    every: str | pd.offsets.BaseOffset
    _: KW_ONLY
    tz: str | tzinfo | None = None

    def __post_init__(self) -> None:
        import pandas as pd

        if self._offset().n < 1:
            raise InputError("must go forward in time", column="every", value=self.every)
        try:
            pd.Timestamp(0, tz=self.tz if isinstance(self.tz, str | tzinfo | None) else "?")
        except (LookupError, ValueError):
            raise InputError("must be a zone such as 'Europe/London'", column="tz", value=self.tz) from None

    def due(self, problem: Problem, *, now: Moment = None, last: Moment = None) -> Due:
        if now is None:
            raise InputError("is needed, no clock is read here: now=pd.Timestamp.now(tz=...)", column="now")
        at, since = self._by_one_clock(_moment(now, "now"), _moment(now if last is None else last, "last"))
        if at < since:
            raise InputError(f"is before last, {since}; are they swapped?", column="now", value=str(at))
        if last is None:
            return Due(repr(self), True, inf, 0.0, "days", "never rebalanced (no `last` was given)")
        then = self._after(since)
        value, threshold = ((moment - since).total_seconds() / 86400 for moment in (at, then))
        reason = f"due since {then}" if at >= then else f"next due at {then}, in {then - at}"
        return Due(repr(self), bool(at >= then), value, threshold, "days", f"{reason} (last: {since})")

    def _by_one_clock(self, at: pd.Timestamp, since: pd.Timestamp) -> tuple[pd.Timestamp, pd.Timestamp]:
        zone = self.tz or at.tz or since.tz
        if zone is None:
            return at, since
        for argument, moment in (("now", at), ("last", since)):
            if moment.tz is None:
                raise InputError(
                    "has no time zone while another of now, last and tz has one; say where this clock hangs: "
                    f"pd.Timestamp(..., tz={str(zone)!r})",
                    column=argument,
                    value=str(moment),
                )
        return at.tz_convert(zone), since.tz_convert(zone)

    def _after(self, last: pd.Timestamp) -> pd.Timestamp:
        """The first time at which it is due after this one."""
        from pandas.tseries import offsets as of

        offset = self._offset()
        if isinstance(offset, of.Tick) and not isinstance(offset, of.Day):  # a day is a tick until pandas 3
            return last + offset
        # By the wall clock every day has 24 hours.
        wall = last.tz_localize(None)
        interval = isinstance(offset, of.Day | of.BusinessHour) or type(offset) is of.DateOffset
        if interval or (isinstance(offset, of.Week) and getattr(offset, "weekday", None) is None):
            wall += offset
        else:
            wall = (wall.normalize() + offset).normalize()
        for first in (True, False):
            then = wall.tz_localize(last.tz, ambiguous=first, nonexistent="shift_forward")
            if then > last:
                return then
        raise InputError(f"does not lead forward from {last}", column="every", value=self.every)

    def _offset(self) -> pd.offsets.BaseOffset:
        from pandas.tseries.frequencies import to_offset
        from pandas.tseries.offsets import BaseOffset

        try:
            plain = isinstance(self.every, BaseOffset) or (isinstance(self.every, str) and self.every.isascii())
            return to_offset(self.every if plain else "?")
        except ValueError:
            raise InputError("must be a pandas offset: '7D'", column="every", value=self.every) from None


def _moment(given: Moment, argument: str) -> pd.Timestamp:
    import pandas as pd

    try:
        if isinstance(given, str | date | np.datetime64):
            moment = pd.Timestamp(datetime.fromisoformat(given) if isinstance(given, str) else given)
            if not pd.isna(moment):
                return moment
    except ValueError:
        pass
    raise InputError("must be a date and time; text as in '2027-01-31T16:00'", column=argument, value=given)


@dataclass(frozen=True, repr=False)
class Drift(Trigger):
    """Fires if the weights w before trading are too far from the targets b. One of

    Drift()                       an asset, or the sum of a label, is outside the full band of a DriftBand
                                  of the Rebalancer (`inside` is a destination, not a trigger)
    Drift(absolute=, relative=)   the same for a band of its own, given as to DriftBand: absolute=0.05 with
                                  relative=0.25 is Swedroe's "5/25", the lesser of 0.05 and 0.25·|b|
    Drift(0.05)                   ½·Σ|w − b| > 0.05, with the cash: the one-way turnover to the targets
    Drift(tracking_error=0.02)    √((w − b)ᵀΣ(w − b)) > 0.02, annual; needs a risk model

    It does not fire at the edge itself, nor within 1e-12 beyond it, which is rounding. For bands, value is
    |w − b| and threshold the band's width on that side, for the asset or label `name` that is furthest
    outside (or nearest to its edge); otherwise `name` is the asset that adds most to the value.
    """

    total: float | None = None
    _: KW_ONLY
    tracking_error: float | None = None
    absolute: Width | None = None
    relative: Width | None = None
    combine: Literal["lesser", "greater"] = "lesser"
    by: str | None = None
    assets: Sequence[str] | None = None
    cash: bool = False

    def __post_init__(self) -> None:
        sums = {a: value for a in ("total", "tracking_error") if (value := getattr(self, a)) is not None}
        for argument, value in sums.items():
            check_number(value, argument, at_least=0.0)
        band = self._own_band()
        if len(sums) + (band is not None) > 1:
            raise InputError("measures one thing; join two: Drift(0.05) | Drift()", column="Drift")
        if band is None and (self.combine, self.by, self.assets, self.cash) != ("lesser", None, None, False):
            raise InputError("combine, by, assets and cash need absolute= or relative=", column="Drift")

    def _own_band(self) -> DriftBand | None:
        if self.absolute is None and self.relative is None:
            return None
        return DriftBand(self.absolute, self.relative, 1.0, self.combine, self.by, self.assets, self.cash)

    def due(self, problem: Problem, *, now: Moment = None, last: Moment = None) -> Due:
        away = problem.before - problem.target
        if self.total is not None:
            threshold, unit, said = self.total, "NAV", "half the sum of the drifts is"
            value, each = 0.5 * float(np.sum(np.abs(away))), np.abs(away)
        elif self.tracking_error is not None:
            if problem.portfolio.risk is None:
                raise InputError("needs a risk model: Rebalancer(risk=...)", column="tracking_error")
            threshold, unit, said = self.tracking_error, "per year", "the tracking error is"
            value, each = problem.tracking_error(problem.before), away * problem.risk.gradient(away)
        else:
            return self._bands(problem)
        i, fired = int(np.argmax(each)), value > threshold + ROUNDING_TOLERANCE
        name = problem.assets[i] if each[i] > 0 else None
        reason = f"{said} {_percent(value)}, {'above' if fired else 'not above'} {_percent(threshold)}"
        if name is not None:
            at = f"{_percent(problem.before[i])}, target {_percent(problem.target[i])}"
            reason += f"; most of it by {clean(name)} at {at}"
        return Due(repr(self), bool(fired), value, threshold, unit, reason, name)

    def _bands(self, problem: Problem) -> Due:
        own = self._own_band()
        bands = [own] if own else [rule for rule in problem.rules if isinstance(rule, DriftBand)]
        if not bands:
            raise InputError("finds no DriftBand among the constraints; give it a width", column="Drift")
        names, (w, b, low, high) = _in_bands(problem, bands)
        value = np.abs(w - b)
        width = np.where(w > b, high - b, np.where(w < b, b - low, np.minimum(high - b, b - low)))
        if not np.isfinite(width).any():
            return Due(repr(self), False, 0.0, inf, "NAV", "no asset has a drift band")
        fired = int(np.sum(outside(w, low, high)))
        i = int(np.argmin(np.round(width - value, 12)))  # of those that are equal but for rounding, the first
        side = "inside the edge of" if not fired else "above" if w[i] > b[i] else "below"
        reason = (
            f"{clean(names[i])} at {_percent(w[i])} is {_percent(abs(width[i] - value[i]))} {side} its band "
            f"{_percent(low[i])} to {_percent(high[i])}, target {_percent(b[i])}"
        )
        reason += f" ({fired - 1} more outside)" if fired > 1 else ""
        return Due(repr(self), fired > 0, float(value[i]), float(width[i]), "NAV", reason, names[i])


def _in_bands(problem: Problem, bands: Iterable[DriftBand]) -> tuple[list[str], Array]:
    """Every asset or label, and its weight, target, lower and upper edge (4, N)."""
    names, columns = list[str](), [np.empty((4, 0))]
    for band in bands:
        if band.by is None:
            names += problem.assets
            columns.append(np.array([problem.before, problem.target, *band.band(problem.portfolio)]))
            continue
        for label, member, centre, lower, upper in band.groups(problem.portfolio):
            names.append(label)
            columns.append(np.array([[member @ problem.before], [centre], [lower], [upper]]))
    return names, np.hstack(columns)


def _percent(share: float) -> str:
    return f"{100 * share:.6g}%"
