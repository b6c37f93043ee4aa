"""Integer portfolio problems that others have published or proven: how near the plan, how near the proof.

    OMP_NUM_THREADS=1 python benchmarks/integer.py --data FOLDER [--sets lots cardinality minbuy minlp] [--seconds 20]
                                                   [--scip] [--every 1]

Each is stated as a rebalance: from cash, fully invested, with the target at the cash, so that the objective is the
variance; or as it is (lots). FOLDER holds the four sets as they were published (each with its SOURCE.txt):

    lots          whole-lot rebalances with fees for each order and limits on the number of orders: lot_miqp_exact
    cardinality   least variance at a return, at most K names of at least 1 %: cardinality_exact (Cesarone et al.)
    minbuy        least variance at a return, each name zero or at least its own minimum: mv_minbuy (Frangioni, Gentile)
    minlp         minimum buy-ins, cardinality, whole units: minlp_portfolio (MINLPLib)

    excess     objective of the plan above the best known one, at default effort
    left       the plan above its own bound, at default effort
    ms         from the table to verified orders
    exact      the plan of `solve(exact=True)` above the best known one, `open` its gap, `s` its seconds
    scip       the gap and the seconds of SCIP on the same program (--scip), one thread
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lots
import numpy as np
import pandas as pd

from equipoise import Rebalancer
from equipoise.constraints import (
    CashBand,
    FactorLimit,
    LongOnly,
    LotSize,
    MinimumPosition,
    NameLimit,
    TrackingErrorLimit,
    WeightBounds,
)
from equipoise.optimizer import CovarianceRisk, HoldingCost

CASH = "CASH"


@dataclass(frozen=True, eq=False)
class Case:
    """A rebalance, the best known objective in our units, and by which part of it that may be wrong."""

    name: str
    rebalancer: Rebalancer
    table: pd.DataFrame
    best: float
    tolerance: float = 1e-6
    #: What `by_scip` needs.
    data: dict[str, Any] | None = None


def read(path: Path) -> Any:
    return json.loads(gzip.decompress(path.read_bytes()))


def from_cash(names: list[str], nav: float = 1.0, price: list[float] | None = None) -> pd.DataFrame:
    """An account that is all cash, and whose target is the cash."""
    n = len(names)
    return pd.DataFrame(
        {"quantity": [0.0] * n + [nav], "price": [*(price or [1.0] * n), 1.0], "target": [0.0] * n + [1.0]},
        index=pd.Index([*names, CASH], name="asset"),
    )


def fully_invested(covariance: np.ndarray, rules: list[Any], **options: Any) -> tuple[Rebalancer, list[str]]:
    """wᵀΣw over long weights that add up to 1."""
    names = [f"A{i + 1:03d}" for i in range(len(covariance))]
    risk = CovarianceRisk(pd.DataFrame(covariance, index=names, columns=names))
    rules = [LongOnly(), CashBand(0.0, 1e-9), *rules]
    return Rebalancer(risk=risk, constraints=rules, cash=CASH, aversion=2.0, **options), names


def by_name(values: Any) -> dict[str, float]:
    return {f"A{i + 1:03d}": float(x) for i, x in enumerate(values)}


def of_lots(data: Path) -> Iterator[Case]:
    for case in lots.instances(data / "lot_miqp_exact" / "instances.json.gz"):
        rebalancer, table = lots.stated(case)
        yield Case(case["id"], rebalancer, table, case["expected"]["objective"], data=case)


def orlib(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean returns and covariance of a file of the OR-Library."""
    numbers = iter(gzip.decompress(path.read_bytes()).split())
    n = int(next(numbers))
    mean, sd = np.array([[float(next(numbers)) for _ in range(2)] for _ in range(n)]).T
    correlation = np.eye(n)
    for i, j, value in zip(*(numbers,) * 3, strict=False):
        correlation[int(i) - 1, int(j) - 1] = correlation[int(j) - 1, int(i) - 1] = float(value)
    return mean, correlation * np.outer(sd, sd)


