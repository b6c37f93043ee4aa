"""A portfolio and a policy in, the convex program that all solvers share out.

Open `policy` for what is given, `problem` for the program, `costs` for what trading costs, `threshold` for the
closed form of one asset's part, and `joint` for several accounts.
"""
