"""The prices of the best bound: every asset's function replaced by its convex hull over some of its lot points.

A mixture θ of each asset's points (Σθ = 1, θ ≥ 0) has the mean weight w(θ); the program

    minimise  (aversion/2)·‖G(w(θ) − b)‖² + Σ θ·cost    subject to  Σ θ·rows ≤ upper,  Σ w(θ) = 1

is the dual of the lot bound restricted to these points, and its prices λ = aversion·G(w − b), μ, ν are those of the
bound. It is solved by Mehrotra's primal-dual interior-point method. Given the prices each asset's mixture is on its
own, so that a step solves one system in the k + m + 1 prices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise.constraints.pieces import Array, Mask
from equipoise.optimizer.lots.bounds.dual import LotDual, Prices
from equipoise.optimizer.lots.points.points import Points

_STEPS = 40
_ENOUGH, _RESIDUAL = 1e-6, 1e-7  # what is left of the objective, and of NAV
_TO_THE_WALL = 0.99
_RIDGE = 1e-12


@dataclass(frozen=True, eq=False)
class Mixture:
    """The prices, the program's objective, each asset's mean weight and its variance (n,) under the mixture, and the
    points' shares (K, n)."""

    prices: Prices
    objective: float
    weights: Array
    spread: Array
    shares: Array


@dataclass(frozen=True, eq=False)
class _Program:
    """The program in units of the objective: costs (K, n), rows (m + 1, K, n) of which the last is the budget."""

    G: Array
    weights: Array
    valid: Mask
    cost: Array
    rows: Array
    limits: Array
    centre: Array  # Gb
    aversion: float


@dataclass(frozen=True, eq=False)
class _Iterate:
    """θ and its multipliers z (K, n); slacks s and prices μ of the rows (m,); λ (k,) and ν."""

    θ: Array
    z: Array
    s: Array
    μ: Array
    λ: Array
    ν: float

    def moved(self, step: _Iterate, length: float) -> _Iterate:
        return _Iterate(*(getattr(self, x) + length * getattr(step, x) for x in self.__dataclass_fields__))

    def furthest(self, step: _Iterate, valid: Mask) -> float:
        """How long the step may be until one of θ, z, s, μ is zero; at most 1 / 0.99."""
        pairs = ((self.θ[valid], step.θ[valid]), (self.z[valid], step.z[valid]), (self.s, step.s), (self.μ, step.μ))
        return 1.0 / max(_TO_THE_WALL, *(float(np.max(-dx / x, initial=0.0)) for x, dx in pairs))

    def complementarity(self) -> float:
        return float(np.sum(self.θ * self.z)) + float(self.s @ self.μ)


def solve(dual: LotDual, points: Points, scale: float, enough: float = np.inf) -> Mixture | None:
    """The best mixture of these points, or None if the method breaks down; `scale` is the size of the objective.

    It ends early where the prices bound the objective from below by `enough`, also where there is no mixture at all.
    """
    problem, G = dual.allowed.problem, dual.split.factors
    cost, rows = dual.parts(points)
    program = _Program(
        G=G,
        weights=np.where(points.valid, points.weights, 0.0),
        valid=points.valid,
        cost=np.where(points.valid, cost, 0.0) / scale,
        rows=np.where(points.valid, np.concatenate([rows, points.weights[None]]), 0.0),
        limits=np.append(dual.limits, 1.0),
        centre=G @ problem.target,
        aversion=problem.aversion / scale,
    )
    try:
        with np.errstate(all="ignore"):  # of what breaks down it is seen below
            at = _solved(program, enough / scale)
    except np.linalg.LinAlgError:
        return None
    if not (np.all(np.isfinite(at.θ)) and np.all(np.isfinite(at.λ)) and np.all(np.isfinite(at.μ))):
        return None
    θ, w = at.θ / at.θ.sum(axis=0), program.weights
    mean = (θ * w).sum(axis=0)
    away = G @ mean - program.centre
    objective = scale * (float(np.sum(θ * program.cost)) + 0.5 * program.aversion * float(away @ away))
    prices = Prices(scale * at.λ, scale * np.maximum(at.μ, 0.0), scale * at.ν)
    return Mixture(prices, objective, mean, (θ * (w - mean) ** 2).sum(axis=0), θ)


