"""What a plan says of rules that are broken before any trade and ask no trade to make it good (`Row.relaxed`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from equipoise.constraints.numbers import ROUNDING_TOLERANCE
from equipoise.constraints.pieces import Array, Bound, Row
from equipoise.optimizer.problem.problem import Problem


def shortfalls(problem: Problem) -> list[str]:
    """A sentence for each such rule, joined for each portfolio of a stack, or of the one; empty where there is none."""
    asked = problem.asked
    nav = np.ravel(asked.portfolio.nav)
    assets = np.reshape(np.asarray(asked.assets, dtype=object), (len(nav), -1))
    found: list[list[str]] = [[] for _ in nav]
    for title, label, relaxed in _relaxed(asked):
        each = np.broadcast_to(relaxed, (len(nav), relaxed.shape[-1]))
        for i, j in np.argwhere(each > ROUNDING_TOLERANCE).tolist():
            of = f" of {assets[i, j]}" if each.shape[1] > 1 else ""
            found[i].append(
                f"{title} ({label}{of}) is short by {each[i, j] * nav[i]:.10g} before any trade: no trade makes that "
                "worse, and none has to make it good"
            )
    return ["; ".join(sentences) for sentences in found]


def _relaxed(problem: Problem) -> Iterator[tuple[str, str, Array]]:
    """(title, label, by how much: (…, n) of each asset, or (…, 1) of a row)."""
    for title, piece in problem.pieces:
        if isinstance(piece, Bound) and piece.relaxed is not None:
            yield title, piece.label, piece.relaxed
        if isinstance(piece, Row) and np.any(relaxed := np.asarray(piece.relaxed)):
            shaped: Any = relaxed[..., None]
            yield title, piece.label, shaped
