"""The runs: each library in a process of its own, the peers in turn and again, so that noise meets all of them."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from .instances import Family
from .measure import trades
from .peer import Peer
from .reference import Reference
from .worker import Answers, serve

_ENDING = 2.0  # seconds that a worker has to end by itself
_LOADING = 180.0  # seconds that the imports of a library may take


@dataclass
class Result:
    """One row: processor seconds a portfolio (median), the quality of its answers, or why there are none.

    Gaps are (objective − bound)/|bound|, the violation is of NAV, and `extra_trades` is how many more assets trade
    than at the optimum, on average. `count`: how many portfolios the timed call had.
    """

    peer: str
    said: str = ""
    setup: float | None = None
    seconds: float | None = None
    solved: int = 0
    asked: int = 0
    count: int = 0
    gap_worst: float | None = None
    gap_median: float | None = None
    violation: float | None = None
    extra_trades: float | None = None
    runs: list[Answers] = field(default_factory=list, repr=False)


class Library:
    """A worker process, started when first needed and again after it had to be ended."""

    def __init__(self, module: str, limit: float) -> None:
        self.module, self.limit = module, limit
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._family: Family | None = None
        self._loaded = False

    def start(self) -> None:
        """Starts to import; `ask` waits until that is done."""
        self._started()

    def ask(self, family: Family, *message: Any) -> tuple[str, Any]:
        try:
            pipe = self._started()
            if self._family is not family:
                pipe.send(("family", family))
                self._family = family
            pipe.send(message)
            if not self._loaded:
                self._loaded = pipe.poll(_LOADING) and pipe.recv() == "loaded"
            if self._loaded and pipe.poll(self.limit):
                answer: tuple[str, Any] = pipe.recv()
                return answer
            self.stop()
            return "stopped", f"no answer within {self.limit:g} s"
        except (EOFError, BrokenPipeError, ConnectionResetError):
            code = self._process.exitcode if self._process is not None else None
            self.stop()
            return "died", f"the process died (exit code {code})"

    def stop(self) -> None:
        if self._process is not None and self._pipe is not None:
            self._pipe.close()  # which ends an idle worker
            self._process.join(_ENDING)
            self._process.terminate()
            self._process.join()
        self._process = self._pipe = self._family = None
        self._loaded = False

    def _started(self) -> Connection:
        if self._process is None or self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=serve, args=(theirs, self.module), daemon=True)
            self._process.start()
            theirs.close()
        return self._pipe


def race(
    family: Family,
    references: Sequence[Reference],
    peers: Sequence[Peer],
    libraries: dict[str, Library],
    *,
    repeats: int,
    budget: float,
    left_out: Mapping[str, str],
) -> list[Result]:
    """All peers on one family. `budget`: processor seconds after which a peer's run, and its repeats, end;
    `left_out`: peers that do not run, with the reason."""
    results = {peer.name: Result(peer.name) for peer in peers}
    running = []
    for peer in peers:
        if peer.name in left_out:
            results[peer.name].said = left_out[peer.name]
            continue
        outcome, value = libraries[peer.module].ask(family, "prepare", peer)
        if outcome == "ready":
            results[peer.name].setup = value
            running.append(peer)
        else:
            results[peer.name].said = f"cannot state it: {value}" if outcome == "unstated" else f"{outcome}: {value}"
    spent = dict.fromkeys(results, 0.0)
    for _ in range(repeats):
        for peer in list(running):
            outcome, value = libraries[peer.module].ask(family, "run", peer.name, budget)
            if outcome == "done":
                results[peer.name].runs.append(value)
                spent[peer.name] += sum(value.seconds)
            elif not results[peer.name].runs:
                results[peer.name].said = f"{outcome}: {value}"
            if outcome != "done" or spent[peer.name] > budget:
                running.remove(peer)
            if outcome in ("stopped", "died"):  # the process took the library's other peers with it
                lost = [p for p in running if p.module == peer.module]
                running = [p for p in running if p not in lost]
                for other in lost:
                    if libraries[other.module].ask(family, "prepare", other)[0] == "ready":
                        running.append(other)
    for peer in peers:
        _judge(results[peer.name], family, references, peer)
    return [results[peer.name] for peer in peers]


def _judge(result: Result, family: Family, references: Sequence[Reference], peer: Peer) -> None:
    if not result.runs:
        return
    first, result.count = result.runs[0], max(run.count for run in result.runs)
    if peer.many:
        result.seconds = statistics.median(run.seconds[0] / run.count for run in result.runs)
    else:
        each = zip(*(run.seconds for run in result.runs if len(run.seconds) == len(first.seconds)), strict=True)
        result.seconds = statistics.median(statistics.median(times) for times in each)
    found = [
        (p, r, w)
        for p, r, w in zip(family.instances, references, first.weights, strict=False)
        if w is not None and np.all(np.isfinite(w))
    ]
    result.solved, result.asked = len(found), len(first.weights)
    early = f"time for {result.asked} of {len(references)}" if result.asked < len(references) else ""
    result.said = "; ".join(text for text in (first.error if len(found) < result.asked else "", early) if text)
    if found:
        gaps = [(p.objective(w) - r.bound) / abs(r.bound) for p, r, w in found]
        result.gap_worst, result.gap_median = max(gaps, key=abs), statistics.median(gaps)
        result.extra_trades = statistics.mean(trades(p, w) - r.trades for p, r, w in found)
        result.violation = max(p.violation(w) for p, _, w in found)
