"""The example on three venues: what it prints in the documentation, and its bookkeeping."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
EVENING = slice("2021-05-19 09:00", "2021-05-19 14:00")  # the worst hours


@pytest.fixture(scope="module")
def venues() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / "venues.py"))


def test_robust_through_the_worst_hours(venues: dict[str, Any]) -> None:
    run = venues["replay"](venues["by_program"], hours=EVENING)
    assert not run.liquidations and run.penalties == 0
    hours = run.table
    assert (hours["health"] > 1).all() and (hours["margin"] > 0.025).all()
    assert abs(hours["ETH"].iloc[-1] - 1.1) < 0.05


def test_the_late_bot_is_liquidated(venues: dict[str, Any]) -> None:
    """11:00 to 12:00, by hand: 12 BTC and 250 ETH against 850,000 USDC."""
    prices = pd.read_csv(ROOT / "examples" / "data" / "crash.csv", index_col=0, parse_dates=True)
    noon = prices.loc["2021-05-19 12:00"]
    health = (0.78 * 12 * noon["BTC"] + 0.83 * 250 * noon["ETH"]) / 850_000
    run = venues["replay"](venues["WAYS"]["bot 1.05/1.20 10%/20%"])
    assert run.table["health"].min() == pytest.approx(health) and health < 1
    assert [what.split()[2] for what in run.liquidations] == ["Aave:", "perps:"]
    assert run.penalties == pytest.approx(0.05 * 425_000)  # half of the debt, with a bonus of 5 %


def test_money_only_leaves_by_fees_and_penalties(venues: dict[str, Any]) -> None:
    """Between two hours the NAV moves by the prices, and within one by what was paid."""
    table = pd.read_csv(ROOT / "examples" / "data" / "venues.csv").astype({"quantity": float})
    table["price"] *= np.where(table["underlying"] == "USD", 1.0, 0.8)
    for name in venues["WAYS"]:
        diary = venues["Diary"]()
        after = venues["WAYS"][name](table, diary)
        before, left = ((t["quantity"] * t["price"]).sum() for t in (table, after))
        assert left == pytest.approx(before - diary.fees, abs=1e-4)


def test_the_documentation_shows_what_it_prints(venues: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "accounts.md").read_text(encoding="utf-8")
    for name in list(venues["WAYS"])[1:]:  # without a solver, quickly
        assert venues["shown"](name, venues["replay"](venues["WAYS"][name])) in page
