"""Drift bands: how far a weight, or the sum of a group, may be from its target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, TypeAlias

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import ROUNDING_TOLERANCE, check_number
from equipoise.constraints.pieces import Array, Bound, Figure, Mask, Piece, Row, dot
from equipoise.constraints.rules.rule import Account, Numbers, Rule, check_range


def outside(weight: Figure, low: Figure, high: Figure) -> Figure:
    """Whether it is outside the band by more than rounding; not at the edge itself."""
    return (weight < low - ROUNDING_TOLERANCE) | (weight > high + ROUNDING_TOLERANCE)


#: One width for both sides, or a pair (below the target, above it).
Width: TypeAlias = Numbers | tuple[Numbers, Numbers]


@dataclass(frozen=True)
class DriftBand(Rule, stacks=True):
    """b − φ·below ≤ w ≤ b + φ·above around the target b: φ = `inside` where w₀ is outside the band, else 1.

    Widths: `absolute` in fractions of NAV, `relative` in fractions of |b|; with both, the lesser holds
    (`combine="lesser"`, Swedroe's "5/25": min(0.05, 0.25·|b|)) or the greater. Each is a number, a
    mapping by asset, a column's name, or a pair (below, above) for bands that are not symmetric.

    `by` names a label column: the band is then on the sum of each label's assets around the sum of
    their targets, and mappings are by label. All that has the label counts, debts and the cash as well (as in
    GroupLimit); assets without a label are free. By `underlying` it is on the economic exposure, Σ exposure·w.

    `inside` (0 to 1) is the destination of what is outside its full band before trading: it must end within this
    fraction of the band. What is inside its band may be anywhere in it, as the trigger `Drift` sees it. 1 is the edge,
    0.5 half-way, 0 the target itself (reference: a trigger of 200 basis points with a destination of 175 is
    inside=0.875).

    Without `by` the settlement cash has no band unless `cash=True` (or `assets` names it): its limits are CashFloor
    and CashBand.
    """

    absolute: Width | None = None
    relative: Width | None = None
    inside: float = 1.0
    combine: Literal["lesser", "greater"] = "lesser"
    by: str | None = None
    assets: Sequence[str] | None = None
    cash: bool = False

    def __post_init__(self) -> None:
        if self.absolute is None and self.relative is None:
            raise InputError("a drift band needs a width: give absolute=, relative= or both", column="DriftBand")
        for width, argument in ((self.absolute, "absolute"), (self.relative, "relative")):
            if isinstance(width, tuple) and len(width) != 2:
                raise InputError("a pair is (below, above)", column=argument, value=width)
        if self.combine not in ("lesser", "greater"):
            raise InputError("must be 'lesser' or 'greater'", column="combine", value=self.combine)
        if self.by is not None and self.assets is not None:
            raise InputError("a band by label has no assets=; leave the label blank for those to skip", column="by")
        check_number(self.inside, "inside", at_least=0.0)
        if self.inside > 1:
            raise InputError("is a fraction of the band, at most 1", column="inside", value=self.inside)

    def band(self, account: Account) -> tuple[Array, Array]:
        """The full band (lower, upper) of each asset; infinite where there is none. For `by`: see `groups`."""
        where = account.positions(self.assets, "assets")
        if self.cash and self.assets is None:
            where[account.cash] = True
        below, above = self._widths(account, account.target, where)
        return np.where(where, account.target - below, -np.inf), np.where(where, account.target + above, np.inf)

    def groups(self, account: Account) -> list[tuple[str, Array, Figure, Figure, Figure]]:
        """For `by`: each label with what a unit of each asset counts (0: not a member), its target, and its full band.

        The last three are floats, or (B,) for a stack.
        """
        assert self.by is not None
        exposure, result = account.exposure(self.by), []
        for label, assets in account.members(self.by).items():
            member = assets * exposure
            target = dot(member, account.target)
            below, above = self._group_widths(label, target)
            result.append((label, member, target, target - below, target + above))
        return result

    def label_columns(self) -> tuple[str, ...]:
        return () if self.by is None else (self.by,)

    def pieces(self, account: Account) -> Sequence[Piece]:
        if self.by is None:
            full = self.band(account)
            part = self._part(account.before, *full)
            # Where there is no edge (±inf) there is none inside it either; 0 · inf would not be a number.
            away = [np.where(np.isfinite(edge), edge - account.target, 0.0) for edge in full]
            low, high = (
                np.where(np.isfinite(edge), account.target + part * x, edge) for edge, x in zip(full, away, strict=True)
            )
            return (Bound(label="drift band", lower=low, upper=high),)
        rows: list[Row] = []
        for label, member, centre, least, most in self.groups(account):
            part = self._part(dot(member, account.before), least, most)
            low, high = centre - part * (centre - least), centre + part * (most - centre)
            rows += [
                Row(label=f"{label} above its band", weight=member, upper=high),
                Row(label=f"{label} below its band", weight=-member, upper=-low, at_least=True),
            ]
        return rows

    def _part(self, before: Figure, low: Figure, high: Figure) -> Figure:
        """The part of the band in which trades must end."""
        part = np.where(outside(before, low, high), self.inside, 1.0)
        return part if part.ndim else float(part)

    def _widths(self, account: Account, target: Array, where: Mask) -> tuple[Array, Array]:
        """The width (below, above) of each of these assets."""

        def width(given: Width, argument: str, side: int, scale: Array) -> Array:
            one = given[side] if isinstance(given, tuple) else given
            # Assets that a mapping leaves out have no band at all.
            each = account.numbers(one, argument, missing=np.inf, where=where)
            check_range(each, account, argument, at_least=0.0, at_most=np.inf)
            return np.multiply(each, scale, out=np.full_like(each, np.inf), where=np.isfinite(each))

        return self._combined(width, np.ones_like(target), np.abs(target))

    def _group_widths(self, label: str, target: Figure) -> tuple[Figure, Figure]:
        """The width (below, above) of one label's sum: floats, or (B,) for a stack."""

        def width(given: Width, argument: str, side: int, scale: Figure) -> Figure:
            one = given[side] if isinstance(given, tuple) else given
            if isinstance(one, str):
                raise InputError("a band by label takes a number or a mapping by label", column=argument, value=one)
            if isinstance(one, Mapping):
                if label not in one:
                    raise InputError(f"has no entry for the label {label!r} of {self.by!r}", column=argument)
                one = one[label]
            check_number(one, argument, at_least=0.0)
            return one * scale

        below, above = self._combined(width, 1.0, abs(target))
        return (below, above) if np.ndim(target) else (float(below), float(above))

    def _combined(
        self, width: Callable[[Width, str, int, Figure], Figure], one: Figure, size: Figure
    ) -> tuple[Figure, Figure]:
        """The lesser or the greater of the absolute and the relative width, for each side."""
        lesser_or_greater = np.minimum if self.combine == "lesser" else np.maximum
        given = [
            (w, argument, scale)
            for w, argument, scale in ((self.absolute, "absolute", one), (self.relative, "relative", size))
            if w is not None
        ]
        below, above = (
            reduce(lesser_or_greater, [width(w, argument, side, scale) for w, argument, scale in given])
            for side in (0, 1)
        )
        return below, above
