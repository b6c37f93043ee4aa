"""Batches of small accounts, and rules that harm the process they are in; importable by worker processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from equipoise import Rebalancer
from equipoise.constraints import DriftBand, LongOnly
from equipoise.constraints.errors import NotStackable
from equipoise.constraints.pieces import Piece
from equipoise.constraints.rules.rule import Account, Rule
from equipoise.optimizer import ProportionalCost
from equipoise.optimizer.batches.chunk import Chunk, flat
from equipoise.optimizer.batches.plain_tables import encode, to_bytes

CASH = "USD"


def accounts(count: int, n: int = 5, *, seed: int = 0, first: int = 0) -> pd.DataFrame:
    """Portfolios P0000, P0001, ... of n assets with the cash, `harm` 0 for each."""
    rng = np.random.default_rng([seed, first])
    held, target = (rng.dirichlet(np.full(n, 5.0), size=count) for _ in range(2))
    price = np.append(np.arange(1, n) * 12.5, 1.0)
    return pd.DataFrame(
        {
            "portfolio_id": np.repeat([f"P{first + i:04d}" for i in range(count)], n),
            "asset": np.tile([*(f"A{i:02d}" for i in range(n - 1)), CASH], count),
            "quantity": (held * 1e5 / price).round(4).ravel(),
            "price": np.tile(price, count),
            "target": target.ravel(),
            "harm": 0.0,
        }
    )


def harmed(table: pd.DataFrame, harm: float, *names: str) -> pd.DataFrame:
    return table.assign(harm=table["harm"].where(~table["portfolio_id"].isin(names), harm))


@dataclass(frozen=True, kw_only=True)
class Harm(Rule):
    """What the column `harm` says: 1 ends the process, 2 hangs, 3 ends it but for the first time only (`mark` is
    there from then on), 4 waits a little, 5 raises unless numerical libraries use one thread, 6 waits longer, in no
    stack, 7 lacks memory, 8 lacks it for the first time only, 9 hangs unless `mark` is there."""

    mark: str = ""

    def pieces(self, account: Account) -> Sequence[Piece]:
        harm = account.numbers("harm", "harm").max()
        if harm == 1:
            os._exit(3)
        if harm == 9 and not Path(self.mark).exists():
            Path(self.mark).with_suffix(".hangs").touch()
            time.sleep(600)
        if harm == 2:
            time.sleep(600)
        if harm == 3 and not Path(self.mark).exists():
            Path(self.mark).touch()
            os._exit(4)
        if harm == 4:
            time.sleep(0.05)
        if harm == 5 and any(os.environ.get(f"{name}_NUM_THREADS") != "1" for name in ("OMP", "OPENBLAS", "MKL")):
            raise RuntimeError("more threads than one")
        if harm == 6:
            if len(account.shape) > 1:
                raise NotStackable
            time.sleep(0.1)
        if harm == 7 or (harm == 8 and not Path(self.mark).exists()):
            Path(self.mark).touch()
            raise MemoryError("too much")
        return ()


def rebalancer(*rules: Rule, harm: bool = True, aversion: float = 10.0, mark: str = "") -> Rebalancer:
    kept = [LongOnly(), DriftBand(relative=0.25, absolute=0.05), *rules, *([Harm(mark=mark)] if harm else [])]
    return Rebalancer(cash=CASH, costs=[ProportionalCost(0.001)], constraints=kept, aversion=aversion)


def joined(chunks: Iterable[Chunk]) -> Chunk:
    results, orders = zip(*chunks, strict=True)
    return Chunk(pd.concat(results), pd.concat(orders))


def content(chunks: Iterable[Chunk]) -> bytes:
    """Every bit of the results and orders."""
    return to_bytes(*(encode(flat(table)) for table in joined(chunks)))


def without(chunks: Iterable[Chunk], *names: str) -> bytes:
    """Every bit of those of other portfolios."""
    chunk = joined(chunks)
    kept = (table[~table.index.get_level_values("portfolio_id").isin(names)] for table in chunk)
    return to_bytes(*(encode(flat(table)) for table in kept))
