"""The five quantities that rules are sums of: w, w⁺, w⁻, z⁺ and z⁻."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from types import EllipsisType
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
Indices: TypeAlias = NDArray[np.intp]
#: A float of one portfolio, an array (B,) of a stack, or a Fraction: no type follows all three through one formula.
Figure: TypeAlias = Any
#: Of cvxpy, which the exact check does not know, not even by its types.
Expression: TypeAlias = Any
Constraint: TypeAlias = Any
#: Arguments of a dataclass by name: no type says which names have which type.
Fields: TypeAlias = dict[str, Any]
#: The entry of a cash: a position, or of a stack an index (B,), (B,).
Place: TypeAlias = int | tuple[Indices, Indices]
#: Some of the portfolios, assets or rows along an axis.
Index: TypeAlias = slice | EllipsisType | Mask | Indices


@dataclass(frozen=True, eq=False, kw_only=True)
class Parts:
    """weight·w + long·w⁺ + short·w⁻ + buy·z⁺ + sell·z⁻; an absent coefficient is None."""

    weight: Array | None = None
    long: Array | None = None
    short: Array | None = None
    buy: Array | None = None
    sell: Array | None = None

    NAMES: ClassVar[tuple[str, ...]] = ("weight", "long", "short", "buy", "sell")

    @property
    def given(self) -> dict[str, Array]:
        """The coefficients that there are, by name."""
        return {name: c for name in self.NAMES if (c := getattr(self, name)) is not None}

    def take(self, i: int) -> Any:
        """Those of portfolio i of a stack."""
        fixed = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in fixed.items():
            if name in self.NAMES:
                fixed[name] = value[i] if np.ndim(value) > 1 else value
            elif isinstance(value, Parts):
                fixed[name] = value.take(i)
            elif isinstance(value, np.ndarray):
                fixed[name] = float(value[i])
        return type(self)(**fixed)

    def of(self, weights: Array, trades: Array) -> Figure:
        """The value at these weights and trades: a float, or (B,) for those of a stack."""
        return sum((dot(c, part(name, weights, trades)) for name, c in self.given.items()), 0.0)

    def exactly(self, value: Sequence[int], traded: Sequence[int]) -> Fraction:
        """The same of one portfolio's amounts of money, in whole numbers: floats are the binary fractions they are."""
        total = Fraction(0)
        for name, coefficients in self.given.items():
            at = np.flatnonzero(coefficients).tolist()
            pairs = [c.as_integer_ratio() for c in coefficients[at].tolist()]
            unit = max((d for _, d in pairs), default=1)  # all are powers of 2
            amounts = (part(name, value[i], traded[i]) for i in at)
            total += Fraction(sum(n * (unit // d) * x for (n, d), x in zip(pairs, amounts, strict=True)), unit)
        return total


def dot(one: Array, other: Array) -> Figure:
    """Σ one·other over the assets: a float for one portfolio, (B,) for a stack, with the same bits.

    A product of matrices would not do: what it gives for one row depends on how many rows there are.
    """
    summed = np.sum(one * other, axis=-1)
    return summed if summed.ndim else float(summed)


def part(name: str, weights: Figure, trades: Figure) -> Figure:
    """w, w⁺, w⁻, z⁺ or z⁻ by its name in `Parts`; for arrays of any shape, or single Fractions."""
    of_weights = name in ("weight", "long", "short")
    value = weights if of_weights else trades
    if name == "weight":
        return value
    signed = value if name in ("long", "buy") else -value
    return np.maximum(signed, 0.0) if isinstance(signed, np.ndarray) else max(signed, 0)
