"""What a plan says of rules that are broken before any trade and ask no trade to make it good (`Row.relaxed`)."""

from __future__ import annotations

import numpy as np

from equipoise.constraints.numbers import ROUNDING_TOLERANCE
from equipoise.optimizer.problem.problem import Problem


def shortfalls(problem: Problem) -> list[str]:
    """A sentence for each such rule, joined for each portfolio of a stack, or of the one; empty where there is none."""
    asked = problem.asked
    nav = np.ravel(asked.portfolio.nav)
    assets = np.reshape(np.asarray(asked.assets, dtype=object), (len(nav), -1))
    found: list[list[str]] = [[] for _ in nav]
    for title, piece in asked.pieces:
        if (missing := piece.shortfall) is None:
            continue
        each = np.broadcast_to(missing, (len(nav), missing.shape[-1]))
        for i, j in np.argwhere(each > ROUNDING_TOLERANCE).tolist():
            of = f" of {assets[i, j]}" if each.shape[1] > 1 else ""
            found[i].append(
                f"{title} ({piece.label}{of}) is short by {each[i, j] * nav[i]:.10g} before any trade: no trade makes "
                "that worse, and none has to make it good"
            )
    return ["; ".join(sentences) for sentences in found]
