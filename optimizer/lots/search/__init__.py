"""Descent over whole-lot plans: moves of one or two assets.

Open `neighbours` for one portfolio, and `descent` for a stack.
"""
