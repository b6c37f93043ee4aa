"""The table, aligned for a terminal and valid as markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from importlib import metadata
from platform import machine, processor, python_version

from .instances import Family
from .peer import PEERS, Peer
from .race import Result
from .reference import Reference

HEADER = (
    "peer",
    "ms a portfolio",
    "x ours",
    "worst gap",
    "median gap",
    "worst violation",
    "extra trades",
    "solved",
    "notes",
)
_OURS = "equipoise, compiled"


def facts(family: Family, references: Sequence[Reference]) -> dict[str, float]:
    """What the optima look like, so that a reader sees what was asked."""
    mean = {
        "trades": statistics.mean(r.trades for r in references),
        "rows with a price": statistics.mean(r.active for r in references),
        "cash at a bound": statistics.mean(r.cash_at_bound for r in references),
    }
    return {**mean, "worst gap of the reference": max(r.gap for r in references), "judged": float(len(references))}


def markdown(family: Family, references: Sequence[Reference], results: Sequence[Result]) -> str:
    ours = next((r.seconds for r in results if r.peer == _OURS and r.seconds), None)
    rows = [HEADER, *(_row(result, ours) for result in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    left = (0, len(HEADER) - 1)

    def line(row: Sequence[str]) -> str:
        cells = (row[i].ljust(w) if i in left else row[i].rjust(w) for i, w in enumerate(widths))
        return f"| {' | '.join(cells)} |"

    rule = "|" + "|".join("-" * (w + 2) if i in left else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    said = ", ".join(f"{name} {value:.3g}" for name, value in facts(family, references).items() if value)
    return "\n".join([f"### {family.title}", "", f"The optima: {said}.", "", line(rows[0]), rule, *map(line, rows[1:])])


def _row(result: Result, ours: float | None) -> tuple[str, ...]:
    peer = next(peer for peer in PEERS if peer.name == result.peer)
    notes = "; ".join(note for note in (peer.note, result.said) if note)
    if result.seconds is None:
        return (result.peer, *("–",) * 7, notes)
    many = f"{result.solved}/{result.asked}" + (f" of {result.count}" if peer.many else "")
    return (
        result.peer,
        _rounded(1e3 * result.seconds),
        _rounded(result.seconds / ours) if ours else "–",
        _power(result.gap_worst),
        _power(result.gap_median),
        _power(result.violation),
        "–" if result.extra_trades is None else f"{result.extra_trades:.1f}",
        many,
        notes,
    )


def _rounded(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _power(value: float | None) -> str:
    return "–" if value is None else f"{value:.0e}"


def versions(peers: Sequence[Peer]) -> dict[str, str]:
    found = {}
    for package in dict.fromkeys([p.package for p in peers] + ["numpy", "scipy", "pandas"]):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "from the source tree" if package == "equipoise" else "not installed"
    return found


def surroundings(peers: Sequence[Peer]) -> str:
    """The processor and the versions, in one line."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = processor() or machine()
    listed = ", ".join(f"{package} {version}" for package, version in versions(peers).items())
    return f"{name}; one thread each; Python {python_version()}; {listed}"
