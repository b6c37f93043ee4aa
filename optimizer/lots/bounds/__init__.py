"""Lower bounds on every whole-lot plan, from the prices of rules and factors.

Open `bound` for one portfolio, and `stacked` for many.
"""