def of_cardinality(data: Path) -> Iterator[Case]:
    folder = data / "cardinality_exact"
    weekly = pd.read_csv(folder / "eurostoxx50_weekly_prices.csv.gz", index_col=0)
    returns = np.log(weekly).diff().iloc[1:213]
    moments = {"eurostoxx50": (returns.mean().to_numpy(), returns.cov().to_numpy())}
    for name in ("port1", "port3"):
        moments[name] = orlib(data / "orlib" / f"{name}.txt.gz")
    for row in csv.DictReader(io.StringIO((folder / "certified_minvar.csv").read_text())):
        if row["instance"] not in moments or row["status"] != "optimal":
            continue
        mean, covariance = moments[row["instance"]]
        wanted = float(row["target_return"].removeprefix("np.float64(").removesuffix(")"))
        # Their return is an equation; in decimal steps of a weight it is one to within these.
        returns = FactorLimit(by_name(mean), lower=wanted - 1e-9, upper=wanted + 1e-9)
        rules = [returns, MinimumPosition(0.01), NameLimit(int(row["K"]))]
        rebalancer, names = fully_invested(covariance, rules)
        name = f"{row['instance']}_{row['tag']}_K{row['K']}"
        yield Case(name, rebalancer, from_cash(names), float(row["variance"]), 1e-5)


def of_minbuy(data: Path) -> Iterator[Case]:
    for path in sorted((data / "mv_minbuy").glob("*.json.gz")):
        case = read(path)
        n = case["n"]
        rows = [[float(x) for x in row.split()] for row in case["Q_upper_rows"]]
        matrix = np.zeros((n, n))
        for i, row in enumerate(rows):
            matrix[i, i:] = matrix[i:, i] = row[i:] if len(row) == n else row
        rules = [
            FactorLimit(by_name(case["mu"]), lower=case["rho"]),
            MinimumPosition(by_name(case["l"])),
            WeightBounds(upper=by_name(case["u"])),
        ]
        rebalancer, names = fully_invested(matrix, rules)
        yield Case(case["name"], rebalancer, from_cash(names), case["best_upper_bound"], 1e-4)


def of_minlp(data: Path) -> Iterator[Case]:
    folder = data / "minlp_portfolio"
    best = {row["instance"]: row for row in csv.DictReader((folder / "certified_portfol.csv").open())}
    # Least volatility; its chance constraint (e2) does not bind at the optimum. portfol_card asks for exactly five
    # names, which is no rule here.
    case = read(folder / "portfol_buyin.json.gz")
    rows = {row["name"]: row for row in case["constraints"]}
    covariance = np.zeros((8, 8))
    for one, other, value in rows["e3"]["sqrt_of_quad"][0]["quad"]:
        i, j = int(one[1:]) - 1, int(other[1:]) - 1
        covariance[i, j] += 0.5 * value
        covariance[j, i] += 0.5 * value
    rebalancer, names = fully_invested(covariance, [MinimumPosition(rows["e13"]["lin"]["b10"])])
    yield Case("portfol_buyin", rebalancer, from_cash(names), float(best["portfol_buyin"]["objective"]) ** 2)
    case = read(folder / "portfol_classical050_1.json.gz")
    rows = {row["name"]: row for row in case["constraints"]}
    held = [f"x{i}" for i in range(52, 102)]
    mean = np.array([-rows["e1"]["lin"][x] for x in held])
    root = np.array([[rows[f"e{j}"]["lin"].get(x, 0.0) for x in held] for j in range(55, 105)])
    rules = [NameLimit(int(rows["e54"]["rhs"])), TrackingErrorLimit(np.sqrt(rows["e2"]["rhs"]))]
    rebalancer, names = fully_invested(root.T @ root, rules)
    # The return alone is the objective: risk at next to no aversion.
    linear = Rebalancer(
        risk=rebalancer.policy.risk,
        costs=[HoldingCost(long=by_name(-mean), short=by_name(mean))],
        constraints=rebalancer.policy.constraints,
        cash=CASH,
        aversion=1e-9,
    )
    yield Case("portfol_classical050_1", linear, from_cash(names), float(best["portfol_classical050_1"]["objective"]))
    case = read(folder / "smallinvDAX.json.gz")
    n = case["n"]
    matrix = np.zeros((n, n))
    for i, row in enumerate(case["Q_upper"]):
        matrix[i, i:] = matrix[i:, i] = row
    budgets = {budget["tag"]: budget for budget in case["budgets"]}
    for row in csv.DictReader((folder / "certified_smallinvDAX.csv").open()):
        number, tag = row["instance"].removeprefix("smallinvDAXr").split("b")
        budget, wanted = budgets[tag], case["r"][number]
        nav, price = budget["hi"], np.array(case["prices"])
        # x units are weights price·x/hi; what is not invested of hi is at most hi − lo.
        covariance = matrix * nav**2 / np.outer(price, price)
        names = [f"A{i + 1:03d}" for i in range(n)]
        rules = [LongOnly(), CashBand(0.0, 1.0 - budget["lo"] / nav), LotSize(1.0)]
        returns = np.array(wanted["mu_minus_target"]) * nav / price
        rules.append(FactorLimit(by_name(returns), lower=float(wanted["rhs"])))
        risk = CovarianceRisk(pd.DataFrame(covariance, index=names, columns=names))
        stated = Rebalancer(risk=risk, constraints=rules, cash=CASH, aversion=2.0)
        yield Case(row["instance"], stated, from_cash(names, nav, list(price)), float(row["objective"]))


