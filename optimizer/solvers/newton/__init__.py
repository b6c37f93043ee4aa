"""Newton's method on the dual of whole stacks of problems, in numpy and as machine code.

Open `newton` for the way from a problem to its solution, `dual` for the function and `iteration` for the steps.
"""
