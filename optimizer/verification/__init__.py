"""Answers in, proofs out: the exact check of orders, and lower bounds from prices. No solver is known here.

Open `exact` for one plan in fractions, `stacked` for many in floating point with a bound, and `certificate` for bounds.
"""
