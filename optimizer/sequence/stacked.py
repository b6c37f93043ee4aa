"""The states of many portfolios between their orders at once, in arrays, with a bound on the rounding errors.

An order moves its own asset and the cash. So each rule's excess after some of the orders is a sum, of one change for
each order that is done, and of what the cash adds: all orders are looked at together. What is said to be safe, or not
to be, is so in spite of any rounding error (as in `verification`), by the argument of `sequence`: a step is safe if
each rule holds after it, or is broken by no more than before it. That the ends are kept is known.

**No sequence.** Along one order the excess is convex. If the smallest slice of an order is not safe as the first step,
no larger one is, and so for the last step, taken back. Where no order has a safe first slice, or none a safe last one,
there is no sequence in any slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np

from equipoise.constraints.pieces import Array, Envelope, Index, Indices, Mask, Row
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import FEASIBILITY_TOLERANCE, ROUNDING_TOLERANCE

#: Less than the smallest slice of an order that `sequence` makes, and a power of two.
SMALLEST = 2.0**-14
#: `sequence` cuts orders at multiples of 1e-9 of the power of ten above their size: so far may a slice be off.
_CUT = 1e-8

#: With more orders than this nothing is looked for in steps of the orders' number squared.
MOST = 150
#: So few orders are looked at in all orders of them, in so many states at a time.
FEW, _STATES = 12, 2**18


class Ways:
    """The orders of a stack: signed trades and their costs (B, n), in fractions of NAV, and the rows that are asked."""

    def __init__(self, problem: Problem, rows: Sequence[Row], traded: Array, costs: Array) -> None:
        count, n = traded.shape
        self.cash = cash = problem.cash
        before = problem.before
        self.before, self.traded, self.costs, self.start = before, traded, costs, before[cash]
        self.floor = problem.lower[cash]
        gross = np.abs(before).sum(-1)
        self.volume = np.abs(traded).sum(-1)
        rounding = 4.0 * (n + 16) * (1.0 + gross) * 2.0**-53 * (gross + 2.0 * self.volume + costs.sum(-1))
        self.lots = lots = problem.discrete
        tolerance = ROUNDING_TOLERANCE if lots else FEASIBILITY_TOLERANCE
        #: Of each rule (R, B), the floor of the cash first: its limit, and by how much its excess may be off.
        self._tolerance = tolerance
        limits, errors = [np.where(lots & (self.floor == 0), 0.0, tolerance)], [rounding]
        self.slopes: list[tuple[Array, ...]] = []
        self.uppers: list[Array] = []
        self.at_cash: list[tuple[Array, ...]] = []
        for row in rows:
            up, down, buy, sell = slopes_of(row, traded.shape)
            self.at_cash.append((up[cash][:, None], down[cash][:, None]))
            steepest = 1.0 + np.sqrt(np.square(np.abs(up) + np.abs(down) + np.abs(buy) + np.abs(sell)).sum(-1))
            trade = np.where(traded > 0, buy, -sell)
            for each in (up, down, trade):
                each[cash] = 0.0
            self.slopes.append((up, down, trade))
            self.uppers.append(np.broadcast_to(row.upper, count))
            limits.append(np.full(count, tolerance))
            errors.append(rounding * steepest)
        self.limits, self.errors = np.array(limits), np.array(errors)

    def take(self, which: Index) -> Ways:
        """Those of these portfolios."""
        made = object.__new__(Ways)
        made.cash, made.lots, made._tolerance = self.cash, self.lots, self._tolerance
        for name in ("before", "traded", "costs", "start", "volume", "floor"):
            setattr(made, name, getattr(self, name)[which])
        made.slopes = [tuple(each[which] for each in row) for row in self.slopes]
        made.uppers = [upper[which] for upper in self.uppers]
        made.at_cash = [(up[which], down[which]) for up, down in self.at_cash]
        made.limits, made.errors = self.limits[:, which], self.errors[:, which]
        return made

    def values(self, part: float) -> list[Array]:
        """What each asset adds to each row, (B, n), when this part of all orders is done."""
        weights = self.before + part * self.traded
        return [
            up * np.maximum(weights, 0.0) + down * np.minimum(weights, 0.0) + trade * (part * self.traded)
            for up, down, trade in self.slopes
        ]

    def excess(self, money: Array, paid: Array, rows: list[Array]) -> Array:
        """Of each rule, (R, B, S), in states with so much traded and paid, and so much of each row, all (B, S)."""
        gross = self.start[:, None] - money
        net = gross - paid
        found = [self.floor[:, None] - net]
        for row, upper, (up, down) in zip(rows, self.uppers, self.at_cash, strict=True):
            over = row - upper[:, None]
            if np.any(up) or np.any(down):
                over += np.maximum(*(up * np.maximum(x, 0.0) + down * np.minimum(x, 0.0) for x in (gross, net)))
            found.append(over)
        return np.array(found)

    def _after(self, changes: Array) -> Array:
        """The excess (R, B, S) after so much of what `changes` counts (R + 1, B, S) since the start."""
        money, paid, *rows = changes
        return self.excess(money, paid, [x + s[:, None] for x, s in zip(rows, self.changes[0], strict=True)])

    def one_step(self, done: float, part: float) -> Array:
        """The excess (R, B, n) with `done` of all orders done, and of one of them, each in its turn, `part` instead."""
        here, there = self.values(done), self.values(part)
        money, paid = ((done * x.sum(-1))[:, None] + (part - done) * x for x in (self.traded, self.costs))
        rows = [x.sum(-1)[:, None] - x + y for x, y in zip(here, there, strict=True)]
        return self.excess(money, paid, rows)

    def kept(self, excess: Array, earlier: Array, still: Mask, more: Array | float = 0.0) -> Mask:
        """Where (B, S) a step from the excess `earlier` is certainly safe; `still`: rules (R, B, S) that it leaves as
        they are. `more` (R, B): by how much the excess may be off beyond the rounding errors."""
        errors = (self.errors + more)[:, :, None]
        most = np.maximum(self.limits[:, :, None] - errors, earlier - 2.0 * errors)
        return np.asarray(((excess <= most) | still).all(0))

    def broken(self, excess: Array) -> Mask:
        """Where (B, S) some rule is certainly broken, and by more than at the end, too."""
        return np.asarray((excess > self._most()[:, :, None]).any(0))

    def _most(self) -> Array:
        return np.asarray(np.maximum(self.limits, self.ends(1.0)) + 2.0 * self.errors)

    def ends(self, part: float) -> Array:
        """The excess (R, B) with this part of all orders done."""
        money, paid = ((part * x.sum(-1))[:, None] for x in (self.traded, self.costs))
        return self.excess(money, paid, [x.sum(-1)[:, None] for x in self.values(part)])[:, :, 0]

    def begins_well(self) -> Mask:
        """Whether (B,) every row, and the floor, certainly holds at the start."""
        return np.asarray((self.ends(0.0) <= self.limits - self.errors).all(0))

    def none(self, envelopes: Sequence[Envelope] = ()) -> Mask:
        """For which (B,) there certainly is no sequence in any slices, under these envelopes, too. (Nothing is said
        where a rule is broken at the start: it may get worse to be mended.)"""
        still = self.traded == 0
        turn = np.where(still | (self.before * self.traded >= 0), 1.0, np.abs(self.before))
        turn = turn / np.where(still | (turn == 1.0), 1.0, np.abs(self.traded))
        odd = ((turn < 1.0) & (np.minimum(turn, 1.0 - turn) < SMALLEST)).any(-1)  # whose parts are steps of their own
        found, well = np.zeros(len(still), dtype=bool), self.begins_well()
        for done, part in ((1.0, 1.0 - SMALLEST), (0.0, SMALLEST)):
            broken = self.broken(self.one_step(done, part)) | still
            for envelope in envelopes if still.shape[-1] <= MOST else ():
                well &= self._over(envelope, np.zeros(still.shape))[0] <= 0
                self._also(envelope, done, part, broken)
            found |= broken.all(-1)
        return np.asarray(found & well & ~odd)

    def _also(self, envelope: Envelope, done: float, part: float, broken: Mask) -> None:
        """Adds to `broken` (B, n) where the envelope certainly is, with `part` of one order as in `one_step`."""
        end, error = self._over(envelope, np.ones(broken.shape))
        for j in np.flatnonzero(~broken.all(0)):
            parts = np.full(broken.shape, done)
            parts[:, j] = part
            over, more = self._over(envelope, parts)
            broken[:, j] |= over > np.maximum(end, 0.0) + 2.0 * (error + more)

    def _over(self, envelope: Envelope, parts: Array) -> tuple[Array, Array]:
        """By how much an envelope certainly is over its limit at most (B,), with these parts of the orders done (B, n),
        the cash before costs or after them; and how much of that may be rounding errors."""
        trades = parts * self.traded
        weights, levels = self.before + trades, []
        gross = self.start - trades.sum(-1)
        for level in (gross, gross - (parts * self.costs).sum(-1)):
            weights[self.cash] = level
            levels.append(envelope.excess(weights, trades))
        error = 2.0 * self.errors[0] * (1.0 + envelope.steepness)
        return np.maximum(*levels) + error - self._tolerance, error

    @cached_property
    def changes(self) -> tuple[Array, Array, Mask]:
        """Of each row, what it is at the start (R − 1, B); what each order adds to the money traded, the costs and each
        row (R + 1, B, n); and which rules it leaves as they are (R, B, n)."""
        here, there = self.values(0.0), self.values(1.0)
        by_row = [y - x for x, y in zip(here, there, strict=True)]
        nothing = self.traded == 0
        still = [
            x == 0 if not (np.any(up) or np.any(down)) else nothing
            for x, (up, down) in zip(by_row, self.at_cash, strict=True)
        ]
        sums = np.array([x.sum(-1) for x in here]).reshape(-1, len(self.traded))
        return sums, np.array([self.traded, self.costs, *by_row]), np.array([nothing, *still])

    def sorted_by(self, key: Indices) -> Indices:
        """The assets (B, n) by this key, larger orders first; what is not traded comes last."""
        by_size = np.argsort(-np.abs(self.traded), axis=-1, kind="stable")
        ranked = np.where(self.traded != 0, key, 1 + key.max(initial=0)).astype(np.int8)  # few: sorted by counting
        by_key = np.argsort(np.take_along_axis(ranked, by_size, -1), axis=-1, kind="stable")
        return np.take_along_axis(by_size, by_key, -1)

    def in_rounds(self, order: Indices, rounds: int) -> Mask:
        """Which portfolios (B,) are certainly safe if all orders are done in so many equal slices, all in this order,
        round by round."""
        size = max(1, _STATES // (rounds * order.shape[-1]))
        if len(order) <= size:
            return self._in_rounds(order, rounds)
        parts = [slice(k, k + size) for k in range(0, len(order), size)]
        found = [self.take(part)._in_rounds(order[part], rounds) for part in parts]
        return np.concatenate(found)

    def _in_rounds(self, order: Indices, rounds: int) -> Mask:
        start, changes, still = self.changes
        if rounds > 1:  # what each round adds: rows bend where a weight changes its sign
            stages = [self.values(k / rounds) for k in range(rounds + 1)]
            linear = [[x / rounds] * rounds for x in (self.traded, self.costs)]
            bent = [[y[r] - x[r] for x, y in pairwise(stages)] for r in range(len(start))]
            changes = np.array([np.concatenate(each, -1) for each in (*linear, *bent)])
            width = order.shape[-1]
            order = np.concatenate([order + k * width for k in range(rounds)], -1)
            still = np.concatenate([still] * rounds, -1)
        excess = self._after(np.cumsum(np.take_along_axis(changes, order[None], -1), -1))
        earlier = np.concatenate([self.ends(0.0)[:, :, None], excess[:, :, :-1]], -1)
        more = self.errors * (rounds - 1) + _CUT * (rounds > 1) * self.volume * self.errors / self.errors[0]
        safe = self.kept(excess, earlier, np.take_along_axis(still, order[None], -1), more)
        count, last = (self.traded != 0).sum(-1, keepdims=True), order.shape[-1] - self.traded.shape[-1]
        safe |= np.arange(order.shape[-1]) >= last + count - 1  # the last state is the end
        return np.asarray(safe.all(-1))

    def greedy(self, *, backwards: bool) -> tuple[Mask, Indices]:
        """Orders (B, n) of whole orders, and which of them are safe (B,): next is, or of what is left the last is, the
        one with which the tightest rule has most room."""
        changes, trades = self.changes[1], self.traded != 0
        left = trades.copy()
        sign, count = -1.0 if backwards else 1.0, trades.sum(-1)
        done = changes.sum(-1) if backwards else np.zeros(changes.shape[:-1])
        good = count <= MOST
        when = np.full(trades.shape, trades.shape[-1])
        most = (self.limits - self.errors)[:, :, None]
        for k in range(int(count[good].max(initial=0))):
            excess = self._after(done[:, :, None] + sign * changes)
            room = np.where(left, (excess - most).max(0), np.inf)
            at = np.flatnonzero(left.any(-1) & good)
            chosen = room[at].argmin(-1)
            good[at] &= (room[at, chosen] <= 0) | (k == count[at] - 1)  # the last state is the end, or the start
            left[at, chosen] = False
            done[:, at] += sign * changes[:, at, chosen]
            when[at, chosen] = count[at] - 1 - k if backwards else k
        good &= (self.ends(0.0) <= most[:, :, 0]).all(0)
        return good, np.argsort(when, axis=-1, kind="stable")

    def of_all(self) -> tuple[Mask, Indices]:
        """The same over all orders of the whole orders: those of at most `FEW` (few sets of them can be done)."""
        good, order = np.zeros(len(self.traded), dtype=bool), np.argsort(self.traded == 0, axis=-1, kind="stable")
        count, well = (self.traded != 0).sum(-1), self.begins_well()
        for m, as_well in ((m, as_well) for m in range(1, FEW + 1) for as_well in (True, False)):
            at = np.flatnonzero((count == m) & (well == as_well))
            size = max(1, _STATES >> m)
            for each in (at[k : k + size] for k in range(0, len(at), size)):
                good[each], order[each, :m] = self.take(each)._of_all(order[each, :m], as_well)
        return good, order

    def _of_all(self, columns: Indices, well: bool) -> tuple[Mask, Indices]:
        count, m = columns.shape
        _, changes, still = self.changes
        changes, still = np.take_along_axis(changes, columns[None], -1), np.take_along_axis(still, columns[None], -1)
        sets = np.arange(2**m)
        bits = (sets >> np.arange(m)[:, None]) & 1
        excess = self._after(changes @ bits.astype(float))
        kept = (excess <= (self.limits - self.errors)[:, :, None]).all(0).T.copy()
        kept[-1] = True
        last = np.full((2**m, count), -1, dtype=np.int8)  # the last order on some safe way to each set; −1: none found
        last[0] = m
        for size, j in ((size, j) for size in range(m) for j in range(m)):
            here = sets[(bits.sum(0) == size) & (bits[j] == 0)]
            there = here | 1 << j
            safe = kept[there]
            if not well:
                safe |= self.kept(excess[:, :, there], excess[:, :, here], still[:, :, j, None]).T
            last[there] = np.where((last[here] >= 0) & safe, j, last[there])
        good = last[-1] >= 0
        way, state = np.zeros_like(columns), np.full(count, 2**m - 1)
        for k in range(m - 1, -1, -1):
            way[:, k] = np.where(good, last[state, np.arange(count)], k)
            state = np.where(good, state & ~(1 << way[:, k]), 0)
        return good, np.take_along_axis(columns, way, -1)


def slopes_of(row: Row, shape: tuple[int, ...]) -> tuple[Array, ...]:
    """The row's slopes where a weight is positive, and negative, and those of buys and sells: (B, n) each."""
    none = np.zeros(shape)
    weight, long, short, buy, sell = (np.broadcast_to(row.given.get(name, none), shape) for name in row.NAMES)
    return weight + long, weight - short, buy, sell
