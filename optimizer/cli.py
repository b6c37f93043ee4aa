"""The command `equipoise`: rebalance tables by a policy in a file.

The last line of standard output is one JSON object, whatever happens. Exit codes: 0 all is verified; 1 bad
input or usage; 2 some portfolio is infeasible or unsolved (its row says so, the output is complete);
3 an internal error. Progress and errors go to standard error.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import traceback
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from equipoise.constraints.errors import InputError
from equipoise.optimizer.report import clean

# Modules that bring pandas are imported where they are used: `equipoise --help` should answer at once.
if TYPE_CHECKING:
    import pandas as pd

    from equipoise.optimizer.batch import Plans
    from equipoise.optimizer.policy_file import PolicyFile
    from equipoise.optimizer.rebalancer import Rebalancer

OK, BAD_INPUT, INCOMPLETE, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 130
SHOWN = 20  # so many portfolios at most are named on the screen


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse would exit with 2, which means something else here.
        raise InputError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # labels may have letters that the terminal has not
    debug = False
    try:
        options = _parser().parse_args(arguments)
        debug = options.debug
        code, summary = options.run(options)
    except (InputError, KeyboardInterrupt, Exception) as error:
        code, message = _failure(error)
        if debug:
            traceback.print_exc()
        print(f"equipoise: {message}", file=sys.stderr)
        summary = {"status": "error", "message": message}
    try:
        print(json.dumps({**summary, "exit_code": code}, allow_nan=False), flush=True)
    except BrokenPipeError:  # the reader has gone; keep Python from complaining once more as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _failure(error: BaseException) -> tuple[int, str]:
    if isinstance(error, InputError):
        return BAD_INPUT, clean(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    return INTERNAL, clean(f"internal error, please report it: {type(error).__name__}: {error}")


def _parser() -> argparse.ArgumentParser:
    from equipoise import __version__

    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show where an error comes from")
    inputs = _Parser(add_help=False, parents=[common])
    inputs.add_argument("table", metavar="TABLE", type=Path, help="CSV: asset, quantity, price, target, ...")
    inputs.add_argument("--policy", metavar="FILE", type=Path, required=True, help="TOML, see docs/policy.md")
    inputs.add_argument("--returns", metavar="FILE", type=Path, help="CSV of returns for the policy's [risk]")
    inputs.add_argument("--covariance", metavar="FILE", type=Path, help="CSV of a covariance for the policy's [risk]")
    assets = _Parser(add_help=False)
    assets.add_argument(
        "--assets", metavar="FILE", type=Path, help="CSV with one row an asset: columns that a batch does not repeat"
    )
    output = _Parser(add_help=False)
    output.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the results")

    parser = _Parser(prog="equipoise", description="Verified orders that bring portfolios back to their targets.")
    parser.add_argument("--version", action="version", version=f"equipoise {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, run, parents, text in (
        ("demo", _demo, [common], "a tour on real data that comes with the package"),
        ("solve", _solve, [inputs, output], "one portfolio: a plan, its orders and its proof"),
        ("batch", _batch, [inputs, assets, output], "many portfolios in one table, keyed by portfolio_id"),
        ("check", _check, [inputs, assets], "read and check table and policy, solve nothing"),
    ):
        command = commands.add_parser(name, parents=parents, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        if name == "demo":
            command.add_argument("--all", action="store_true", help="all 1,000 accounts, not only the first 200")
    return parser


def _demo(options: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    from equipoise.optimizer.demo import demo

    return OK, demo(everything=options.all)


def _solve(options: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    from equipoise.optimizer import output

    policy, table = _policy(options), read(options.table)
    if "portfolio_id" in table.columns:
        raise InputError(f"{options.table} has a column portfolio_id; use `equipoise batch`", column="portfolio_id")
    plan = policy.rebalancer.solve(table)
    output.write_files(options.out, output.plan_files(plan, policy, _digests(options)))
    print(plan)
    print(f"\nwritten to {clean(options.out)}: plan.json, weights.csv, checks.csv, orders.csv")
    return OK if plan.status.ok else INCOMPLETE, {
        "status": plan.status.name,
        "verified": plan.status.ok,
        "message": plan.message,
        "orders": len(plan.orders),
        "cost": plan.cost,
        "turnover": plan.turnover,
        "gap": plan.gap if math.isfinite(plan.gap) else None,
    }


def _batch(options: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    from equipoise.optimizer import output

    policy, table = _policy(options), _batch_table(options)
    count = table["portfolio_id"].nunique(dropna=False)
    print(f"equipoise: solving {count:,} portfolios, {len(table):,} rows", file=sys.stderr, flush=True)
    start = time.perf_counter()
    plans = solve_batch(policy.rebalancer, table, _assets(options))
    seconds = time.perf_counter() - start
    print(f"equipoise: solved in {seconds:.1f} s, {count / seconds:,.0f} a second", file=sys.stderr, flush=True)
    summary = output.batch_summary(plans)
    output.write_files(options.out, output.batch_files(plans, policy, _digests(options), summary))
    for name, number in summary["statuses"].items():
        print(f"{number:>7,}  {name}")
    _name(plan for plan in plans if not plan.status.ok)
    print(f"\nwritten to {clean(options.out)}: summary.json, results.csv, orders.csv")
    complete = summary["verified"] == len(plans)
    return OK if complete else INCOMPLETE, {"status": "verified" if complete else "incomplete", **summary}


def _check(options: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    from equipoise.optimizer.policy_file import load  # noqa: F401

    policy, table = _policy(options), read(options.table)
    return OK, {"status": "ok"}
