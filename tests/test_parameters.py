"""Parameters and records of accounts: what is refused, and that the error says where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from equipoise.constraints.errors import InputError
from equipoise.optimizer.formulas.lending import health_factor
from equipoise.optimizer.formulas.venue_records import (
    EMode,
    check_factors,
    check_least_debt,
    check_margin,
    check_prices,
    with_emode,
)

#: Aave v3 Ethereum, 2023-10-31: LTV, liquidation threshold, bonus; and its e-mode (aave-dao/aave-proposals-v3).
ASSETS = ["WETH", "wstETH", "WBTC", "USDC", "GHO"]
LTV = np.array([0.805, 0.785, 0.73, 0.77, 0.0])
THRESHOLD = np.array([0.83, 0.81, 0.78, 0.80, 0.0])
BONUS = np.array([0.05, 0.06, 0.05, 0.045, 0.0])
EMODES = {1: EMode("ETH correlated", 0.90, 0.93, 0.01, {"WETH", "wstETH", "cbETH", "rETH"})}


def test_real_parameters_pass() -> None:
    check_factors(ASSETS, THRESHOLD, borrow=LTV, bonus=BONUS)
    # Compound III, mainnet USDC: borrow, liquidate and liquidation factors of COMP, WBTC, WETH.
    check_factors(["COMP", "WBTC", "WETH"], [0.7, 0.77, 0.895], borrow=[0.65, 0.7, 0.825], bonus=1 / 0.93 - 1)


def test_emode() -> None:
    """The category's factors for its assets, their own for the others."""
    assert with_emode(ASSETS, THRESHOLD, 1, EMODES).tolist() == [0.93, 0.93, 0.78, 0.80, 0.0]
    assert with_emode(ASSETS, LTV, 1, EMODES, "ltv").tolist() == [0.90, 0.90, 0.73, 0.77, 0.0]
    assert with_emode(ASSETS, BONUS, 1, EMODES, "bonus").tolist() == [0.01, 0.01, 0.05, 0.045, 0.0]
    assert with_emode(ASSETS, THRESHOLD, 0, EMODES).tolist() == THRESHOLD.tolist()
    value = [-8.0, 10.0, 0.0, 0.0, 0.0]
    assert health_factor(value, with_emode(ASSETS, THRESHOLD, 1, EMODES)) == pytest.approx(9.3 / 8)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: with_emode(ASSETS, THRESHOLD, 7, EMODES, account="aave"),
            "column 'emode', value 7: account 'aave': there is no such e-mode category (known: 1)",
        ),
        (lambda: with_emode(ASSETS, THRESHOLD, 1, EMODES, "fee"), "must be 'threshold', 'ltv' or 'bonus'"),
        (
            lambda: check_factors([("aave", "WETH")], [1.2]),
            "asset 'WETH', column 'threshold', value 1.2: account 'aave': must lie between 0 and 1",
        ),
        (lambda: check_factors(["WETH"], [1.0]), "asset 'WETH', column 'threshold', value 1.0: must lie between"),
        (lambda: check_factors(["A", "B"], [0.8, -0.1]), "asset 'B', column 'threshold', value -0.1"),
        (lambda: check_factors(["A", "B"], [0.8, np.nan]), "asset 'B', column 'threshold', value nan"),
        (
            lambda: check_factors(["WETH"], [0.80], borrow=[0.82], account="comet"),
            "asset 'WETH', column 'borrow', value 0.82: account 'comet': must be at most the liquidation threshold 0.8",
        ),
        (lambda: check_factors(["A"], [0.8], borrow=[-0.1]), "column 'borrow', value -0.1: must be at least 0"),
        (
            lambda: check_factors(["A"], [0.97], bonus=[0.05]),
            "value 0.05: leaves bad debt: 0.97·(1 + bonus) is above 1",
        ),
        (lambda: check_factors(["A"], [0.8], bonus=[np.inf]), "column 'bonus', value inf: must be at least 0"),
        (lambda: check_factors(["A", "B"], [0.8, 0.7, 0.6]), "these shapes do not fit together"),
        (lambda: check_factors(["A"], ["0.8"]), "column 'threshold', value ['0.8']: must be numbers"),
        (lambda: EMode("stables", 0.9, 1.1, 0.01, ["USDC"]), "asset 'stables', column 'threshold', value 1.1"),
        (
            lambda: check_least_debt([("maker", "DAI"), "USDC"], [-4_000.0, 0.0], 5_000.0),
            "asset 'DAI', column 'value', value -4000.0: account 'maker': a debt must be zero or at least 5000",
        ),
    ],
)
def test_refused_parameters(call: Any, says: str) -> None:
    with pytest.raises(InputError) as refused:
        call()
    assert says in str(refused.value)


