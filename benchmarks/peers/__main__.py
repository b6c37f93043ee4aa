"""All peers side by side, one thread each, on the same instances.

python -m benchmarks.peers                      everything, under half an hour
python -m benchmarks.peers --quick              n up to 200, a few instances, under two minutes
python -m benchmarks.peers --n 50 500 --peers equipoise ledge PIQP --families bands rows
"""

from __future__ import annotations

import os

for _variable in ("OMP", "OPENBLAS", "MKL", "RAYON", "NUMEXPR", "NUMBA", "VECLIB_MAXIMUM"):
    os.environ[f"{_variable}_NUM_THREADS" if _variable != "VECLIB_MAXIMUM" else "VECLIB_MAXIMUM_THREADS"] = "1"

import argparse  # noqa: E402
import json  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from dataclasses import asdict  # noqa: E402

from .instances import SIZES, Family, bands, equity, walk, with_rows  # noqa: E402
from .peer import PEERS  # noqa: E402
from .race import Library, race  # noqa: E402
from .reference import judged  # noqa: E402
from .table import facts, markdown, surroundings, versions  # noqa: E402

FAMILIES = ("bands", "rows", "walk", "equity")
_BANDS = {True: (10, 50, 200), False: tuple(SIZES)}  # quick or not
_ROWS = {True: (50,), False: (10, 50, 200, 500, 1000)}


def families(args: argparse.Namespace) -> Iterator[Family]:
    """`count` instances for batch calls, the first few for everyone."""

    def few(n: int) -> int:
        return 5 if args.quick else 20 if n <= 200 else 10 if n <= 1000 else 3

    for name in args.families:
        if name == "bands":
            for n in args.n or _BANDS[args.quick]:
                yield bands(n, max(few(n), min(2000, 400_000 // n)), few(n), args.seed)
        elif name == "rows":
            for n in args.n or _ROWS[args.quick]:
                yield with_rows(n, max(few(n), min(1000, 200_000 // n)), few(n), args.seed)
        elif name == "walk":
            accounts, dates = (40, 5) if args.quick else (200, 12)
            yield walk(accounts, dates, accounts * dates)
        else:
            yield equity(100 if args.quick else 1000, few(50))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--n", type=int, nargs="+", help="assets of the families bands and rows")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--peers", nargs="+", help="peers whose name contains one of these")
    parser.add_argument("--repeats", type=int, help="how often all peers run in turn (5; quick: 3)")
    parser.add_argument(
        "--budget", type=float, help="processor seconds after which a peer's runs on a family end (5; quick: 0.7)"
    )
    parser.add_argument("--limit", type=float, help="seconds after which a silent peer is ended (120; quick: 60)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="also write all figures to this file")
    args = parser.parse_args()
    repeats, budget = args.repeats or (3 if args.quick else 5), args.budget or (0.7 if args.quick else 5.0)
    limit = args.limit or (60.0 if args.quick else 120.0)
    peers = [p for p in PEERS if not args.peers or any(part.lower() in p.name.lower() for part in args.peers)]
    if not peers:
        parser.error(f"no peer of that name; there are: {'; '.join(p.name for p in PEERS)}")
    # Generating and compiling code takes a minute a family: in a quick run only for those who ask.
    compiled = [p.name for p in peers if p.module == "generated"] if args.quick and not args.peers else []
    left_out = dict.fromkeys(compiled, "not in a quick run, unless --peers names it")
    patience = {"generated": 3.0}  # times the limit: a compiler runs
    libraries = {p.module: Library(p.module, patience.get(p.module, 1.0) * limit) for p in peers}
    for library in libraries.values():
        library.start()
    line = surroundings(peers)
    print(line, flush=True)
    written = []
    began = time.perf_counter()
    for drawn in families(args):
        family, references = judged(drawn)
        results = race(family, references, peers, libraries, repeats=repeats, budget=budget, left_out=left_out)
        print("\n" + markdown(family, references, results), flush=True)
        rows = [{key: value for key, value in asdict(r).items() if key != "runs"} for r in results]
        written.append({"family": family.name, "title": family.title, **facts(family, references), "results": rows})
    for library in libraries.values():
        library.stop()
    print(f"\n{time.perf_counter() - began:.0f} s in all")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"surroundings": line, "versions": versions(peers), "families": written}, file, indent=1)


if __name__ == "__main__":
    main()
