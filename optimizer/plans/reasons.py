"""Why an asset is traded: the rule that it broke, its target, or the rules that price it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.constraints.pieces import Array, Count, Indices, Mask, Semicontinuous
from equipoise.optimizer.portfolio.columns import Coded
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import ROUNDING_TOLERANCE

#: A shadow price below this is a solver's noise (costs and risks are worth 1e-4 and more a unit of NAV a year).
MEANT = 1e-9
_TOWARDS = "towards its target"
_TOGETHER = "the whole portfolio (assets move together)"


def reasons(problem: Problem, planned: Array, prices: Array | None, traded: Mask) -> Coded:
    """Each asset's reason, for one portfolio (n,) or a stack (B, n): codes of a few texts. Only where `traded`.

    The first of: a bound that what is held breaks; a target of 0 that is reached; a trade towards the target; the
    rules with a shadow price (`prices` of the problem's rows, (m,) or (B, m)) that the asset has a part in.
    """
    before, target, bounds = problem.before, problem.target, problem.bounds
    names = [f"{side} {title}" for title, _ in bounds for side in ("below", "above")]
    closed = len(names)
    small = [(title, count.counted) for title, count in problem.of_kind(Count) if count.of == "names"]
    small += [(title, least.asked) for title, least in problem.of_kind(Semicontinuous)]
    names += ["closed: its target is 0", "sold out: its target is 0"]
    names += [f"closed: {title} leaves no room for it" for title, _ in small]
    names.append(_TOWARDS)
    others = len(names)
    if problem.accounts is not None:
        planned, before, target = _of_underlying(problem, planned)
    codes = others - (np.abs(planned - target) < np.abs(before - target)).astype(np.intp)
    for k, (_, of) in reversed(list(enumerate(small))):
        np.copyto(codes, closed + 2 + k, where=(planned == 0) & (before != 0) & of)
    ended = (target == 0) & (planned == 0)
    codes[ended] = closed + (before[ended] > 0)
    before = problem.before
    for k, (_, bound) in reversed(list(enumerate(bounds))):
        np.copyto(codes, 2 * k + 1, where=before > bound.upper + ROUNDING_TOLERANCE)
        np.copyto(codes, 2 * k, where=before < bound.lower - ROUNDING_TOLERANCE)
    rest = np.nonzero(traded & (codes == others))
    pricing, titles = _pricing(problem, prices, rest)
    codes[rest] = others + pricing
    return Coded((*names, *(f"for {', '.join(found) or _TOGETHER}" for found in titles)), codes)


def sentence(problem: Problem, found: Coded, i: int) -> str:
    """The reason of one portfolio's asset i with its figures: what is held, and the limit or the target."""
    code, before = int(found.codes[i]), problem.before[i]
    text = found.names[code]
    if text == _TOWARDS and problem.accounts is not None:
        _, was, wanted = _of_underlying(problem, problem.before)
        underlying = problem.asked.portfolio.labels("underlying")[i]
        return f"{underlying} {text} ({was[i]:.2%} to {wanted[i]:.2%} over all accounts)"
    if code < 2 * len(problem.bounds):
        _, bound = problem.bounds[code // 2]
        return f"{text} ({before:.2%}, limit {(bound.upper if code % 2 else bound.lower)[i]:.2%})"
    return f"{text} ({before:.2%} to {problem.target[i]:.2%})" if text == _TOWARDS else text


def _of_underlying(problem: Problem, planned: Array) -> tuple[Array, Array, Array]:
    """(planned, before, target) of each row's underlying over all accounts; of transfers nothing."""
    accounts = problem.accounts
    assert accounts is not None
    labels, rows = accounts.portfolio.labels("underlying"), accounts.rows
    found = []
    for held in (accounts.held(planned), problem.before[:rows], problem.target[:rows]):
        each = accounts.exposures(held)
        found.append(np.append([each[str(label)] for label in labels], np.zeros(len(accounts.ends))))
    return found[0], found[1], found[2]


def _pricing(problem: Problem, prices: Array | None, at: tuple[Indices, ...]) -> tuple[Indices, list[list[str]]]:
    """For each of these entries the titles of the rules that price it, as a code and what the codes mean."""
    *which, asset = at
    part_in: dict[str, Mask] = {}
    for j, title in enumerate(problem.rows.titles):
        priced = np.asarray(prices is not None and prices[(*which, j)] > MEANT)
        if priced.any():
            part_in[title] = part_in.get(title, False) | (priced & _takes_part(problem, j, which, asset))
    codes: Indices = np.zeros(len(asset), dtype=np.intp)
    titles: list[list[str]] = [[]]
    for title, takes in part_in.items():
        codes = 2 * codes + takes
        seen = np.flatnonzero(np.bincount(codes, minlength=2 * len(titles)))
        titles = [titles[code // 2] + [title] * (code % 2) for code in seen.tolist()]
        codes = np.searchsorted(seen, codes)
    return codes, titles


def _takes_part(problem: Problem, j: int, which: Sequence[Indices], asset: Indices) -> Mask:
    """Whether row j has a coefficient for these assets, or for the costs of all."""
    row = problem.rows.rows[j]
    takes = np.broadcast_to(problem.rows.cost[(*which, j)] > 0, asset.shape)
    for c in row.given.values():
        takes = takes | (c[(*which, asset) if c.ndim > 1 else asset] != 0)
    return takes
