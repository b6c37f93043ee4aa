"""Text in CSV files: nothing that runs, and every text comes back."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from equipoise.optimizer.batches.csv_cells import csv_text, guarded, unguarded

TEXT = st.one_of(st.text(st.characters(codec=None)), st.text("'=+-@\\x5c0 \n\t\x1b\ud800＝ab", max_size=8))


@given(TEXT, TEXT)
@example("=x", "'=x")
@example("'\\", "'\\\\")
def test_every_text_comes_back_and_no_two_become_one(one: str, other: str) -> None:
    cell = guarded(one)
    assert unguarded(cell) == one
    assert (cell == guarded(other)) == (one == other)
    assert not cell.lstrip(" ").startswith(tuple("=+-@＝＋－＠\t\r\n"))
    assert cell.replace("\n", " ").isprintable()
    rows = list(csv.reader(io.StringIO(csv_text([{"a": one, "b": other}], ["a", "b"]), newline="")))
    assert [[unguarded(c) for c in row] for row in rows[1:]] == [[one, other]]


@pytest.mark.parametrize(
    ("text", "cell"),
    [("BTC", "BTC"), ("=x", "'=x"), ("'=x", "''=x"), ("a\\b", "a\\b"), ("=a\\b", "'=a\\\\b"), ("a\tb", "'a\\x09b"),
     ("\u202ea", "'\\u202ea"), ("a\nb", "a\nb"), ("\na", "'\\x0aa"), (" =1", "' =1"), ("", "")],
)  # fmt: skip
def test_guarded_by_hand(text: str, cell: str) -> None:
    assert guarded(text) == cell