SETS = {"lots": of_lots, "cardinality": of_cardinality, "minbuy": of_minbuy, "minlp": of_minlp}


def run(case: Case, seconds: float, *, scip: bool) -> tuple[float, float, float]:
    case.rebalancer.solve(case.table, effort=0)
    began = time.perf_counter()
    plan = case.rebalancer.solve(case.table)
    took = 1e3 * (time.perf_counter() - began)
    began = time.perf_counter()
    exact = case.rebalancer.solve(case.table, exact=True, time_limit=seconds)
    proving = time.perf_counter() - began
    size = abs(case.best)
    excess, left = (plan.objective - case.best) / size, plan.gap / size
    print(
        f"{case.name:28}{len(case.table) - 1:>4}{excess:>10.4%}{left:>9.2%}{took:>8.0f}"
        f"{(exact.objective - case.best) / size:>11.5%}{exact.gap / size:>11.5%}{proving:>7.1f}",
        end="",
    )
    if exact.bound > case.best + case.tolerance * size:
        print("   A WRONG PROOF", end="")
    print("{:>10.4%}{:>7.1f}".format(*lots.by_scip(case.data, seconds)) if scip and case.data else "", flush=True)
    return excess, exact.gap / size, proving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--every", type=int, default=1, help="only every so many instances of a set")
    parser.add_argument("--scip", action="store_true")
    args = parser.parse_args()
    for name in args.sets:
        print(f"\n{name:28}{'n':>4}{'excess':>10}{'left':>9}{'ms':>8}{'exact':>11}{'open':>11}{'s':>7}")
        found = np.array([run(c, args.seconds, scip=args.scip) for c in list(SETS[name](args.data))[:: args.every]])
        excess, gap, _ = found.T
        print(
            f"{name}: {len(found)} instances; excess at default effort: median {np.nanmedian(excess):.4%}, 95th "
            f"percentile {np.nanquantile(excess, 0.95):.3%}, largest {np.nanmax(excess):.3%}; without a plan "
            f"{np.isnan(excess).sum()}; proven to 1e-6 {np.sum(gap <= 1.01e-6)}, to 1e-4 {np.sum(gap <= 1.01e-4)}"
        )


if __name__ == "__main__":
    main()
