"""Decisions on which the last bit of a kernel has no say: see also row 10 of the scorecard, which compares kernels."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from processors import kernels, threads

from equipoise import Rebalancer
from equipoise.constraints import LongOnly, LotSize
from equipoise.optimizer import CovarianceRisk, FixedFee
from equipoise.optimizer.lots.points.grid import exponents, ten_to
from equipoise.optimizer.lots.points.points import QUANTUM, _quantum, first


def test_powers_of_ten_are_the_nearest_floats() -> None:
    powers = np.arange(-30, 31)
    wanted = [float(f"1e{power}") for power in powers]
    assert ten_to(powers).tolist() == wanted
    assert exponents(np.array(wanted)).tolist() == powers.tolist()
    assert exponents(np.nextafter(wanted, 0.0)).tolist() == (powers - 1).tolist()


@pytest.mark.parametrize("units", [1.0, 1e3, np.nextafter(1e3, 0), 1e8, 2.5e4, 1e-4])
def test_one_portfolio_and_a_stack_have_the_same_finest_lot(units: float) -> None:
    assert float(_quantum(units)) == ten_to(exponents(np.array([QUANTUM * units])))[0]


def test_of_a_tie_the_first_counts() -> None:
    values = np.array([[3.0, 1.0 + 1e-15, 1.0, 1.0 - 1e-15], [np.inf, np.inf, 2.0, 1.0]])
    assert first(values, np.array([1e-12, 1e-12])).tolist() == [1, 3]
    assert first(np.full(3, np.inf), 0.0) == 0


@pytest.mark.parametrize("fee", [0.0, 1.0], ids=["in a stack", "with a fee"])
def test_of_assets_that_are_alike_the_first_gets_the_odd_lot(fee: float) -> None:
    """Three assets of equal price, risk and target: seven lots between them, whatever noise the covariance has."""
    names = ["A", "B", "C"]
    table = pd.DataFrame(
        {"quantity": [0, 0, 0, 1000.0], "price": [100, 100, 100, 1], "target": [0.25, 0.25, 0.25, 0.25], "lot": 1.0},
        index=pd.Index([*names, "USD"], name="asset"),
    )
    bought = set()
    for noise in itertools.product((-1e-16, 0.0, 1e-16), repeat=3):
        covariance = np.full((3, 3), 0.02) + np.diag(0.02 + np.array(noise))
        risk = CovarianceRisk(covariance, assets=names)
        rules = [LongOnly(), LotSize("lot")]
        plan = Rebalancer(cash="USD", risk=risk, constraints=rules, costs=[FixedFee(fee)] if fee else []).solve(table)
        bought.add(tuple(plan.orders["quantity"].reindex(names, fill_value=0)))
    assert len(bought) == 1


@pytest.mark.slow
@pytest.mark.skipif(len(kernels()) < 2, reason="this processor has one kernel only")
def test_a_checkpoint_knows_on_which_kernels_it_was_begun() -> None:
    asked = "from equipoise.optimizer.problem.policy_digest import versions; print(versions()['kernels'])"

    def said(kernel: str) -> str:
        chosen = os.environ | threads(1) | {"OPENBLAS_CORETYPE": kernel}
        return subprocess.run([sys.executable, "-c", asked], env=chosen, capture_output=True, text=True).stdout

    old, *_, new = kernels()
    assert len(said(old)) == 13
    assert said(old) == said(old) != said(new)
