"""cvxpy with Clarabel: the script that builds the problem for every portfolio, and the one with parameters (DPP)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import cvxpy as cp
import numpy as np

from .instances import Array, Family, Instance
from .peer import One

#: What differs from portfolio to portfolio, with its value for one of them.
DATA: dict[str, Callable[[Instance], Array | None]] = {
    "exposure": lambda p: p.factors @ p.target,
    "centre": lambda p: np.sqrt(p.specific) * p.target,
    "before": lambda p: p.before,
    "lower": lambda p: p.lower,
    "upper": lambda p: p.upper,
    "limits": lambda p: p.rows.upper if p.rows is not None else None,
    "gain": lambda p: p.gain,
}


def stated(like: Instance, data: Mapping[str, Any]) -> tuple[cp.Variable, cp.Problem]:
    """The problem in cvxpy's words, of arrays or of parameters; the objective in units of the cost."""
    unit = float(np.max(like.cost))
    w = cp.Variable(like.n, name="w")
    trade = w - data["before"]
    risk = cp.sum_squares(like.factors @ w - data["exposure"])
    risk += cp.sum_squares(cp.multiply(np.sqrt(like.specific), w) - data["centre"])
    objective = 0.5 * like.aversion / unit * risk + cp.norm1(cp.multiply(like.cost / unit, trade))
    if like.penalty:
        objective += 0.5 * like.penalty / unit * cp.sum_squares(trade)
    if data["gain"] is not None:
        objective -= data["gain"] @ w / unit
    rules = [cp.sum(w) == 1, w >= data["lower"], w <= data["upper"]]
    if (rows := like.rows) is not None:
        # cp.abs and cp.pos of the parts that have them; |z| = z⁺ + z⁻ where buys and sells count alike
        left = (rows.weight + rows.long) @ w + (rows.long + rows.short) @ cp.neg(w) + rows.buy @ cp.abs(trade)
        rules.append(left <= data["limits"])
    return w, cp.Problem(cp.Minimize(objective), rules)


def parametrised(like: Instance) -> tuple[dict[str, cp.Parameter | None], cp.Variable, cp.Problem]:
    values = {name: of(like) for name, of in DATA.items()}
    parameters = {k: None if v is None else cp.Parameter(len(v), name=k) for k, v in values.items()}
    return parameters, *stated(like, parameters)


def fill(parameters: Mapping[str, cp.Parameter | None], instance: Instance) -> None:
    for name, parameter in parameters.items():
        if parameter is not None:
            parameter.value = DATA[name](instance)


def rebuilt(family: Family) -> One:
    def one(instance: Instance, account: int) -> Array | None:
        w, problem = stated(instance, {name: of(instance) for name, of in DATA.items()})
        problem.solve(solver="CLARABEL")
        return np.asarray(w.value) if w.value is not None else None

    return one


def parameters(family: Family) -> One:
    held, w, problem = parametrised(family.instances[0])

    def one(instance: Instance, account: int) -> Array | None:
        fill(held, instance)
        problem.solve(solver="CLARABEL")
        return np.asarray(w.value) if w.value is not None else None

    one(family.instances[0], 0)  # compiles
    return one
