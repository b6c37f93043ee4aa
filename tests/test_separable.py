"""The threshold rule of one asset against brute force, with f written out again in plain arithmetic."""

from __future__ import annotations

from itertools import pairwise
from math import copysign, inf, isinf, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from equipoise.optimizer.problem.threshold import Separable

NAMES = tuple(Separable.__dataclass_fields__)
EDGE = 60.0  # the minimum of every random problem here without a bound and with curvature lies within ±EDGE


def plain(c: dict[str, float], w: float) -> float:
    """f as in the module's first lines, for one asset."""
    z = w - c["before"]
    return (
        0.5 * c["curvature"] * (w - c["centre"]) ** 2
        + c["slope"] * w
        + c["long"] * max(w, 0.0)
        + c["short"] * max(-w, 0.0)
        + c["buy"] * max(z, 0.0)
        + c["sell"] * max(-z, 0.0)
        + c["quadratic"] * z * z
        + c["impact"] * abs(z) * sqrt(abs(z))
    )


def brute(c: dict[str, float]) -> float:
    """The least f on a grid, at the kinks and bounds, and by scalar search in every piece between them."""
    low, high = max(c["lower"], -EDGE), min(c["upper"], EDGE)
    places = sorted({low, high, *(p for p in (0.0, c["before"], c["centre"]) if low < p < high)})
    found = [plain(c, w) for w in (*places, *np.linspace(low, high, 201))]
    for left, right in pairwise(places):
        search = minimize_scalar(lambda w: plain(c, w), bounds=(left, right), method="bounded")
        found.append(float(search.fun))
    return min(found)


def draw(rng: np.random.Generator) -> dict[str, float]:
    """Random coefficients of a convex f, a fifth of them zero, with bounds that may be infinite or equal."""

    def size(scale: float = 1.0) -> float:
        return float(rng.choice([0.0, 1.0, 1.0, 1.0, 1.0]) * rng.exponential(scale))

    c = {"curvature": size(), "slope": float(rng.normal()), "quadratic": size(), "impact": size()}
    if rng.random() < 0.2:  # straight pieces only
        c |= dict.fromkeys(("curvature", "quadratic", "impact"), 0.0)
    c |= {"before": float(rng.choice([0.0, 1.0, 1.0]) * rng.normal()), "centre": float(rng.normal())}
    for one, other in (("long", "short"), ("buy", "sell")):  # one may be negative, but not their sum
        c[one] = float(rng.choice([0.0, 1.0, 1.0]) * rng.normal())
        c[other] = size() - c[one]
    low, high = sorted(rng.choice([0.0, c["before"], 1.0, -1.0, *rng.normal(size=2)], 2))
    c["lower"] = float(rng.choice([low, low, -inf]))
    c["upper"] = float(rng.choice([high, high, inf]))
    if rng.random() < 0.1 and not isinf(c["lower"]):
        c["upper"] = c["lower"]
    return c


def minimiser(c: dict[str, float]) -> float:
    with np.errstate(all="raise", divide="ignore", invalid="ignore", under="ignore"):
        return float(Separable(**{name: np.array(c[name]) for name in NAMES}).minimiser())


def falls_for_ever(c: dict[str, float], side: float) -> bool:
    """Whether f falls without end towards side·∞, judged far outside."""
    return plain(c, side * 1e9) < plain(c, side * 1e8)


def test_the_minimiser_is_as_good_as_brute_force() -> None:
    """No grid point, kink, bound or scalar search is better; if f falls for ever the answer is infinite."""
    rng = np.random.default_rng(7)
    infinite = at_kink = at_bound = inside = 0
    for _ in range(500):
        c = draw(rng)
        w = minimiser(c)
        assert c["lower"] <= w <= c["upper"], c
        if isinf(w):
            infinite += 1
            assert falls_for_ever(c, copysign(1.0, w)), c
            continue
        for side, bound in ((-1.0, c["lower"]), (1.0, c["upper"])):
            assert not (isinf(bound) and falls_for_ever(c, side)), c
        if abs(w) < EDGE:
            best = brute(c)
            assert plain(c, w) <= best + 1e-12 * max(1.0, abs(best)), c
        at_kink += w in (0.0, c["before"])
        at_bound += w in (c["lower"], c["upper"])
        inside += w not in (0.0, c["before"], c["lower"], c["upper"])
    assert min(infinite, at_kink, at_bound, inside) >= 10  # every kind of answer occurred


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({}, 2.0),  # no cost: the centre
        ({"buy": 0.5}, 1.75),  # the edge: centre − buy/curvature
        ({"buy": 2.0}, 1.0),  # 2·(2 − 1) = 2: just not worth a trade
        ({"buy": 1.999}, 1.0005),
        ({"centre": 0.0, "sell": 0.5}, 0.25),
        ({"centre": -1.0, "sell": 0.5, "short": 0.5}, -0.5),  # 2(w + 1) = 0.5 + 0.5 while selling and short
        ({"centre": -0.4, "sell": 0.5, "short": 0.5}, 0.0),  # |slope| at 0 is 0.8 − 0.5, within short's 0.5
        ({"quadratic": 1.0}, 1.5),  # 2(w − 2) + 2(w − 1) = 0
        ({"impact": 4.0 / 3.0}, 1.3819660112501051),  # 2y + 2√y = 2, y = w − 1: √y = (√5 − 1)/2
        ({"upper": 1.2}, 1.2),
        ({"lower": 2.5, "upper": 2.5}, 2.5),
        ({"curvature": 0.0, "slope": -1.0, "upper": inf}, inf),
        ({"curvature": 0.0, "slope": 1.0, "sell": 0.999}, -inf),
        ({"curvature": 0.0, "slope": 1.0, "sell": 1.001}, 1.0),
        ({"curvature": 0.0}, 1.0),  # nothing to gain: hold
        ({"curvature": 0.0, "slope": -3.0, "impact": 1.0}, 5.0),  # 1.5·√y = 3
    ],
)
def test_cases_worked_by_hand(given_: dict[str, float], expected: float) -> None:
    """curvature 2, centre 2, held 1, unless said otherwise."""
    base = dict.fromkeys(NAMES, 0.0) | {"curvature": 2.0, "centre": 2.0, "before": 1.0}
    base |= {"lower": -inf, "upper": inf}
    assert minimiser(base | given_) == pytest.approx(expected, rel=1e-14, abs=1e-15)


