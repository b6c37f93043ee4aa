"""The points that whole lots allow, asset by asset, and what they risk on their own.

Open `points` for one portfolio, and `grid` for a stack.
"""
