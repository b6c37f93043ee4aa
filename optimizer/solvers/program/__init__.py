"""The definition of the problem as a cvxpy program, compiled once for each structure.

Open `cvxpy_model` for the formulation, `readable` for what users see of it, and `program` for who solves it.
"""
