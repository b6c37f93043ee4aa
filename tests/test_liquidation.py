"""What liquidations take and leave: published figures, and conservation of money over random accounts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.constraints.errors import InputError
from equipoise.optimizer.formulas.lending import health_factor
from equipoise.optimizer.formulas.liquidation import (
    Liquidation,
    aave,
    bad_debt,
    compound,
    discounted_price,
    heals,
    health_after,
    maker,
)

SOME = settings(max_examples=50)
seeds = st.integers(0, 2**32 - 1)


# --- published figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(0.99, 1.14), (0.95, 1.06), (0.90, 0.96), (0.84, 0.84), (0.80, 0.76)])
def test_heals_or_spirals(before: float, after: float) -> None:
    """Half the debt, threshold 0.8, bonus 5 %: better only above 0.84 (condition of arXiv 2212.07306)."""
    assert health_after(before, 0.8, 0.05) == pytest.approx(after, abs=1e-12)
    if before != 0.84:
        assert heals(before, 0.8, 0.05) == (after > before)


def test_aave_half_of_the_debt() -> None:
    """Bob has 10 ETH and owes 5 ETH's worth: a liquidator repays 2.5 ETH's worth for 2.5 + 0.125 ETH (Aave's FAQ)."""
    ether = 2_000.0
    found = aave(np.array([10, -5]) * ether, [0.49, 0.0], 0, 1, bonus=0.05)  # a threshold at which it is due
    assert found.repaid / ether == pytest.approx(2.5)
    assert found.seized / ether == pytest.approx(2.5 + 0.125)
    assert found.value / ether == pytest.approx([10 - 2.625, -2.5])
    assert found.cost / ether == pytest.approx(0.125)


def test_aave_one_of_two_collaterals() -> None:
    """5 ETH, YFI worth 4 ETH, DAI worth 5 ETH owed: 2.5 + 0.125 ETH, or YFI worth 2.5 + 0.375 (same FAQ, 15 %)."""
    value = np.array([5.0, 4.0, -5.0]) * 2_000
    for row, bonus, seized in ((0, 0.05, 2.625), (1, 0.15, 2.875)):
        assert aave(value, [0.6, 0.47, 0], row, 2, bonus=bonus).seized / 2_000 == pytest.approx(seized)


def test_comet_discounts_collateral() -> None:
    """200 USDC buy 1.25 COMP at 200, liquidation factor 0.6, store front 0.5 (comet, test/quote-collateral-test.ts)."""
    assert 200 / discounted_price(200.0, 0.5, 0.6) == pytest.approx(1.25, rel=1e-15)


def test_comet_absorbs_without_collateral() -> None:
    """−100 and −700 of base and no collateral: paid out by the reserves (comet, test/absorb-test.ts)."""
    found = compound([[-100.0, 0.0], [-700.0, 0.0]], 0.8, 0, liquidation_factor=0.9)
    assert found.deficit.tolist() == [100, 700]
    assert found.value.tolist() == [[0, 0], [0, 0]]


# --- rules -------------------------------------------------------------------------------------------------


def test_aave_close_factor() -> None:
    """Half above 0.95; all at 0.95 and below, and where either side is below $2,000."""
    threshold = [0.8, 0.0]

    def repaid(collateral: float, debt: float) -> float:
        return float(aave([collateral, -debt], threshold, 0, 1, bonus=0.05).repaid)

    assert repaid(10_000, 8_100) == 4_050
    assert aave([10_000.0, -8_000.0], [0.76, 0.0], 0, 1, bonus=0.05).repaid == 8_000  # exactly 0.95
    assert repaid(2_400, 1_990) == 1_990
    assert repaid(10_000, 8_000) == 0  # exactly 1: not due
    assert repaid(1_900, 1_900 * 0.8 / 0.96) == pytest.approx(1_900 * 0.8 / 0.96)
    assert repaid(2_100, 2_100 / 1.05 + 5) == pytest.approx(2_000)  # all collateral goes


def test_aave_leaves_no_dust() -> None:
    """Half of the account's debt is all of one row, and would leave 200 of the other: there 1,000 must stay."""
    value = [20_000.0, -8_000.0, -8_400.0]
    assert aave(value, [0.8, 0, 0], 0, 1, bonus=0.05).repaid == 8_000
    found = aave(value, [0.8, 0, 0], 0, 2, bonus=0.05)
    assert found.repaid == 7_400
    assert found.value[2] == -1_000
    # Of the collateral 1,000 stays, too: 8,200·1.05 would leave 390 of 9,000.
    few = aave([9_000.0, 11_000.0, -16_400.0], [0.8, 0.8, 0], 0, 2, bonus=0.05)
    assert few.value[0] == pytest.approx(1_000)


def test_aave_fee_and_bad_debt() -> None:
    """The protocol takes a part of the bonus; what no collateral is left for is written off."""
    found = aave([10_000.0, -9_800.0, -400.0], [0.8, 0, 0], 0, 1, bonus=0.05, protocol_fee=0.1)
    assert found.seized == 10_000
    assert found.repaid == pytest.approx(10_000 / 1.05)
    assert found.fee == pytest.approx(0.1 * (10_000 - 10_000 / 1.05))
    assert found.deficit == pytest.approx(10_200 - 10_000 / 1.05)
    assert found.deficit == pytest.approx(bad_debt([10_000.0, -9_800.0, -400.0], 0.05))
    assert found.value.tolist() == [0, 0, 0]


def test_compound_absorb() -> None:
    """All collateral for its liquidation factor; the rest is credited in the base asset."""
    value, liquidate = [10_000.0, 5_000.0, -13_000.0], [0.895, 0.77, 0]
    found = compound(value, liquidate, 2, liquidation_factor=[0.95, 0.95, 0])
    assert health_factor(value, liquidate) < 1
    assert found.value.tolist() == [0, 0, 0.95 * 15_000 - 13_000]
    assert (found.repaid, found.deficit) == (13_000, 0)
    assert found.cost == found.fee == pytest.approx(750)
    sunk = compound([10_000.0, -11_000.0], [0.895, 0], 1, liquidation_factor=[0.95, 0])
    assert sunk.deficit == pytest.approx(1_500)
    assert compound([10_000.0, -5_000.0], [0.895, 0], 1, liquidation_factor=0.95).value.tolist() == [10_000, -5_000]


def test_maker_auction() -> None:
    """ETH-A: 150 %, penalty 13 %, dust 5,000."""
    found = maker([14_000.0, -10_000.0], 1.5, 0, 1, penalty=0.13, dust=5_000)
    assert found.value == pytest.approx([14_000 - 11_300, 0])
    assert (found.repaid, found.fee) == pytest.approx((10_000, 1_300))
    assert maker([15_000.0, -10_000.0], 1.5, 0, 1, penalty=0.13).repaid == 0  # exactly at the ratio: safe
    part = maker([14_000.0, -10_000.0], 1.5, 0, 1, penalty=0.25, dust=5_000, room=6_250)
    assert part.value.tolist() == [14_000 - 6_250, -5_000]
    whole = maker([14_000.0, -10_000.0], 1.5, 0, 1, penalty=0.13, dust=5_001, room=5_650)  # 5,000 would be dust
    assert whole.repaid == 10_000
    poor = maker([14_000.0, -10_000.0], 1.5, 0, 1, penalty=0.13, discount=0.3)
    assert (poor.seized, poor.repaid) == pytest.approx((14_000, 9_800))
    assert poor.deficit == pytest.approx(200)


@SOME
@given(seeds)
def test_no_liquidation_makes_or_loses_money(seed: int) -> None:
    """Owner, liquidators and protocol: debt that vanishes was repaid or written off, collateral was seized."""
    rng = np.random.default_rng(seed)
    held, threshold = rng.uniform(100, 9_000, (40, 2)), np.array([0.8, 0.7, 0.0])
    value = np.column_stack([held, -(held @ threshold[:2]) / rng.uniform(0.6, 1.1, 40)])
    health = health_factor(value, threshold)

    def consistent(found: Liquidation) -> None:
        gone = np.maximum(-value, 0).sum(-1) - np.maximum(-found.value, 0).sum(-1)
        assert gone == pytest.approx(found.repaid + found.deficit)
        assert (found.value[health >= 1] == value[health >= 1]).all()
        assert (found.deficit >= -1e-9).all()
        assert (found.fee >= -1e-9).all()
        assert found.cost == pytest.approx(value.sum(-1) - found.value.sum(-1))

    step = aave(value, threshold, 0, 2, bonus=0.05, protocol_fee=0.1)
    consistent(step)
    assert step.seized == pytest.approx(step.repaid * 1.05)
    left = np.abs(step.value[health < 1][:, [0, 2]]).min(-1)
    assert ((left < 1e-9) | (left >= 1_000 - 1e-9)).all()
    due = (health < 1) & (step.value[:, 2] < -1e-9)
    spared = due & (step.value[:, 0] > 1e-9)
    better = health_factor(step.value, threshold) > health
    assert (better == heals(health, threshold[0], 0.05))[spared].all()
    consistent(compound(value, threshold, 2, liquidation_factor=[0.9, 0.85, 0]))
    rows = np.column_stack([held[:, 0], -held[:, 0] / rng.uniform(1.0, 2.0, 40)])
    found = maker(rows, 1.5, 0, 1, penalty=0.13, dust=500, room=4_000, discount=0.1)
    assert found.seized * 0.9 == pytest.approx(found.repaid + found.fee)
    assert (-rows[:, 1] + found.value[:, 1]) == pytest.approx(found.repaid + found.deficit)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: heals(0.9, 1.2, 0.05), "column 'threshold', value 1.2"),
        (lambda: health_after(0.9, 0.8, 0.05, close_factor=1.0), "column 'close_factor', value 1.0"),
        (lambda: aave([1.0, -1.0], [0.8, 0], 0, 1, bonus=-0.1), "column 'bonus', value -0.1"),
        (lambda: compound([1.0, -1.0], 0.8, 1, liquidation_factor=1.1), "column 'liquidation_factor', value 1.1"),
        (lambda: maker([1.0, -1.0], 0.9, 0, 1, penalty=0.13), "column 'ratio', value 0.9: must be at least 1"),
    ],
)
def test_bad_input(call: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()
