"""The problem as a sparse quadratic program in factor form, for the solvers that take matrices.

    minimise ½ xᵀPx + qᵀx   subject to   A x = b,   G x ≤ h,   low ≤ x ≤ high

`split`: x = (w, z⁺, z⁻, y[, w⁻]) with y = F(w − b) and w − z⁺ + z⁻ = w₀; `trade`: w itself is left out, w = w₀ + z⁺ −
z⁻, and the bounds on w are bounds on z⁺ and z⁻. The matrices are those of a whole family; q, b, h, low and high are
each portfolio's. The objective is in units of the cost rate, so that absolute tolerances
mean something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from .instances import Array, Instance


@dataclass(frozen=True, eq=False)
class Vectors:
    q: Array
    b: Array
    h: Array
    low: Array
    high: Array


class Program:
    """The matrices P (upper triangle and lower), A and G of one family, and `vectors` for each of its portfolios."""

    def __init__(self, like: Instance, form: str = "split") -> None:
        self.form = form
        F, n, k = sp.csc_matrix(like.factors), like.n, len(like.factors)
        self.unit = float(np.max(like.cost))
        self.sizes = n, k
        diagonal = (like.aversion * like.specific + like.penalty) / self.unit
        eye, risk = sp.identity(n, format="csc"), sp.identity(k) * (like.aversion / self.unit)
        one, empty = sp.csc_matrix(np.ones((1, n))), sp.csc_matrix((n, n))
        blocks: list[Any]
        A: list[list[Any]]
        split, rows = form == "split", like.rows
        blocks = (
            [sp.diags(diagonal), empty, empty] if split else [sp.kron([[1.0, -1.0], [-1.0, 1.0]], sp.diags(diagonal))]
        )
        if split:
            A = [[F, None, None, -sp.identity(k)], [one, None, None, None], [eye, -eye, eye, None]]
        else:
            A = [[F, -F, -sp.identity(k)], [one, -one, None]]
        blocks.append(risk)
        self.G = sp.csc_matrix((0, (3 if split else 2) * n + k))
        if rows is not None:
            blocks.append(empty)
            A = [[*line, sp.csc_matrix((line[0].shape[0], n))] for line in A]
            side, zero, y = rows.weight + rows.long, np.zeros((len(rows.upper), k)), sp.csc_matrix((n, k))
            of_weights = [side, rows.buy, rows.sell] if split else [side + rows.buy, rows.sell - side]
            negative = [-eye, empty, empty, y, -eye] if split else [-eye, eye, y, -eye]
            stacked = np.hstack([*of_weights, zero, rows.long + rows.short])
            self.G = sp.vstack([sp.csc_matrix(stacked), sp.hstack(negative)], format="csc")
        self.P = sp.block_diag(blocks, format="csc")
        self.A = sp.bmat(A, format="csc")

    def vectors(self, p: Instance) -> Vectors:
        n, k = self.sizes
        curvature, gain = p.aversion * p.specific, p.gain if p.gain is not None else 0.0
        free, zero, cost = np.full(k, np.inf), np.zeros(n), p.cost / self.unit
        h, of_negative = np.zeros(0), 0
        if p.rows is not None:
            h, of_negative = np.append(p.rows.upper, zero), n
        if self.form == "split":
            slope = (-curvature * p.target - p.penalty * p.before - gain) / self.unit
            q = [slope, cost, cost]
            b = np.concatenate([p.factors @ p.target, [1.0], p.before])
            low, high = [p.lower, zero, zero], [p.upper, zero + np.inf, zero + np.inf]
        else:
            slope = (curvature * (p.before - p.target) - gain) / self.unit
            q = [cost + slope, cost - slope]
            b = np.append(p.factors @ (p.target - p.before), 1.0 - np.sum(p.before))
            low = [np.maximum(p.lower - p.before, 0.0), np.maximum(p.before - p.upper, 0.0)]
            high = [np.maximum(p.upper - p.before, 0.0), np.maximum(p.before - p.lower, 0.0)]
            if p.rows is not None:
                h = h + np.append(-(p.rows.weight + p.rows.long) @ p.before, p.before)
        tail = np.zeros(of_negative)
        return Vectors(
            np.concatenate([*q, np.zeros(k), tail]),
            b,
            h,
            np.concatenate([*low, -free, tail]),
            np.concatenate([*high, free, tail + np.inf]),
        )

    def weights(self, p: Instance, x: Array) -> Array:
        n = self.sizes[0]
        return p.before + x[:n] - x[n : 2 * n] if self.form == "trade" else x[:n].copy()

    def start(self, p: Instance, w: Array) -> Array:
        """The x that belongs to these weights."""
        z, y = w - p.before, p.factors @ (w - p.target)
        traded = [z.clip(0), (-z).clip(0), y]
        weights, negative = [w] if self.form == "split" else [], [(-w).clip(0)] if p.rows is not None else []
        return np.concatenate([*weights, *traded, *negative])
