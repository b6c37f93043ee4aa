"""Convex answers in, whole-lot plans and their bounds out.

Open `alone` for one portfolio, `stacked` for many, `branch_and_bound` for the proof, and the files `account_*` for
portfolios in several accounts.
"""
