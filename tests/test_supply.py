"""Rebases and splits, by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from equipoise import Rebalancer
from equipoise.constraints import DriftBand, InputError
from equipoise.optimizer import Drift
from equipoise.optimizer.portfolio.splits import rebased

TABLE = pd.DataFrame(
    {"quantity": [50.0, 50.0, 0.0], "price": [1.0, 1.0, 1.0], "target": [0.5, 0.5, 0.0]},
    index=["AMPL", "ETH", "USD"],
)


def test_a_rebase_moves_the_weights_and_is_seen_by_the_trigger() -> None:
    """A supply that shrinks by 20 %: 40 of 90 are held, 5.6 points below the target."""
    after = rebased(TABLE, {"AMPL": 0.8})
    rebalancer = Rebalancer(cash="USD", constraints=[DriftBand(absolute=0.05)], trigger=Drift())
    assert not rebalancer.due(TABLE).fired
    assert rebalancer.due(after).fired
    assert rebalancer.solve(after).weights.before["AMPL"] == pytest.approx(40 / 90)
    assert TABLE.quantity.tolist() == [50.0, 50.0, 0.0]


def test_a_split_moves_nothing() -> None:
    after = rebased(TABLE, {"ETH": 4.0}, split=True)
    assert after.quantity["ETH"] == 200.0
    assert after.price["ETH"] == 0.25
    assert Rebalancer(cash="USD").solve(after).status.name == "NO_TRADE"


def test_long_tables() -> None:
    """Every portfolio that holds the asset."""
    table = pd.concat([TABLE, TABLE]).rename_axis("asset").reset_index().assign(portfolio_id=["a"] * 3 + ["b"] * 3)
    assert rebased(table, {"AMPL": 1.01}).quantity.tolist() == pytest.approx([50.5, 50, 0, 50.5, 50, 0])


@pytest.mark.parametrize(("factor", "says"), [({"BTC": 1.0}, "no such asset"), ({"ETH": 0.0}, "factor of ETH")])
def test_bad_input(factor: dict[str, float], says: str) -> None:
    with pytest.raises(InputError, match=says):
        rebased(TABLE, factor)
