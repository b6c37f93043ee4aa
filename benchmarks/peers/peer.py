"""What a peer is: a row of the table, made by one function of an adapter.

A maker gets a `Family` and does, untimed, what a user would do once for many portfolios (the matrices, a compiled
problem). It returns

    One     (instance, account) -> weights            timed for each portfolio; the account's number serves warm starts
    Many    [date][account] -> weights, seconds       for peers with a call for many portfolios; timed by themselves

with weights (n,), or None where there is no answer. A maker that cannot state a
family's problem raises `UnstatedError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .instances import Array, Family, Instance

One = Callable[[Instance, int], Array | None]
Many = Callable[[list[list[Instance]]], tuple[Sequence[Array | None], float]]
Maker = Callable[[Family], One | Many]


class UnstatedError(Exception):
    """This problem cannot be said in the peer's words; the message says what is missing."""


@dataclass(frozen=True)
class Peer:
    """`module` and `maker` name the function; `timed` says what the time of one portfolio includes."""

    name: str
    module: str
    maker: str
    package: str
    licence: str
    timed: str
    many: bool = False
    note: str = ""  # how its problem differs from that of the others


PEERS = (
    Peer("equipoise, alone", "ours", "alone", "equipoise", "Apache-2.0", "rules to certified weights"),
    Peer("equipoise, arrays", "ours", "arrays", "equipoise", "Apache-2.0", "rules to certified weights", many=True),
    Peer("equipoise, compiled", "ours", "compiled", "equipoise", "Apache-2.0", "the same, with numba", many=True),
    Peer("equipoise, batch", "ours", "batch", "equipoise", "Apache-2.0", "table to verified orders", many=True),
    Peer("ledge, cold", "ledge_solver", "cold", "ledge-portfolio", "Apache-2.0", "problem object and solve"),
    Peer("ledge 1e-9, cold", "ledge_solver", "tight", "ledge-portfolio", "Apache-2.0", "problem object and solve"),
    Peer("ledge, sequence", "ledge_solver", "sequence", "ledge-portfolio", "Apache-2.0", "one date, factored before"),
    Peer("ledge, batch", "ledge_solver", "batch", "ledge-portfolio", "Apache-2.0", "solve_batch of objects", many=True),
    Peer("PIQP, pre-built", "solvers", "piqp", "piqp", "BSD-2-Clause", "vectors updated"),
    Peer("QOCO, pre-built", "solvers", "qoco", "qoco", "BSD-3-Clause", "vectors updated"),
    Peer("Clarabel, pre-built", "solvers", "clarabel", "clarabel", "Apache-2.0", "vectors updated"),
    Peer("OSQP, pre-built", "solvers", "osqp", "osqp", "Apache-2.0", "vectors updated, from w₀"),
    Peer("OSQP 1e-9, pre-built", "solvers", "osqp_tight", "osqp", "Apache-2.0", "vectors updated, from w₀, polished"),
    Peer("cvxpygen (OSQP)", "generated", "cvxpygen", "cvxpygen", "Apache-2.0", "parameters and compiled solve"),
    Peer("cvxpy parameters, Clarabel", "modelled", "parameters", "cvxpy", "Apache-2.0", "parameters and solve"),
    Peer("cvxpy rebuilt, Clarabel", "modelled", "rebuilt", "cvxpy", "Apache-2.0", "everything"),
    Peer("skfolio", "sk_folio", "mean_risk", "skfolio", "BSD-3-Clause", "everything but the prior"),
    Peer("PyPortfolioOpt", "pyportfolioopt", "frontier", "PyPortfolioOpt", "MIT", "everything but Σ", note="dense Σ"),
    Peer("cvxportfolio", "cvx_portfolio", "policy", "cvxportfolio", "GPL-3.0", "parameters and solve"),
    Peer("Riskfolio-Lib", "riskfolio_lib", "utility", "Riskfolio-Lib", "BSD-3-Clause", "everything but Σ",
         note="no trading costs: the tracking part only; dense Σ"),
)  # fmt: skip
