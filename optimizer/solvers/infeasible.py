"""Why nothing keeps all rules: in the rules' own names, with the numbers that show it, and proven.

First what arithmetic shows (bounds that cross, bounds that cannot add up to 1). Then `conflict` finds a minimal set of
rules that cannot hold together. For each of its limits one more program says how far it would have to go for all
others to be kept; what is printed of that is rounded to the side that works, and tried.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.pieces import Bound, Cone, Envelope, Piece, Row
from equipoise.constraints.rules.terms import Brackets
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import ROUNDING_TOLERANCE, Status
from equipoise.optimizer.solvers.conflict import Conflict, Feasibility, pushing

_SHOWN = 5  # names of assets in a sentence, and limits of a rule
_DIGITS = 4  # of a figure
_FINEST = -5  # and the power of ten below which none is printed
_STEPS = 8  # towards the best of a ratio (Dinkelbach 1967)
_PRICED = 1e-6  # below this the price of a row is a solver's noise; they add up to 1 at most
_SAME = 1e-9  # figures that differ by no more are one, relatively


@dataclass(frozen=True)
class Explanation:
    """`status` INFEASIBLE only if proven; `rules` are the titles of a minimal set of rules in conflict, of which those
    in `undecided` may be one too many."""

    status: Status
    text: str
    rules: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()


def at_once(problem: Problem) -> Explanation | None:
    """Conflicts that arithmetic shows, without a solver; None if there is none of these."""
    return _crossing(problem) or _sums(problem)


def explain(problem: Problem, background: Container[str] = ()) -> Explanation:
    """The explanation of a problem for which no solver found an answer.

    Rules whose titles are in the `background` are taken for granted: they are in no conflict set.
    """
    feasibility = Feasibility(problem)
    found = feasibility.minimal(background)
    if isinstance(found, Conflict):
        return _Sentences(feasibility, found).explanation()
    if found.weights is not None:
        held = problem.violation(problem.before) <= ROUNDING_TOLERANCE
        which = "what is held keeps all rules, but how far it is from the best plan is not known"
        text = f"No solver gave an answer that passed the check; {which if held else 'all rules can be kept'}."
    elif problem.opaque:
        titles = ", ".join(_unique(title for title, _ in problem.opaque))
        text = f"No answer passed the check, and no conflict was proven; the custom rules ({titles}) may be in one."
    else:
        text = "No solver gave an answer that passed the check, and no conflict between the rules was proven."
    return Explanation(Status.UNSOLVED, text)


# --- without a solver ---------------------------------------------------------------------------------------


def _crossing(problem: Problem) -> Explanation | None:
    crossed = np.flatnonzero(problem.lower > problem.upper + ROUNDING_TOLERANCE)
    if not len(crossed):
        return None
    sentences, pairs = [], []
    for i in crossed[:_SHOWN]:
        low = max(problem.bounds, key=lambda found: float(found[1].lower[i]))
        high = min(problem.bounds, key=lambda found: float(found[1].upper[i]))
        pairs.append(_unique([low[0], high[0]]))
        sentences.append(
            f"{problem.assets[i]}: {low[0]} ({low[1].label}) asks for at least {_percent(problem.lower[i])}, "
            f"{high[0]} ({high[1].label}) for at most {_percent(problem.upper[i])}"
        )
    if len(crossed) > _SHOWN:
        sentences.append(f"and {len(crossed) - _SHOWN} more assets like these")
    rules = next((pair for pair in pairs if _each_alone(problem, pair)), None)
    return None if rules is None else Explanation(Status.INFEASIBLE, "; ".join(sentences) + ".", rules)


def _each_alone(problem: Problem, titles: tuple[str, ...]) -> bool:
    """Whether each of these rules can be kept alone: they are bounds that add up."""
    rests = [replace(problem, pieces=tuple((t, p) for t, p in problem.pieces if t == title)) for title in titles]
    if problem.accounts is not None or any(rest.of_kind(Row) or rest.cones or rest.envelopes for rest in rests):
        return len(titles) == 1
    return len(titles) == 1 or all(np.all(r.lower <= r.upper) and not _adding_up(r) for r in rests)


def _adding_up(problem: Problem) -> str:
    """Which of the bounds cannot add up to 1: 'upper', 'lower', or neither (empty)."""
    if np.sum(problem.upper) - 1.0 < -ROUNDING_TOLERANCE:
        return "upper"
    return "lower" if np.sum(problem.lower) - 1.0 > ROUNDING_TOLERANCE else ""


def _sums(problem: Problem) -> Explanation | None:
    # What one account lacks another may send.
    name = _adding_up(problem) if problem.accounts is None else ""
    if not name:
        return None
    bounds = replace(problem, pieces=problem.bounds)
    total, rest = float(np.sum(getattr(bounds, name))), _needed(bounds)
    rules = _unique(title for title, _ in rest.bounds)
    others = sum(title in rules for title, _ in problem.pieces) > len(rest.bounds)
    floored = any(np.isfinite(bound.lower[problem.cash]) for _, bound in rest.bounds)
    if others or (floored and name == "lower" and np.any(problem.cost.buy + problem.cost.sell)):
        return None  # what costs take, and what else these rules ask for, a program must say
    return Explanation(
        Status.INFEASIBLE,
        f"The {name} limits of all assets and the cash ({', '.join(rules)}) add up to {_percent(total)} of "
        f"NAV, {'less' if name == 'upper' else 'more'} than the 100 % that weights add up to.",
        rules,
    )


def _needed(problem: Problem) -> Problem:
    """The problem of bounds without those rules without which the others cannot add up either."""
    for title in _unique(title for title, _ in problem.bounds):
        fewer = replace(problem, pieces=tuple((t, p) for t, p in problem.pieces if t != title))
        if np.any(fewer.lower > fewer.upper) or _adding_up(fewer):
            problem = fewer
    return problem


# --- with one -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Limit:
    """One limit: what gives way (`Gives`), the piece that it is of, and how it is shown."""

    kind: str  # 'rows', 'cones', 'envelopes', 'lower' or 'upper'
    place: int
    piece: Piece  # one of the problem's
    row: Row | None  # what says how it is shown: the row, that of the envelope, or that of a floor of the cash

    @property
    def label(self) -> str:
        return str(self.piece.label)

    @property
    def stated(self) -> float:
        if self.row is not None:
            return float(self.row.stated)
        return float(self.piece.upper if isinstance(self.piece, Cone) else getattr(self.piece, self.kind)[self.place])

    @property
    def at_least(self) -> bool:
        return self.row.at_least if self.row is not None else self.kind == "lower"

    @property
    def ratio(self) -> bool:
        return self.row is not None and self.row.per is not None

    def moved(self, problem: Problem, limit: float) -> Problem:
        """The problem with another limit here.

        Raises InputError where that is no convex rule, or not known: the limit of some envelopes is in their terms.
        """
        if not self.known:
            raise InputError(f"the terms of {self.label} depend on the limit")
        side, place = self.kind, self.place
        if self.row is not None and self.row is not self.piece.words:
            side, place = "lower", _cash_of(self.row)
        piece = self.piece.restated(limit, [place], side)
        return replace(problem, pieces=tuple((t, piece if p is self.piece else p) for t, p in problem.pieces))

    @property
    def known(self) -> bool:
        """Whether its rule with another limit is known."""
        return not isinstance(self.piece, Envelope) or all(isinstance(term, Brackets) for term in self.piece.terms)


def _cash_of(floor: Row) -> int:
    """The cash whose floor this row is."""
    assert floor.weight is not None
    return int(np.flatnonzero(floor.weight)[0])


class _Sentences:
    """What is said of a conflict."""

    def __init__(self, feasibility: Feasibility, conflict: Conflict) -> None:
        self._feasibility, self._conflict, self._problem = feasibility, conflict, feasibility.problem

    def explanation(self) -> Explanation:
        titles, undecided = self._conflict.titles, self._conflict.undecided
        together = "cannot all be kept" if len(titles) > 1 else "cannot be kept, whatever the others are"
        sentences = [f"{_listed([self._named(title) for title in titles])} {together}."]
        for title in titles:
            found = [self._least(title, limit) for limit in self._limits(title)]
            sentences += [sentence for sentence in found if sentence]
        if len(sentences) == 1:
            sentences.append("To move one limit alone is not enough.")
        if undecided:
            sentences.append(f"Whether the others can be kept without {_listed(undecided, 'or')} was not decided.")
        return Explanation(Status.INFEASIBLE, " ".join(sentences), titles, undecided)

    def _named(self, title: str) -> str:
        """The rule, with the assets at whose bounds it is in the way."""
        at: dict[str, list[str]] = {}
        for label, _, i in pushing(self._conflict.trial, title):
            at.setdefault(label, []).append(str(self._problem.assets[i]))
        named = []
        for label, assets in at.items():
            more = f" and {len(assets) - _SHOWN} more" if len(assets) > _SHOWN else ""
            named.append(f"{label}: {', '.join(assets[:_SHOWN])}{more}")
        return f"{title} ({'; '.join(named)})" if named else title

    def _limits(self, title: str) -> Iterator[_Limit]:
        """The rule's limits that take part in the proof: curves and rows; of bounds one, if it is all there is."""
        prices, problem = self._conflict.trial.prices, self._problem
        assert prices is not None
        for j, (name, cone) in enumerate(problem.cones):
            if name == title and prices.cones[j] > 0:
                yield _Limit("cones", j, cone, None)
        for j, (name, piece) in enumerate(problem.envelopes):
            if name == title:
                yield _Limit("envelopes", j, piece, piece.row)
        rows = problem.rows
        first = problem.found_rows.start
        own = np.delete(prices.rows, slice(first, first + len(prices.rows) - len(rows.rows)))
        priced = [j for j in np.argsort(-own).tolist() if rows.titles[j] == title and own[j] > _PRICED]
        for j in priced[:_SHOWN]:
            row = rows.rows[j]
            yield _Limit("rows", j, row if j < first else self._floor(title, row), row)
        pushed = pushing(self._conflict.trial, title)
        if len(pushed) == 1 and not priced:
            _, side, i = pushed[0]
            bounds = [bound for name, bound in problem.bounds if name == title]
            yield _Limit(side, i, min(bounds, key=lambda b: abs(getattr(b, side)[i] - getattr(problem, side)[i])), None)

    def _floor(self, title: str, row: Row) -> Bound:
        """The bound whose floor of a cash this row is."""
        cash = _cash_of(row)
        return max((bound for name, bound in self._problem.bounds if name == title), key=lambda b: float(b.lower[cash]))

    def _least(self, title: str, limit: _Limit) -> str:
        """How far this limit alone would have to go; empty if that is not enough."""
        value = self._best(limit)
        if value is None:
            return ""
        scale, unit = (1.0, "") if limit.ratio else (100.0, " %")
        figure = self._rounded(limit, value, scale)
        if limit.known and figure is None:
            return ""
        shown = f"about {_figure(value, scale)}{unit}" if figure is None else f"{figure}{unit}"
        asked = f"{_figure(limit.stated, scale, digits=10)}{unit}"
        label = limit.label
        if limit.kind in ("lower", "upper"):
            label = f"{limit.kind} limit of {self._problem.assets[limit.place]}"
        if limit.at_least:
            return f"{title}: the {label} reaches {shown} at best if all other limits are kept; {asked} is asked for."
        return f"{title}: the {label} must be at least {shown} for all other limits to be kept; the limit is {asked}."

    def _best(self, limit: _Limit) -> float | None:
        """The nearest value of this limit with which all others can be kept, as they are; None if there is none.

        For a ratio by steps to the best one, each the ratio at the weights that exceed the last one's row the least
        (Dinkelbach 1967); where the row with another limit is not known, the ratio after the first.
        """
        problem, row, value = self._problem, limit.row, None
        for _ in range(_STEPS):
            raw = self._feasibility.least(problem, limit.kind, limit.place)
            if raw is None or raw.weights is None:
                return value
            if row is None or row.per is None:
                return limit.stated + (raw.excess if not limit.at_least else -raw.excess)
            weights = problem.after_costs(raw.weights)
            last, value = row.stated, row.shown(raw.excess, row.per.of(weights, weights - problem.before))
            if not np.isfinite(value):
                return None
            if abs(value - last) <= _SAME * max(1.0, abs(value)):
                break
            try:
                problem = limit.moved(self._problem, value)
                row = row.restated(value)
            except InputError:
                break
        return value

    def _rounded(self, limit: _Limit, value: float, scale: float) -> str | None:
        """The value in so many digits with which, as printed, all rules can be kept; None if none was found.

        More digits where less than ten units of the last one are missing.
        """
        exact = Decimal(repr(float(value))) * Decimal(scale)
        missing = abs(exact - Decimal(repr(float(limit.stated))) * Decimal(scale))
        power = min(exact.adjusted() + 1 - _DIGITS, missing.adjusted() - 1)
        last = Decimal(1).scaleb(max(_FINEST, power))
        outward, step = (ROUND_FLOOR, -last) if limit.at_least else (ROUND_CEILING, last)
        nearest = exact.quantize(last, ROUND_HALF_EVEN)
        near = abs(nearest - exact) <= Decimal(_SAME) * max(abs(exact), Decimal(1))
        begin = nearest if near else exact.quantize(last, outward)
        for figure in (begin, begin + step):
            try:
                moved = limit.moved(self._problem, float(figure) / scale)
            except InputError:
                return None
            if self._feasibility.with_limits(moved).weights is not None:
                return f"{figure.normalize():f}" if figure else "0"
        return None


def _figure(value: float, scale: float, digits: int = _DIGITS) -> str:
    return f"{scale * value if abs(value) > _SAME else 0.0:.{digits}g}"


def _percent(value: float) -> str:
    return f"{_figure(value, 100.0)} %"


def _listed(names: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join([", ".join(names[:-1])] * bool(names[:-1]) + [*names[-1:]])


def _unique(titles: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(titles))
