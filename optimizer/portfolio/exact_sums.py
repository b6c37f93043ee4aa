"""Exact sums of many fractions: as whole numbers over one denominator, which need no common divisor at every step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from operator import mul


def denominator(*numbers: Iterable[Fraction]) -> int:
    """The least one that all these numbers share."""
    return math.lcm(*{x.denominator for each in numbers for x in each})


def whole(numbers: Iterable[Fraction], unit: int) -> list[int]:
    """The numbers times `unit`, a multiple of their denominators."""
    return [x.numerator * (unit // x.denominator) for x in numbers]


def products(one: Sequence[Fraction], other: Sequence[Fraction]) -> tuple[list[int], int]:
    """one · other, each times the unit that comes with them."""
    units = denominator(one), denominator(other)
    return list(map(mul, whole(one, units[0]), whole(other, units[1]))), units[0] * units[1]


def nearest(one: Fraction, other: Fraction) -> float:
    """The float nearest to one · other."""
    return (one.numerator * other.numerator) / (one.denominator * other.denominator)
