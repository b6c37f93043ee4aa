"""Every figure of the scorecard at its quick size; `python -m tests.scorecard` measures the full sizes."""

import pytest
from scorecard.figure import Row, rows

SHOWN = [row for row in rows() if row.in_suite]


@pytest.mark.slow
@pytest.mark.parametrize("row", SHOWN, ids=lambda row: f"{row.number}-{row.measure.__name__}")
def test_the_target_is_kept(row: Row) -> None:
    result = row.measure(row.quick)
    assert result.kept, "\n".join([f"{row.figure}: {result.said}, asked: {row.target}", *result.missed])
