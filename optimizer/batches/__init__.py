"""Long tables and files in, results and orders out: in this process, in many, and on a cluster.

Open `solve` for a table at once, `run` for chunks in parallel, and `checkpoint` for runs that go on after a crash.
"""