numbers = st.floats(-5, 5).map(lambda x: round(x, 3))
sizes = st.one_of(st.just(0.0), st.floats(1e-3, 5), st.floats(1e-12, 1e-6))


@st.composite
def coefficients(draw: st.DrawFn) -> dict[str, float]:
    c: dict[str, float] = {name: draw(sizes) for name in ("curvature", "quadratic", "impact")}
    c |= {name: draw(numbers) for name in ("slope", "centre", "before", "long", "buy")}
    c |= {"short": draw(sizes) - c["long"], "sell": draw(sizes) - c["buy"]}
    low, high = sorted((draw(numbers), draw(st.one_of(numbers, st.just(c["before"])))))
    return c | {"lower": low, "upper": high}


@given(coefficients(), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_no_point_within_the_bounds_is_better(c: dict[str, float], parts: list[float]) -> None:
    w = minimiser(c)
    assert c["lower"] <= w <= c["upper"]
    points = [c["lower"] + part * (c["upper"] - c["lower"]) for part in (0.0, *parts, 1.0)]
    points += [p for p in (0.0, c["before"], c["centre"]) if c["lower"] <= p <= c["upper"]]
    points += [p for p in (w - 1e-4, w + 1e-4) if c["lower"] <= p <= c["upper"]]
    least = min(plain(c, p) for p in points)
    assert plain(c, w) <= least + 1e-12 * max(1.0, abs(least))


@given(coefficients(), st.one_of(numbers, st.just(None)), st.floats(1e-3, 3.0))
def test_the_derivatives_are_slopes(c: dict[str, float], at: float | None, step: float) -> None:
    """Chords to the right are steeper than the right derivative, to the left flatter; nearby they agree."""
    at = c["before"] if at is None else at
    f = Separable(**{name: np.array(c[name]) for name in NAMES})
    right, left = float(f.derivative(at, 1)), float(f.derivative(at, -1))
    rounding = 1e-11 / step
    assert left <= right + 1e-12
    assert (plain(c, at + step) - plain(c, at)) / step >= right - rounding
    assert (plain(c, at) - plain(c, at - step)) / step <= left + rounding
    tiny = 1e-8  # the 3/2 power bends like 1.5·√tiny
    assert (plain(c, at + tiny) - plain(c, at)) / tiny == pytest.approx(right, abs=1e-3)
    assert (plain(c, at) - plain(c, at - tiny)) / tiny == pytest.approx(left, abs=1e-3)


@given(coefficients(), st.floats(-5, 5))
def test_the_value_is_the_formula(c: dict[str, float], w: float) -> None:
    f = Separable(**{name: np.array(c[name]) for name in NAMES})
    assert float(f.value(np.array(w))) == pytest.approx(plain(c, w), rel=1e-12, abs=1e-12)


def test_arrays_of_any_shape_give_the_bits_of_single_assets() -> None:
    rng = np.random.default_rng(3)
    drawn = [draw(rng) for _ in range(60)]
    stacked: dict[str, Any] = {name: np.array([c[name] for c in drawn]).reshape(3, 4, 5) for name in NAMES}
    together = Separable(**stacked).minimiser().ravel()
    assert [minimiser(c) for c in drawn] == together.tolist()


def test_the_answer_moves_down_as_the_slope_moves_up() -> None:
    """The budget's price is found by bisection, which needs this."""
    rng = np.random.default_rng(4)
    for _ in range(100):
        c = draw(rng)
        answers = [minimiser(c | {"slope": slope}) for slope in np.linspace(-3, 3, 25)]
        assert all(a >= b for a, b in pairwise(answers)), c
