"""The definition of the problem as a cvxpy program, compiled once for each structure.

Open `cvxpy_model` for the formulation.
"""
