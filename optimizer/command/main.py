"""The command `equipoise`: rebalance tables by a policy in a file.

The last line of standard output is one JSON object, whatever happens. Exit codes: 0 all is verified; 1 bad
input or usage, also if no portfolio of a batch can be read, and nothing is written; 2 some portfolio is infeasible,
unsolved or cannot be read (its row says so, the output is complete); 3 an internal error. Progress and errors go to
standard error.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from equipoise.constraints.errors import InputError
from equipoise.optimizer.plans.report import clean

# Modules that bring pandas are imported where they are used: `equipoise --help` should answer at once.
if TYPE_CHECKING:
    import pandas as pd

    from equipoise.optimizer.command.output import Document
    from equipoise.optimizer.command.policy_file import PolicyFile
    from equipoise.optimizer.problem.effort import Spent

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
        run: Callable[[argparse.Namespace], tuple[int, Document]] = options.run
        code, summary = run(options)
    except (Exception, KeyboardInterrupt) as error:
        code, message = _failure(error)
        if debug:
            traceback.print_exc()
        print(f"equipoise: {message}", file=sys.stderr)
        summary = {"status": "error", "message": message}
    try:
        _flush()
        print(json.dumps({**summary, "exit_code": code}, allow_nan=False), flush=True)
    except OSError as error:  # keep Python from complaining once more as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # the reader has gone, or wants no more
            print(f"equipoise: {_failure(error)[1]}", file=sys.stderr)
            code = code or BAD_INPUT
    return code


def _flush() -> None:
    """Write out what Python and C libraries have printed: C's own buffer is else emptied after the last line.

    HiGHS prints a line of its own now and then, whatever its options say.
    """
    sys.stdout.flush()
    if os.name == "posix":
        import ctypes

        ctypes.CDLL(None).fflush(None)


def _failure(error: BaseException) -> tuple[int, str]:
    if isinstance(error, InputError):
        return BAD_INPUT, clean(error)
    if isinstance(error, BrokenPipeError):
        return BAD_INPUT, "standard output was closed before the end"
    if isinstance(error, OSError):  # files are named where they are read and written
        return BAD_INPUT, clean(f"{error.filename or 'standard output'}: {error.strerror or error}")
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
    text = "who is asked: auto, threshold, newton, program, or one that cvxpy knows, such as CLARABEL (auto)"
    output.add_argument("--solver", metavar="NAME", default="auto", help=text)
    lots = output.add_argument_group("whole lots")
    lots.add_argument("--effort", metavar="N", type=int, default=1, help="spent on plans with a gap (1; 0: none)")
    lots.add_argument("--exact", action="store_true", help="go on until the gap is proven or the time is over")
    lots.add_argument("--gap", metavar="PART", type=float, default=1e-6, help="of the objective, for --exact (1e-6)")
    lots.add_argument(
        "--time-limit", metavar="SECONDS", type=float, default=60.0, help="a portfolio, for --exact; inf: none (60)"
    )

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
        if name == "batch":
            text = "unbiased: whole lots that add up to what the convex orders do over the batch"
            command.add_argument("--allocate", choices=("own", "unbiased"), default="own", help=text)
        if name == "demo":
            command.add_argument("--all", action="store_true", help="all 1,000 accounts, not only the first 200")
    return parser


def _demo(options: argparse.Namespace) -> tuple[int, Document]:
    from equipoise.optimizer.command.demo import demo

    summary = demo(everything=options.all)
    return OK if summary["status"] == "verified" else INCOMPLETE, summary


def _solve(options: argparse.Namespace) -> tuple[int, Document]:
    from equipoise.optimizer.batches import whole_files
    from equipoise.optimizer.command import output

    policy, table = _policy(options), _read(options.table)
    if "portfolio_id" in table.columns:
        raise InputError(f"{options.table} has a column portfolio_id; use `equipoise batch`", column="portfolio_id")
    digests = _digests(options)
    whole_files.check_writable(options.out)
    plan = policy.rebalancer.solve(table, **_spent(options))
    contents = output.plan_files(plan, policy, digests)
    output.write_files(options.out, contents, inputs=_inputs(options).values())
    print(plan)
    print(f"\nwritten to {clean(options.out)}: {', '.join(contents)}")
    return OK if plan.status.ok else INCOMPLETE, {
        "status": plan.status.name,
        "verified": plan.status.ok,
        "message": plan.message,
        "orders": len(plan.orders),
        "cost": plan.cost,
        "turnover": plan.turnover,
        "gap": plan.gap if math.isfinite(plan.gap) else None,
    }


def _batch(options: argparse.Namespace) -> tuple[int, Document]:
    from equipoise.optimizer.batches import whole_files
    from equipoise.optimizer.batches.inputs import check_readable
    from equipoise.optimizer.batches.solve import solve_batch
    from equipoise.optimizer.command import output
    from equipoise.optimizer.problem.effort import Effort

    policy = _policy(options)
    table, unknown = _batch_table(options)
    digests = _digests(options)
    whole_files.check_writable(options.out)
    count = table["portfolio_id"].nunique(dropna=False)
    print(f"equipoise: {count:,} portfolios, {len(table):,} rows", file=sys.stderr, flush=True)
    start = time.perf_counter()
    plans = solve_batch(
        policy.rebalancer.policy,
        table,
        spent=Effort(**_spent(options)),
        unbiased=options.allocate == "unbiased",
        refused=unknown,
    )
    results = plans.results
    seconds = time.perf_counter() - start
    print(f"equipoise: solved in {seconds:.1f} s, {count / seconds:,.0f} a second", file=sys.stderr, flush=True)
    summary = output.batch_summary(plans)
    check_readable(summary["statuses"], next(iter(results["message"])))
    contents = output.batch_files(plans, policy, digests, summary)
    output.write_files(options.out, contents, inputs=_inputs(options).values())
    print("\n".join(f"{number:>9,}  {name}" for name, number in summary["statuses"].items()))
    failed = results[~results["verified"]]
    _list(
        [
            f"{name}: {one}: {why}"
            for name, one, why in zip(failed.index, failed["status"], failed["message"], strict=True)
        ]
    )
    print(f"written to {clean(options.out)}: {', '.join(contents)}")
    complete = summary["verified"] == count
    return OK if complete else INCOMPLETE, {"status": "verified" if complete else "incomplete", **summary}


def _spent(options: argparse.Namespace) -> Spent:
    limit = None if options.time_limit == math.inf else options.time_limit
    return {
        "effort": options.effort,
        "exact": options.exact,
        "gap": options.gap,
        "time_limit": limit,
        "solver": options.solver,
    }


def _check(options: argparse.Namespace) -> tuple[int, Document]:
    from equipoise.optimizer.batches.inputs import unreadable

    policy, table = _policy(options), _read(options.table)
    rebalancer = policy.rebalancer
    rules = ", ".join(rule.title for rule in rebalancer.policy.constraints)
    print(f"policy: {clean(rules) or 'no rules'}; sha256 {policy.digest}")
    if "portfolio_id" not in table.columns:
        if options.assets is not None:
            raise InputError("--assets belongs to a table with a column portfolio_id", column="portfolio_id")
        problem = rebalancer.problem(table)
        portfolio = problem.asked.portfolio
        print(f"table: {len(portfolio.assets)} assets, NAV {portfolio.nav:,.2f}; all is well")
        return OK, {"status": "ok", "portfolios": 1, "invalid": 0}
    table, unknown = _batch_table(options)
    count, invalid = table["portfolio_id"].nunique(dropna=False), unreadable(rebalancer.policy, table, unknown)
    _list(invalid)
    print(
        f"table: {count:,} portfolios, {len(table):,} rows; "
        + (f"{len(invalid):,} invalid" if invalid else "all is well")
    )
    if invalid:
        return BAD_INPUT, {
            "status": "invalid",
            "portfolios": count,
            "invalid": len(invalid),
            "message": invalid[0],
        }
    return OK, {"status": "ok", "portfolios": count, "invalid": 0}


def _policy(options: argparse.Namespace) -> PolicyFile:
    from equipoise.optimizer.command.policy_file import load

    return load(options.policy, returns=options.returns, covariance=options.covariance)


def _digests(options: argparse.Namespace) -> dict[str, str]:
    """Of the tables; the policy and its data have theirs in the policy's canonical text."""
    from equipoise.optimizer.command.output import digest

    return {role: digest(path) for role, path in _inputs(options).items() if role in ("table", "assets")}


