"""What must never happen, counted: one figure a row, each with its target.

Every module here measures some of the figures and lists them in its `ROWS`; a row's `measure(count)` returns a
`Result`. `python -m tests.scorecard` prints all of them, `test_scorecard` holds them at quick sizes.
"""
