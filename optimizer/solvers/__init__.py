"""Problems in, solutions with their prices and bounds out.

Open `choose` for who takes what, `newton` for the fast solver, `program` for cvxpy, and `infeasible` for the reason
where there is no answer.
"""
