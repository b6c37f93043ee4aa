"""How the tests run.

Property tests have the same examples every time, and no clock; EQUIPOISE_EXPLORE=1 draws new examples instead, ten
times as many: for a campaign, not for the suite. `--fast` leaves out what takes longest; the rest, a minute, runs every
module, and is for other kernels, versions and Pythons.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("explore" if os.environ.get("EQUIPOISE_EXPLORE") else "suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out what takes longest")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        left_out = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
