"""What a rule is: data over a portfolio.

A convex rule about a portfolio is one or more of these pieces, all in fractions of the pre-trade NAV:

    Row      weight·w + long·w⁺ + short·w⁻ + buy·z⁺ + sell·z⁻ ≤ upper
    Bound    lower ≤ w ≤ upper
    Cone     ‖(M (w − c), δ∘(w − c))‖₂ ≤ upper
    Envelope the worst of more rows than one can list (tiered margin, CVaR, k sigmas: see `constraints.rules.terms`)
    Step     a traded quantity is a whole number of lots, and zero or at least a minimum
    Semicontinuous    a position is zero or at least a minimum
    Count    at most so many orders, or names
    Shape    any other convex set, in cvxpy; Opaque is one that is made of two functions

with w the weights after trading, w⁺ and w⁻ their long and short parts, z = w − w₀ the trades, z⁺ buys
and z⁻ sells. Whatever a rule's pieces say is derived from these numbers for every rule at once: the
cvxpy constraint, the closed forms, the exact check, the shadow price and the report.

At the settlement cash a rule must hold for what is left after trades *and* trading costs, and for what there is
before the costs; rules need not know that.
The arrays have one entry an asset, along the last axis. An account is one portfolio, with arrays (n,), or a
stack of B portfolios, with arrays (B, n); a rule that is written for the last axis serves both.

A piece knows its own verbs (see `Piece`), so that a new kind is one class: the check, the report, and the searches for
lots and for conflicts ask the piece. Only solvers know shapes; a new one is a `Shape`, which the cvxpy program takes.
"""

from equipoise.constraints.pieces.bound import Bound
from equipoise.constraints.pieces.cone import Cone
from equipoise.constraints.pieces.discrete import Count, Semicontinuous, Step
from equipoise.constraints.pieces.envelope import Envelope, Modelled, Plane, Term
from equipoise.constraints.pieces.parts import Array, Fields, Figure, Index, Indices, Mask, Parts, Place, dot, part
from equipoise.constraints.pieces.piece import Kind, Piece, Rounding, Words, of_kind
from equipoise.constraints.pieces.row import Row
from equipoise.constraints.pieces.shape import Opaque, Shape
from equipoise.constraints.pieces.states import Check, Settlement, StackState

__all__ = [
    "Array",
    "Bound",
    "Check",
    "Cone",
    "Count",
    "Envelope",
    "Fields",
    "Figure",
    "Index",
    "Indices",
    "Kind",
    "Mask",
    "Modelled",
    "Opaque",
    "Parts",
    "Piece",
    "Place",
    "Plane",
    "Rounding",
    "Row",
    "Semicontinuous",
    "Settlement",
    "Shape",
    "StackState",
    "Step",
    "Term",
    "Words",
    "dot",
    "of_kind",
    "part",
]