def _inputs(options: argparse.Namespace) -> dict[str, Path]:
    """The files that are read."""
    roles = ("table", "assets", "policy", "returns", "covariance")
    return {role: path for role in roles if (path := getattr(options, role, None)) is not None}


def _read(path: Path) -> pd.DataFrame:
    from equipoise.optimizer.portfolio.portfolio import read_table

    try:
        return read_table(path)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # pandas: empty, ragged, not UTF-8
        raise InputError(f"{path}: is not a table: {str(error).strip()}") from None


def _batch_table(options: argparse.Namespace) -> tuple[pd.DataFrame, dict[object, str]]:
    """The batch with the columns of --assets, and what to say of the portfolios with assets that it lacks."""
    table = _read(options.table)
    if "portfolio_id" not in table.columns:
        raise InputError(f"{options.table}: a batch needs a column portfolio_id", column="portfolio_id")
    if table.empty:
        raise InputError(f"{options.table}: the table has no rows")
    if options.assets is None:
        return table, {}
    assets = _assets(options.assets)
    twice = sorted(set(assets.columns) & set(table.columns))
    if twice:
        raise InputError(f"the column is in {options.table} and in {options.assets}; drop one", column=twice[0])
    known = set(assets.index)
    lost = table[[isinstance(label, str) and label not in known for label in table["asset"]]]
    unknown: dict[object, str] = {}
    for name, label in zip(lost["portfolio_id"], lost["asset"], strict=True):
        unknown.setdefault(name, f"{InputError(f'{options.assets} has no row for it', asset=label)}")
    return table.join(assets, on="asset"), unknown


def _assets(path: Path) -> pd.DataFrame:
    """The table of --assets, one row an asset."""
    assets = _read(path)
    if "portfolio_id" in assets.columns:
        raise InputError(f"{path}: has one row an asset, and no column portfolio_id", column="portfolio_id")
    seen: set[str] = set()
    for label in assets.index:
        same = unicodedata.normalize("NFC", label) if isinstance(label, str) else ""
        if not same:
            raise InputError(f"{path}: a row has no asset label", column="asset")
        if same in seen:
            raise InputError(f"{path}: the asset stands there twice", asset=label, column="asset")
        seen.add(same)
    # A portfolio's quantities are its own, so that the table of one account can serve as --assets.
    return assets.drop(columns="quantity", errors="ignore")


def _list(lines: Sequence[str]) -> None:
    for line in lines[:SHOWN]:
        print(f"  {clean(line)}")
    if len(lines) > SHOWN:
        print(f"  and {len(lines) - SHOWN:,} more")


if __name__ == "__main__":
    sys.exit(main())
