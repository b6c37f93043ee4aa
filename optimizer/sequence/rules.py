"""Which rules orders are held to on the way, and with which limits.

`watched` lists them. A rule may have another limit on the way than at the end (`on_the_way`), in its own words: a
health factor of 1.5 at the end and of at least 1.1 in between. With the value v of a rule of the limit ℓ, as it is
reported, excess/per = ±(v − ℓ), so that the limit m on the way is the row

    excess ≤ (ℓ − m)·per  for a floor,      excess ≤ (m − ℓ)·per  for a cap

which is a row again: that of the rule with the limit m.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.exposure import Leverage
from equipoise.constraints.numbers import check_number
from equipoise.constraints.pieces import Array, Bound, Cone, Envelope, Fields, Figure, Opaque, Parts, Piece, Row
from equipoise.optimizer.problem.problem import Problem

#: A ratio that is broken at the start may use up this part of what it is above the venue's liquidation.
PART_OF_BUFFER = 0.1

Titled: TypeAlias = "tuple[str, Piece]"
#: Limits on the way, by a rule's title and label.
Limits: TypeAlias = Mapping[tuple[str, str], float]


def watched(problem: Problem, always: Collection[str]) -> list[Titled]:
    """The rules that must hold after every step.

    Those on the long and short parts of positions (collateral, debt, margin, gross leverage), leverage as a whole,
    the floors under the cashes, and those named in `always`. Raises InputError if a name is of no rule, or of one
    that cannot be asked.
    """
    check_names(problem, always, "always")
    for title, piece in problem.pieces:
        if title in always and isinstance(piece, Opaque):
            raise InputError("a custom rule can be asked of the whole plan only", column="always", value=title)
    named = {*always, *(rule.title for rule in problem.rules if isinstance(rule, Leverage))}
    return [(title, piece) for title, piece in problem.pieces if _is_watched(problem, piece, title in named)]


def _is_watched(problem: Problem, piece: Piece, named: bool) -> bool:
    match piece:
        case Row():
            return named or any(c is not None and bool(np.any(c)) for c in (piece.long, piece.short))
        case Bound():
            cashes = list(cashes_of(problem))
            bounded = np.isfinite(piece.lower) | np.isfinite(piece.upper)
            alone = not np.any(np.delete(bounded, cashes))
            return (alone or named) and bool(np.any(np.isfinite(piece.lower[cashes])))
        case Envelope():
            return named or piece.of_holdings
    return named and isinstance(piece, Cone)


def cashes_of(problem: Problem) -> tuple[int, ...]:
    """The rows of all cashes of the table, the settlement cash first."""
    return tuple(problem.portfolio.cashes.values()) or (problem.cash,)


def check_names(problem: Problem, names: Collection[str], argument: str) -> None:
    titles = {title for title, _ in problem.pieces}
    for name in names:
        if name not in titles:
            raise InputError(
                f"there is no rule of this name; there are {', '.join(sorted(titles))}", column=argument, value=name
            )


def asked_limits(problem: Problem, pieces: Sequence[Titled], given: Mapping[str, float]) -> Limits:
    """`on_the_way` as a user gives it, by names of rules. Raises InputError for what cannot have such a limit."""
    check_names(problem, given, "on_the_way")
    for name, limit in given.items():
        check_number(limit, f"on_the_way: {name}")
        if not any(title == name and not isinstance(piece, Cone) for title, piece in pieces):
            raise InputError("the rule is not asked on the way, but at the end only", column="on_the_way", value=name)
    return {(title, piece.label): float(given[title]) for title, piece in pieces if title in given}


def limited(problem: Problem, pieces: Sequence[Titled], limits: Limits) -> list[Titled]:
    """The pieces with their limits on the way."""
    cashes = list(cashes_of(problem))

    def with_limit(title: str, piece: Piece) -> Piece:
        limit = limits.get((title, piece.label))
        if limit is None:
            return piece
        if isinstance(piece, Bound):
            lower = np.array(piece.lower)
            lower[cashes] = np.where(np.isfinite(lower[cashes]), limit, lower[cashes])
            return replace(piece, lower=lower)
        try:
            return piece if isinstance(piece, Cone) else _loosened(piece, limit)
        except InputError:
            raise InputError(
                f"is no limit that {title} can have: below it more of some collateral would count than there is",
                column="on_the_way",
                value=limit,
            ) from None

    return [(title, with_limit(title, piece)) for title, piece in pieces]


def _loosened(piece: Any, limit: float) -> Any:
    """The row (or envelope) with another limit."""
    if isinstance(piece, Envelope):
        return replace(piece, row=_loosened(piece.row, limit))
    by = piece.stated - limit if piece.at_least else limit - piece.stated
    if piece.per is None:
        return replace(piece, upper=piece.upper + by)
    parts: Fields = {"limit": limit}
    for name in Parts.NAMES:
        own, per = getattr(piece, name), getattr(piece.per, name)
        parts[name] = own if per is None else -by * per if own is None else own - by * per
    return replace(piece, **parts)


def ratios(pieces: Sequence[Titled], weights: Array) -> dict[tuple[str, str], Figure]:
    """The value of each watched ratio at these weights (…, n), in the rule's own words: floats, or (…,)."""
    found: dict[tuple[str, str], Figure] = {}
    still = 0.0 * weights
    for title, piece in pieces:
        row = piece.row if isinstance(piece, Envelope) else piece
        if isinstance(row, Row) and row.per is not None:
            over = piece.excess(weights, still) if isinstance(piece, Envelope) else row.of(weights, still) - row.upper
            found[title, row.label] = row.shown(over, row.per.of(weights, still))
    return found


def worst_ratios(pieces: Sequence[Titled], weights: Array) -> dict[tuple[str, str], float]:
    """The worst value of each at any of these weights (S, n): the lowest of a floor, the highest of a cap."""
    rows = {(title, row.label): row for title, piece in pieces if isinstance(row := getattr(piece, "row", piece), Row)}
    found = ratios(pieces, weights)
    return {key: float((np.min if rows[key].at_least else np.max)(values)) for key, values in found.items()}


def repair_limits(pieces: Sequence[Titled], weights: Array) -> Limits:
    """For ratios that are broken at the start: a limit on the way that keeps most of what is left to liquidation."""
    found: dict[tuple[str, str], float] = {}
    now = ratios(pieces, weights)
    for title, piece in pieces:
        row = piece.row if isinstance(piece, Envelope) else piece
        if not isinstance(row, Row) or row.liquidation is None or (title, row.label) not in now:
            continue
        value, sign = now[title, row.label], 1.0 if row.at_least else -1.0
        if np.isfinite(value) and sign * value < sign * row.stated and sign * (value - row.liquidation) > 0:
            found[title, row.label] = value - PART_OF_BUFFER * (value - row.liquidation)
    return found
