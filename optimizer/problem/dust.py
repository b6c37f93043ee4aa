"""Orders below any use are none."""

from __future__ import annotations

import numpy as np

from equipoise.constraints.pieces import Array, Mask
from equipoise.optimizer.problem.problem import Problem

#: A trade of less than this fraction of NAV is what rounding left of a limit: a tenth of what the exact check allows.
DUST = 1e-10


def beyond_zero(problem: Problem) -> Mask:
    """Where what is held lies beyond a limit of 0."""
    before = problem.before
    return np.asarray(((problem.lower == 0) & (before < 0)) | ((problem.upper == 0) & (before > 0)))


def without_dust(problem: Problem, weights: Array) -> Array:
    """The same weights, of one portfolio or a stack, without the trades below DUST, each cash at its residual.

    But a limit of 0 is exact: what is beyond it goes back, however little it is. Whether the weights still keep every
    rule, and are as good, is for the caller to see.
    """
    before = problem.before
    small = (np.abs(weights - before) < DUST) & ~beyond_zero(problem)
    return problem.settled(np.where(small, before, weights))
