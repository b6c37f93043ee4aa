"""Models of the annual covariance: tables, columns and factors in, Σ = FᵀF + diag(d²) out.

Open `models` for what users give, and `factored` for the form that everything else sees.
"""