def test_least_debt() -> None:
    check_least_debt(["DAI", "ETH", "USDC"], [-5_000.0, 10.0, 0.0], 5_000.0)
    check_least_debt(["DAI", "USDC"], [-5_000.0, -100.0], [5_000.0, 100.0])


# --- margins -----------------------------------------------------------------------------------------------


def test_margin_balances_agree() -> None:
    recorded = {("perps", "BTC"): 1_200.004, ("perps", "ETH"): 500.0}
    found = check_margin(recorded, {("perps", "BTC"): 1_200.0, ("perps", "ETH"): 500.0}, tolerance=0.01)
    assert found == pytest.approx({("perps", "BTC"): 0.004, ("perps", "ETH"): 0.0})
    assert check_margin({}, {}) == {}
    check_margin({"BTC": 1.25}, {"BTC": 1.0}, tolerance=0.25)
    with pytest.raises(InputError, match=r"more than 0\.2;"):
        check_margin({"BTC": 1.25}, {"BTC": 1.0}, tolerance=0.2)


@pytest.mark.parametrize(
    ("recorded", "recomputed", "says"),
    [
        (
            {("perps", "BTC"): 1_200.0, ("perps", "ETH"): 480.0},
            {("perps", "BTC"): 1_200.01, ("perps", "ETH"): 500.0},
            "asset 'ETH', column 'margin', value 480.0: account 'perps': the recorded margin differs from the "
            "recomputed 500 by -20, more than 0.05; reconcile the account before trading on it",
        ),
        (
            {"BTC": 1.0},
            {"BTC": 1.0, "ETH": 2.0},
            "asset 'ETH', column 'margin', value 2.0: its margin was not recorded",
        ),
        ({"BTC": 1.0, "ETH": 2.0}, {"BTC": 1.0}, "asset 'ETH', column 'margin', value 2.0: its margin was not recomp"),
        ({"BTC": np.nan}, {"BTC": 1.0}, "asset 'BTC', column 'margin', value nan: must be a finite number"),
        ({"BTC": 1.0}, {"BTC": np.inf}, "asset 'BTC', column 'margin', value inf: must be a finite number"),
    ],
)
def test_margin_balances_differ(recorded: dict[Any, float], recomputed: dict[Any, float], says: str) -> None:
    with pytest.raises(InputError) as refused:
        check_margin(recorded, recomputed, tolerance=0.05)
    assert says in str(refused.value)


# --- prices ------------------------------------------------------------------------------------------------

NOW = 1_700_000_000.0
HEARTBEAT = {"ETH": 3_600.0, "USDC": 86_400.0}  # Chainlink on Ethereum: ETH/USD and USDC/USD


def test_fresh_prices() -> None:
    ages = check_prices({"ETH": NOW - 3_600, "USDC": NOW - 80_000}, HEARTBEAT, NOW)
    assert ages == {"ETH": 3_600, "USDC": 80_000}


@pytest.mark.parametrize(
    ("updated", "heartbeat", "says"),
    [
        (
            {("aave", "ETH"): NOW - 3_601},
            3_600.0,
            "asset 'ETH', column 'updated', value 1699996399.0: account 'aave': the price is 3601 seconds old, its "
            "heartbeat is 3600; get a fresh one",
        ),
        ({"ETH": NOW + 1}, HEARTBEAT, "asset 'ETH', column 'updated', value 1700000001.0: the price is not from the p"),
        ({"ETH": np.nan}, HEARTBEAT, "asset 'ETH', column 'updated', value nan: the price is not from the past"),
        ({"WBTC": NOW}, HEARTBEAT, "asset 'WBTC', column 'heartbeat', value nan: needs a heartbeat above zero"),
        ({"ETH": NOW}, 0.0, "asset 'ETH', column 'heartbeat', value 0.0: needs a heartbeat above zero"),
    ],
)
def test_stale_prices(updated: dict[Any, float], heartbeat: Any, says: str) -> None:
    with pytest.raises(InputError) as refused:
        check_prices(updated, heartbeat, NOW)
    assert says in str(refused.value)