def _solved(program: _Program, enough: float) -> _Iterate:
    valid, m = program.valid, len(program.limits) - 1
    pairs = float(valid.sum() + m)
    θ = valid / valid.sum(axis=0)
    left = (program.limits - np.tensordot(program.rows, θ, 2))[:m]
    at = _Iterate(θ, valid.astype(np.float64), np.maximum(left, 0.1), np.ones(m), np.zeros(len(program.G)), 0.0)
    for _ in range(_STEPS):
        system = _System(program, at)
        mean = at.complementarity() / pairs
        if (system.residual <= _RESIDUAL and mean * pairs <= _ENOUGH) or system.value >= enough:
            break
        guess = system.step(-at.θ * at.z, -at.s * at.μ)
        after = at.moved(guess, at.furthest(guess, valid)).complementarity() / pairs
        aim = mean * (after / mean) ** 3
        step = system.step(valid * (aim - at.θ * at.z - guess.θ * guess.z), aim - at.s * at.μ - guess.s * guess.μ)
        at = at.moved(step, min(1.0, _TO_THE_WALL * at.furthest(step, valid)))
    return at


class _System:
    """Newton's equations at an iterate: θ, z and s are taken out of them, the prices are left.

    `value` is the bound that the iterate's prices give, over these points.
    """

    def __init__(self, program: _Program, at: _Iterate) -> None:
        self.program, self.at = program, at
        G, w, R, valid, m = program.G, program.weights, program.rows, program.valid, len(at.μ)
        k, y = len(G), np.append(at.μ, at.ν)
        self.safe = np.where(valid, at.θ, 1.0)
        self.Θ = Θ = np.where(valid, at.θ / np.where(valid, at.z, 1.0), 0.0)
        # The multiplier of Σθ = 1 is free; it is taken out by centring the points of each asset.
        self.total = Θ.sum(axis=0)
        self.w_mid, self.R_mid = (Θ * w).sum(axis=0) / self.total, (Θ * R).sum(axis=1) / self.total
        self.w_off, self.R_off = w - self.w_mid, R - self.R_mid[:, None, :]
        pulled = Θ * self.w_off
        flat = self.R_off.reshape(m + 1, -1)
        system = np.empty((k + m + 1, k + m + 1))
        system[:k, :k] = (G * (pulled * self.w_off).sum(axis=0)) @ G.T
        system[k:, :k] = (pulled * self.R_off).sum(axis=1) @ G.T
        system[:k, k:] = system[k:, :k].T
        system[k:, k:] = (flat * Θ.reshape(-1)) @ flat.T
        own = np.arange(k + m + 1)
        system[own[:k], own[:k]] += 1.0 / program.aversion
        system[own[k:-1], own[k:-1]] += at.s / at.μ
        system[own, own] *= 1.0 + _RIDGE
        system[-1, -1] += _RIDGE
        self.unit = 1.0 / np.sqrt(system[own, own])
        self.system = self.unit[:, None] * system * self.unit

        reduced = program.cost + w * (G.T @ at.λ) + np.tensordot(y, R, 1)
        own_price = (Θ * (reduced - at.z)).sum(axis=0) / self.total
        self.unpriced = np.where(valid, reduced - own_price - at.z, 0.0)
        cheapest = np.where(valid, reduced, np.inf).min(axis=0)
        spread = 0.5 * float(at.λ @ at.λ) / program.aversion
        self.value = float(cheapest.sum() - at.λ @ program.centre - y @ program.limits) - spread
        self.lost = 1.0 - at.θ.sum(axis=0)
        self.factors_left = G @ (at.θ * w).sum(axis=0) - program.centre - at.λ / program.aversion
        self.rows_left = np.tensordot(R, at.θ, 2) - program.limits
        self.rows_left[:m] += at.s
        self.residual = max(float(np.abs(x).max()) for x in (self.rows_left, self.unpriced, self.lost))

    def step(self, aim: Array, aim_rows: Array) -> _Iterate:
        """The step after which θ·z and s·μ change by these aims, to first order, and all else is met."""
        program, at, Θ = self.program, self.at, self.Θ
        G, k, m = program.G, len(at.λ), len(at.μ)
        toward = aim / self.safe - self.unpriced
        right = np.concatenate(
            [
                G @ ((Θ * self.w_off * toward).sum(axis=0) + self.w_mid * self.lost) + self.factors_left,
                np.tensordot(self.R_off, Θ * toward, 2) + self.R_mid @ self.lost + self.rows_left,
            ]
        )
        right[k:-1] += aim_rows / at.μ
        prices = self.unit * np.linalg.solve(self.system, self.unit * right)
        dλ, dy = prices[:k], prices[k:]
        toward = toward - program.weights * (G.T @ dλ) - np.tensordot(dy, program.rows, 1)
        dθ = Θ * (toward + (self.lost - (Θ * toward).sum(axis=0)) / self.total)
        dz = np.where(program.valid, (aim - at.z * dθ) / self.safe, 0.0)
        return _Iterate(dθ, dz, (aim_rows - at.s * dy[:m]) / at.μ, dy[:m], dλ, float(dy[-1]))
