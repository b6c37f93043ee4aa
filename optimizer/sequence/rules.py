"""Which rules orders are held to on the way, and with which limits.

`watched` lists them. A rule may have another limit on the way than at the end (`on_the_way`), in its own words: a
health factor of 1.5 at the end and of at least 1.1 in between. With the value v of a rule of the limit ℓ, as it is
reported, excess/per = ±(v − ℓ), so that the limit m on the way is the row

    excess ≤ (ℓ − m)·per  for a floor,      excess ≤ (m − ℓ)·per  for a cap

which is a row again: that of the rule with the limit m.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import check_number
from equipoise.constraints.pieces import Array, Figure, Piece, Words
from equipoise.constraints.rules.exposure import Leverage
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
        if title in always and piece.opaque:
            raise InputError("a custom rule can be asked of the whole plan only", column="always", value=title)
    named = {*always, *(rule.title for rule in problem.rules if isinstance(rule, Leverage))}
    cashes = cashes_of(problem)
    return [(title, piece) for title, piece in problem.pieces if piece.on_the_way(title in named, cashes)]


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
        if not any(title == name for title, _ in pieces):
            raise InputError("the rule is not asked on the way, but at the end only", column="on_the_way", value=name)
    return {(title, piece.label): float(given[title]) for title, piece in pieces if title in given}


def limited(problem: Problem, pieces: Sequence[Titled], limits: Limits) -> list[Titled]:
    """The pieces with their limits on the way."""
    cashes = cashes_of(problem)

    def with_limit(title: str, piece: Piece) -> Piece:
        limit = limits.get((title, piece.label))
        try:
            return piece if limit is None else piece.restated(limit, cashes)
        except InputError:
            raise InputError(
                f"is no limit that {title} can have: below it more of some collateral would count than there is",
                column="on_the_way",
                value=limit,
            ) from None

    return [(title, with_limit(title, piece)) for title, piece in pieces]


def ratios(pieces: Sequence[Titled], weights: Array) -> dict[tuple[str, str], tuple[Words, Figure]]:
    """Each watched ratio's words, and its value at these weights (…, n) in them: a float, or (…,)."""
    still, found = 0.0 * weights, {}
    for title, piece in pieces:
        if (words := piece.words) is not None and (value := piece.ratio(weights, still)) is not None:
            found[title, piece.label] = words, value
    return found


def worst_ratios(pieces: Sequence[Titled], weights: Array) -> dict[tuple[str, str], float]:
    """The worst value of each at any of these weights (S, n): the lowest of a floor, the highest of a cap."""
    found = ratios(pieces, weights)
    return {key: float((np.min if words.at_least else np.max)(values)) for key, (words, values) in found.items()}


def repair_limits(pieces: Sequence[Titled], weights: Array) -> Limits:
    """For ratios that are broken at the start: a limit on the way that keeps most of what is left to liquidation."""
    found: dict[tuple[str, str], float] = {}
    for key, (words, value) in ratios(pieces, weights).items():
        if words.liquidation is None:
            continue
        sign, left = 1.0 if words.at_least else -1.0, value - words.liquidation
        if np.isfinite(value) and sign * value < sign * words.stated and sign * left > 0:
            found[key] = value - PART_OF_BUFFER * left
    return found
