"""How far a batch is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

#: Seconds between two lines.
EVERY = 5.0


class Progress:
    """Counts portfolios. A context manager.

    wanted: True for a bar (on a terminal, with tqdm installed) or else plain lines on standard error; None for a
    bar where there can be one and nothing elsewhere; False for nothing. total: None if it is not known.
    """

    def __init__(self, wanted: bool | None, total: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock = total, clock
        self._done = self._solved = self._shown = 0
        self._start = self._last = clock()
        self._bar = _bar(total) if wanted is not False else None
        self._lines = wanted is True and self._bar is None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._lines and self._done != self._shown:
            self._line()

    def add(self, portfolios: int, *, solved: bool = True) -> None:
        """So many more; not `solved` if they were found in a checkpoint, which says nothing about the speed."""
        self._done += portfolios
        self._solved += portfolios if solved else 0
        if self._bar is not None:
            self._bar.update(portfolios)
        elif self._lines and self._clock() - self._last >= EVERY:
            self._line()

    def _line(self) -> None:
        self._last, self._shown = self._clock(), self._done
        seconds = self._last - self._start
        rate = self._solved / seconds if seconds > 0 else 0.0
        of = f" of {self._total:,}" if self._total is not None else ""
        text = f"equipoise: {self._done:,}{of} portfolios, {rate:,.3g} a second"
        if self._total is not None and rate > 0 and self._done < self._total:
            text += f", {_time((self._total - self._done) / rate)} left"
        print(text, file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _bar(total: int | None) -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, unit=" portfolios", file=sys.stderr, dynamic_ncols=True)
