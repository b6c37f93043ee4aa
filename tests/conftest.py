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

#: What `--fast` leaves out: a second or more each, by file.
SLOW = {
    "test_accounts": ("test_as_the_network",),
    "test_collateral_rules": ("test_the_compiled_program_agrees",),
    "test_compiled": ("test_random_problems_have_the_same_answers",),
    "test_dask": ("test_a_cluster_gives_the_same_bytes_and_loses_only_who_kills_its_workers",),
    "test_engine": (
        "test_a_broken_executor_is_replaced",
        "test_a_run_that_was_killed_goes_on",
        "test_a_worker_that_dies_costs_only_its_portfolio",
        "test_a_worker_that_hangs_costs_only_its_portfolio",
        "test_an_endless_source_is_read_as_it_is_needed",
        "test_files_have_the_same_bytes_whatever_the_chunks",
        "test_the_digest_is_the_same_in_another_process",
        "test_what_cannot_be_loaded_by_a_worker_is_refused",
    ),
    "test_every_rule": (
        "test_answer_holds_after_costs",
        "test_generated_problems_have_their_planted_point",
    ),
    "test_lending": (
        "test_one_sale_equals_the_program",
        "test_repair_equals_the_program",
    ),
    "test_lot_bound": ("test_below_brute_force",),
    "test_lot_exact": (
        "test_equal_to_brute_force",
        "test_equal_to_brute_force_with_bands_and_turnover",
    ),
    "test_lot_fees": ("test_equal_to_brute_force",),
    "test_lot_stack": (
        "test_a_plan_depends_on_its_own_portfolio_bit_by_bit",
        "test_any_prices_give_a_bound",
        "test_bounds_and_plans_against_brute_force",
        "test_effort_and_exact_mode_of_batches",
        "test_the_grid_is_that_of_exact_arithmetic",
    ),
    "test_lots": ("test_against_brute_force",),
    "test_newton": ("test_a_formulation_of_its_own_agrees",),
    "test_rebalancer": (
        "test_custom_rule_with_lots",
        "test_random_accounts_from_end_to_end",
    ),
    "test_sequence": (
        "test_every_prefix_and_partial_fill_is_safe",
        "test_nothing_is_missed_by_brute_force",
        "test_temporary_cash_is_the_least_for_whole_orders",
    ),
    "test_stream": (
        "test_a_file_of_any_size_is_read_in_the_same_memory",
        "test_a_table_comes_back_with_the_same_cells",
    ),
    "test_threshold": ("test_the_program_finds_nothing_better_and_nothing_else",),
    "test_verify_stack": ("test_rows_at_the_very_value",),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out what takes longest")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        left_out = [item for item in items if item.name.split("[")[0] in SLOW.get(item.path.stem, ())]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
