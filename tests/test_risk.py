"""Risk models: against numpy, pandas, scikit-learn and closed forms, and for every way to refuse an input."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.constraints.errors import InputError
from equipoise.optimizer.risk.models import CovarianceRisk, FactoredRisk, FactorRisk, Risk, SquaredDistance

ASSETS = ["BTC", "ETH", "SOL", "ADA"]


def frame(values: Any, labels: Any = None) -> pd.DataFrame:
    values = np.asarray(values, dtype=float)
    labels = ASSETS[: len(values)] if labels is None else list(labels)
    return pd.DataFrame(values, index=labels, columns=labels)


def random_covariance(seed: int, n: int, rank: int | None = None) -> np.ndarray:
    """A covariance of assets whose volatilities span four orders of magnitude."""
    rng = np.random.default_rng(seed)
    draws = rng.normal(size=(rank or 3 * n, n)) + rng.normal(size=(rank or 3 * n, 1))
    return np.cov(draws * 10.0 ** rng.uniform(-3, 1, n), rowvar=False, bias=rank is None).reshape(n, n)


def random_returns(seed: int = 0, periods: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    values = rng.normal(0.001, 0.02, (periods, 4)) + rng.normal(0, 0.01, (periods, 1))
    return pd.DataFrame(values, columns=ASSETS, index=pd.date_range("2024-01-01", periods=periods))


def assert_covariance(risk: FactoredRisk, wanted: Any, tolerance: float = 1e-12) -> None:
    """Equal in units of the volatilities, so that a small asset counts as much as a large one."""
    wanted = np.asarray(wanted, dtype=float)
    volatility = np.sqrt(np.diag(wanted))
    scale = np.where(volatility > 0, volatility, 1.0)
    miss = np.abs(risk.covariance() - wanted) / scale[:, None] / scale
    assert miss.max(initial=0.0) <= tolerance * len(wanted), miss.max()


# ---- the factored form ------------------------------------------------------------------------------------


def test_factored_form_by_hand() -> None:
    risk = FactoredRisk(np.array([[1.0, 2.0], [0.0, 3.0]]), np.array([0.5, 0.0]))
    assert risk.covariance().tolist() == [[1.5, 2.0], [2.0, 13.0]]
    assert risk.variance([1.0, -1.0]) == 1.5 - 2 * 2.0 + 13.0
    assert risk.gradient([1.0, -1.0]).tolist() == [-0.5, -11.0]
    assert not risk.is_diagonal
    assert FactoredRisk(np.zeros((0, 2)), np.ones(2)).is_diagonal
    assert repr(risk) == "FactoredRisk(2 assets, 2 factors)"


def test_factored_form_takes_stacks_of_vectors() -> None:
    risk = CovarianceRisk(random_covariance(1, 4), assets=ASSETS).aligned(ASSETS, "USD")
    x = np.random.default_rng(2).normal(size=(3, 5, 4))
    dense = risk.covariance()
    np.testing.assert_allclose(risk.variance(x), np.einsum("...i,ij,...j", x, dense, x), rtol=1e-12)
    np.testing.assert_allclose(risk.gradient(x), x @ dense, rtol=1e-10, atol=1e-12 * dense.max())


def test_factored_form_is_read_only_and_stays_so_when_pickled() -> None:
    factors, specific = np.ones((1, 2)), np.ones(2)
    risk = FactoredRisk(factors, specific)
    factors[:] = 9.0
    specific[:] = 9.0
    for one in (risk, pickle.loads(pickle.dumps(risk))):
        assert one.covariance().tolist() == [[2.0, 1.0], [1.0, 2.0]]
        assert one.factors.dtype == one.specific.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            one.factors[0, 0] = 5.0
        with pytest.raises(ValueError, match="read-only"):
            one.specific[0] = 5.0
    with pytest.raises(FrozenInstanceError):
        risk.specific = specific  # type: ignore[misc]


@pytest.mark.parametrize(
    ("factors", "specific", "message"),
    [
        (np.ones((1, 3)), np.ones(2), "not (1, 3) and (2,)"),
        (np.ones(2), np.ones(2), "not (2,) and (2,)"),
        (np.ones((1, 2)), np.array([1.0, -1e-300]), "not negative"),
        (np.array([[1.0, np.nan]]), np.ones(2), "must be finite"),
        (np.ones((1, 2)), np.array([1.0, np.inf]), "must be finite"),
    ],
)
def test_factored_form_refuses(factors: Any, specific: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        FactoredRisk(factors, specific)
    assert message in str(caught.value)


# ---- alignment by label -----------------------------------------------------------------------------------


MODELS: dict[str, Callable[..., CovarianceRisk | FactorRisk]] = {
    "covariance": lambda **more: CovarianceRisk(random_covariance(3, 4), assets=ASSETS, **more),
    "diagonal": lambda **more: CovarianceRisk(np.diag([1.0, 2.0, 3.0, 4.0]), assets=ASSETS, **more),
    "singular": lambda **more: CovarianceRisk(random_covariance(3, 4, rank=3), assets=ASSETS, **more),
    "factor": lambda **more: FactorRisk([[1.0, 2.0, 3.0, 4.0]], [0.1, 0.2, 0.0, 0.4], assets=ASSETS, **more),
}


@pytest.fixture(params=list(MODELS))
def build(request: pytest.FixtureRequest) -> Callable[..., CovarianceRisk | FactorRisk]:
    return MODELS[request.param]


def test_cash_outside_the_model_is_riskless_and_inside_it_is_not(build: Any) -> None:
    model = build()
    dense = model.aligned(ASSETS, "USD").covariance()
    with_cash = model.aligned(["ETH", "USD", "ADA"], "USD")
    wanted = np.zeros((3, 3))
    wanted[np.ix_([0, 2], [0, 2])] = dense[np.ix_([1, 3], [1, 3])]
    assert_covariance(with_cash, wanted)
    assert not with_cash.factors[:, 1].any()
    assert with_cash.specific[1] == 0.0
    assert_covariance(model.aligned(["ETH", "ADA"], "ETH"), dense[np.ix_([1, 3], [1, 3])])


def test_missing_assets_are_named_with_the_three_ways_out(build: Any) -> None:
    with pytest.raises(InputError) as caught:
        build().aligned(["BTC", "DOGE", "PEPE", "USD"], "USD")
    assert caught.value.asset == "DOGE"
    for part in ("'DOGE'", "nor 'PEPE'", "add it to the model", "riskless=[...]", "alias={...}"):
        assert part in str(caught.value)
    assert "USD" not in str(caught.value)


def test_riskless_assets_have_no_risk_wherever_they_come_from(build: Any) -> None:
    dense = build().aligned(ASSETS, "USD").covariance()
    risk = build(riskless=["ETH", "USDC"]).aligned(["USDC", "ETH", "BTC", "ADA"], "USD")
    wanted = np.zeros((4, 4))
    wanted[2:, 2:] = dense[np.ix_([0, 3], [0, 3])]
    assert_covariance(risk, wanted)
    assert not risk.covariance()[:2].any()


def test_alias_is_perfectly_correlated_with_its_source(build: Any) -> None:
    model = build(alias={"ETH-debt": "ETH", "stETH": "ETH", "USDC-debt": "USDC"}, riskless=["USDC"])
    dense = build().aligned(ASSETS, "USD").covariance()
    assets = ["ETH-debt", "BTC", "ETH", "USDC-debt", "stETH", "SOL", "USD"]
    risk = model.aligned(assets, "USD")
    source = np.array([1, 0, 1, -1, 1, 2, -1])
    wanted = np.where((source < 0)[:, None] | (source < 0), 0.0, dense[np.ix_(source, source)])
    assert_covariance(risk, wanted)
    x = np.array([-0.3, 0.0, 0.1, 0.7, 0.2, 0.0, 0.4])  # ETH against its debt: nothing is left
    assert risk.variance(x) <= 1e-30
    assert risk.factors[:, 0].tolist() == risk.factors[:, 2].tolist() == risk.factors[:, 4].tolist()
    # What is shared left the diagonal; what is not stayed there.
    assert risk.specific[[0, 2, 4]].tolist() == [0.0] * 3
    plain = build().aligned(["BTC", "SOL"], "USD").specific
    assert risk.specific[[1, 5]].tolist() == plain.tolist()


def test_alias_alone_keeps_the_diagonal_of_its_source() -> None:
    risk = MODELS["diagonal"](alias={"ETH-debt": "ETH"}).aligned(["ETH-debt", "BTC"], "USD")
    assert risk.is_diagonal
    assert risk.specific.tolist() == [2.0, 1.0]


def test_two_rows_of_one_asset_make_a_diagonal_model_not_diagonal() -> None:
    risk = MODELS["diagonal"](alias={"ETH-debt": "ETH"}).aligned(["ETH", "ETH-debt", "BTC"], "USD")
    assert len(risk.factors) == 1
    assert_covariance(risk, [[2, 2, 0], [2, 2, 0], [0, 0, 1]])
    assert risk.specific.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("more", "asset", "message"),
    [
        ({"alias": {"BTC": "ETH"}}, "BTC", "an alias may not replace a risk of the asset's own"),
        ({"alias": {"USDC": "ETH"}, "riskless": ["USDC"]}, "USDC", "out of the model and of riskless"),
        (
            {"alias": {"x": "DOGE"}},
            "x",
            "alias 'DOGE' is not in the risk model; name an asset that the model",
        ),
        ({"alias": {"x": "ETH", "y": "x"}}, "y", "an alias of an alias does not count"),
        ({"riskless": "USD"}, None, "write riskless=['USD']"),
    ],
)
def test_wrong_alias_and_riskless(build: Any, more: Any, asset: str | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        build(**more)
    assert caught.value.asset == asset
    assert message in str(caught.value)


def test_a_few_assets_of_a_large_model_need_few_factors() -> None:
    n = 40
    cov = random_covariance(5, n)
    labels = [f"a{i}" for i in range(n)]
    model = CovarianceRisk(cov, assets=labels)
    assert len(model.aligned(labels, "USD").factors) == n - 1  # all but the smallest eigenvalue
    some = model.aligned(["a7", "USD", "a3", "a30"], "USD")
    assert len(some.factors) == 3
    assert_covariance(some, np.insert(np.insert(cov[np.ix_([7, 3, 30], [7, 3, 30])], 1, 0, 0), 1, 0, 1))


def test_factors_that_nobody_holds_are_left_out() -> None:
    model = FactorRisk([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]], [1.0, 1.0, 1.0], assets=ASSETS[:3])
    assert model.aligned(["BTC", "ETH"], "USD").factors.tolist() == [[1.0, 2.0]]


def test_empty_universes() -> None:
    nothing = MODELS["covariance"]().aligned([], "USD")
    assert nothing.factors.shape[1] == nothing.specific.size == 0
    assert nothing.variance(np.zeros(0)) == 0.0
    only_riskless = CovarianceRisk(np.eye(2), assets=["USDC", "USDT"], riskless=["USDC", "USDT"])
    risk = only_riskless.aligned(["USDT", "USD"], "USD")
    assert risk.is_diagonal
    assert risk.specific.tolist() == [0.0, 0.0]


def test_models_are_frozen_hashable_and_pickle(build: Any) -> None:
    model = build(alias={"WETH": "ETH"}, riskless=["USDC"])
    again = pickle.loads(pickle.dumps(model))
    assert isinstance(model, Risk)
    assert model.assets == tuple(ASSETS) == again.assets
    assert hash(model) == hash(model)
    assert model != again  # by identity
    assets = ["WETH", "ETH", "USDC", "ADA", "USD"]
    one, other = (m.aligned(assets, "USD") for m in (model, again))
    assert one.covariance().tolist() == other.covariance().tolist()
    with pytest.raises(FrozenInstanceError):
        model.assets = ()
    assert repr(model).startswith(f"{type(model).__name__}(4 assets, ")


def test_squared_distance() -> None:
    model = SquaredDistance()
    risk = model.aligned(["a", "USD", "b"], "USD")
    assert isinstance(model, Risk)
    assert risk.is_diagonal
    assert risk.covariance().tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert risk.variance([3.0, 100.0, 4.0]) == 25.0
    assert not isinstance(object(), Risk)


# ---- a covariance matrix ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.booleans(), st.data())
def test_any_part_in_any_order_is_the_part_of_the_matrix(seed: int, n: int, full: bool, data: Any) -> None:
    cov = random_covariance(seed, n, rank=None if full else max(2, n // 2))
    labels = [f"a{i}" for i in range(n)]
    shuffled = data.draw(st.permutations(range(n)))
    table = frame(cov, labels).iloc[shuffled, data.draw(st.permutations(range(n)))]
    part = data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1))
    risk = CovarianceRisk(table).aligned([labels[i] for i in part], "USD")
    assert_covariance(risk, cov[np.ix_(part, part)])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 10), st.floats(-12, 12))
def test_scale_does_not_matter(seed: int, n: int, exponent: float) -> None:
    cov, scale = random_covariance(seed, n), 10.0**exponent
    labels = [f"a{i}" for i in range(n)]
    one, scaled = (CovarianceRisk(c, assets=labels).aligned(labels, "USD") for c in (cov, scale * cov))
    assert one.factors.shape == scaled.factors.shape
    np.testing.assert_allclose(scaled.specific, scale * one.specific, rtol=1e-9)
    assert_covariance(scaled, scale * cov)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 10))
def test_the_diagonal_takes_the_smallest_eigenvalue_of_the_correlations(seed: int, n: int) -> None:
    cov = random_covariance(seed, n)
    labels = [f"a{i}" for i in range(n)]
    risk = CovarianceRisk(cov, assets=labels).aligned(labels, "USD")
    volatility = np.sqrt(np.diag(cov))
    smallest = np.linalg.svd(cov / volatility / volatility[:, None], compute_uv=False).min()
    np.testing.assert_allclose(risk.specific, smallest * np.diag(cov), rtol=1e-8, atol=0)
    assert len(risk.factors) < n


def test_two_assets_in_closed_form() -> None:
    # Correlation ρ = 0.5: eigenvalues 1 ± ρ, so half of each variance is diagonal and F = √ρ(σ₁, σ₂).
    risk = CovarianceRisk(frame([[0.04, 0.03], [0.03, 0.09]])).aligned(["BTC", "ETH"], "USD")
    np.testing.assert_allclose(risk.specific, [0.02, 0.045], rtol=1e-14)
    np.testing.assert_allclose(np.abs(risk.factors), [[np.sqrt(0.5) * 0.2, np.sqrt(0.5) * 0.3]], rtol=1e-14)


def test_equal_correlations_need_one_factor() -> None:
    # C = (1 − ρ)I + ρ·11ᵀ: all eigenvalues but one are equal, so rounding must not leave 18 tiny factors.
    volatility = 10.0 ** np.linspace(-3, 1, 20)
    cov = (0.7 * np.eye(20) + 0.3) * np.outer(volatility, volatility)
    labels = [f"a{i}" for i in range(20)]
    risk = CovarianceRisk(cov, assets=labels).aligned(labels, "USD")
    np.testing.assert_allclose(np.abs(risk.factors), [np.sqrt(0.3) * volatility], rtol=1e-12)
    np.testing.assert_allclose(risk.specific, 0.7 * volatility**2, rtol=1e-12)


def test_a_small_correlation_is_not_taken_for_rounding() -> None:
    cov = [[1.0, 1e-8], [1e-8, 1.0]]
    assert_covariance(CovarianceRisk(frame(cov)).aligned(["BTC", "ETH"], "USD"), cov, 1e-15)


def test_a_diagonal_matrix_has_no_factors() -> None:
    variances = np.array([1e-9, 0.0, 2.0, 3e7])
    risk = CovarianceRisk(np.diag(variances), assets=ASSETS).aligned(ASSETS, "USD")
    assert risk.is_diagonal
    assert risk.specific.tolist() == variances.tolist()


def test_a_singular_matrix_has_only_its_rank_and_no_noise() -> None:
    labels = [f"a{i}" for i in range(30)]
    cov = random_covariance(8, 30, rank=6)
    risk = CovarianceRisk(cov, assets=labels).aligned(labels, "USD")
    assert len(risk.factors) == 5  # 6 observations less their mean
    assert not risk.specific.any()
    assert_covariance(risk, cov)


def test_zero_variance_leaves_the_others_their_diagonal() -> None:
    cov = np.array([[0.04, 0.0, 0.01], [0.0, 0.0, 0.0], [0.01, 0.0, 0.09]])
    risk = CovarianceRisk(frame(cov)).aligned(ASSETS[:3], "USD")
    assert_covariance(risk, cov)
    assert risk.specific[0] > 0
    assert risk.specific[1] == 0


def test_the_smallest_variances_do_not_underflow() -> None:
    cov = 2e-100 * np.array([[1.0, 0.5], [0.5, 1.0]])
    risk = CovarianceRisk(frame(cov)).aligned(["BTC", "ETH"], "USD")
    np.testing.assert_allclose(risk.covariance(), cov, rtol=1e-9)
    assert len(risk.factors) == 1


def test_a_little_asymmetry_is_averaged_and_more_is_refused() -> None:
    cov = np.array([[0.04, 0.01], [0.01 + 2e-12, 0.09]])
    risk = CovarianceRisk(frame(cov)).aligned(["BTC", "ETH"], "USD")
    assert risk.covariance()[0, 1] == pytest.approx(0.01 + 1e-12, abs=1e-16)
    cov[1, 0] += 2e-11
    with pytest.raises(InputError, match="must be symmetric") as caught:
        CovarianceRisk(frame(cov))
    assert set(caught.value.asset) == {"BTC", "ETH"}


def test_rounding_below_zero_is_no_fault_and_counts_as_zero() -> None:
    cov = np.array([[1.0, 1.0 + 4e-11], [1.0 + 4e-11, 1.0]])  # smallest eigenvalue −4e-11
    model = CovarianceRisk(frame(cov))
    assert model.repaired is None
    assert not model.aligned(["BTC", "ETH"], "USD").specific.any()
    with pytest.raises(InputError, match="positive semidefinite"):
        CovarianceRisk(frame([[1.0, 1.0 + 2e-10], [1.0 + 2e-10, 1.0]]))


CYCLE = np.array([[1.0, 0.9, -0.9], [0.9, 1.0, 0.9], [-0.9, 0.9, 1.0]])  # eigenvalues −0.8, 1.9, 1.9


def test_repair_in_closed_form_keeps_the_volatilities() -> None:
    # Clipped, C is 1.9·(I − vvᵀ) with v = (1, −1, 1)/√3; its diagonal 1.9·2/3 scaled back to 1 leaves
    # correlations of ±1/2.
    volatility = np.array([0.1, 2.0, 30.0])
    S = np.outer(volatility, volatility)
    with pytest.raises(InputError) as caught:
        CovarianceRisk(frame(CYCLE * S))
    assert "smallest eigenvalue of its correlations is -0.8" in str(caught.value)
    assert "repair=True" in str(caught.value)
    model = CovarianceRisk(frame(CYCLE * S), repair=True)
    repaired = np.array([[1.0, 0.5, -0.5], [0.5, 1.0, 0.5], [-0.5, 0.5, 1.0]])
    assert_covariance(model.aligned(ASSETS[:3], "USD"), repaired * S)
    assert model.repaired == pytest.approx(np.sqrt(6) * 0.4, rel=1e-12)
    assert pickle.loads(pickle.dumps(model)).repaired == model.repaired


def test_repair_leaves_a_good_matrix_alone() -> None:
    cov = random_covariance(9, 4)
    good, plain = (CovarianceRisk(cov, assets=ASSETS, repair=repair) for repair in (True, False))
    assert good.repaired is None
    assert plain.repaired is None
    assert good.aligned(ASSETS, "").factors.tolist() == plain.aligned(ASSETS, "").factors.tolist()


def changed(i: int, j: int, value: float) -> pd.DataFrame:
    cov = np.array([[0.04, 0.01, 0.0], [0.01, 0.09, 0.0], [0.0, 0.0, 0.16]])
    cov[i, j] = value
    return frame(cov)


BTC_ETH = ("BTC", "ETH")


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize(
    ("cov", "asset", "value", "message"),
    [
        (changed(0, 1, np.nan), BTC_ETH, "nan", "must be a finite number; estimate it"),
        (changed(0, 0, np.inf), "BTC", np.inf, "must be a finite number"),
        (changed(1, 1, -0.09), "ETH", -0.09, "a variance must not be negative; correct the matrix"),
        (changed(1, 1, 0.0), BTC_ETH, 0.01, "what has zero variance cannot covary"),
        (changed(0, 1, 0.02), BTC_ETH, 0.02, "a covariance must be symmetric"),
        (frame([[1e-100, 1e100], [1e100, 1e-100]]), BTC_ETH, 1e100, "cannot belong to variances so small"),
        (frame(np.eye(3), ["a", "b", "a"]), "a", None, "occurs more than once; labels must be unique"),
        (frame(np.eye(2)).rename(columns={"ETH": "SOL"}), "ETH", None, "and it has only a row"),
        (frame(np.eye(3))[["SOL", "BTC"]], "ETH", None, "and it has only a row"),
        (frame(np.eye(3)).loc[["BTC", "ETH"]], "SOL", None, "and it has only a column"),
        (
            frame(np.eye(2)).astype(object).replace(0.0, "x"),
            BTC_ETH,
            "x",
            "must be a number, finite and in plain digits",
        ),
        (frame([[1e-310, 0.0], [0.0, 1.0]]), "BTC", 1e-310, "is nearer to 0 than 1e-100"),
        (np.eye(2), None, None, "an array needs assets=[...]"),
    ],
)
def test_covariance_refuses(cov: Any, asset: Any, value: Any, message: str, repair: bool) -> None:
    with pytest.raises(InputError) as caught:
        CovarianceRisk(cov, repair=repair)
    assert caught.value.asset == asset
    assert caught.value.value == value or str(caught.value.value) == value
    assert caught.value.column == "covariance"
    assert message in str(caught.value)


def test_covariance_names_the_pair_with_the_worst_asymmetry_and_with_a_correlation_above_one() -> None:
    cov = np.eye(3)
    cov[0, 1], cov[2, 1] = 1e-6, 1e-3
    with pytest.raises(InputError, match="must be symmetric") as caught:
        CovarianceRisk(frame(cov))
    assert set(caught.value.asset) == {"ETH", "SOL"}
    with pytest.raises(InputError, match=r"smallest eigenvalue of its correlations is -0\.5") as caught:
        CovarianceRisk(frame([[1, 0, 0], [0, 1, 1.5], [0, 1.5, 1]]))
    assert caught.value.asset == ("ETH", "SOL")


@pytest.mark.parametrize(
    ("array", "assets", "message"),
    [
        (np.eye(3), ["a", "b"], "its shape is (3, 3), and 2 labels need as many columns"),
        (np.ones((3, 2)), ["a", "b"], "must be square, and its shape is (3, 2)"),
        (np.ones(2), ["a", "b"], "its shape is (2,)"),
        (np.eye(2), ["a", "a"], "labels must be unique"),
        (frame(np.eye(2)), ["a", "b"], "labels are given once"),
    ],
)
def test_covariance_refuses_arrays_that_do_not_fit(array: Any, assets: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        CovarianceRisk(array, assets=assets)
    assert message in str(caught.value)


def test_what_a_matrix_says_of_the_riskless_is_not_read() -> None:
    cov = changed(0, 1, np.nan)
    risk = CovarianceRisk(cov, riskless=["BTC"]).aligned(ASSETS[:3], "USD")
    assert_covariance(risk, np.diag([0.0, 0.09, 0.16]))


# ---- returns ----------------------------------------------------------------------------------------------


def test_sample_covariance_is_numpys() -> None:
    returns = random_returns()
    risk = CovarianceRisk.from_returns(returns).aligned(ASSETS, "USD")
    assert_covariance(risk, 252 * np.cov(returns.to_numpy(), rowvar=False, ddof=1))


def test_ewma_covariance_is_that_of_pandas() -> None:
    returns = random_returns()
    model = CovarianceRisk.from_returns(returns, method="ewma", half_life=7.5, periods_per_year=365)
    wanted = 365 * returns.ewm(halflife=7.5).cov(bias=True).loc[returns.index[-1]]
    assert_covariance(model.aligned(ASSETS, "USD"), wanted)


def test_ewma_by_hand() -> None:
    # Weights ½ : 1 for two returns: variance = ⅓·⅔·(difference)².
    returns = pd.DataFrame({"BTC": [0.00, 0.03]})
    model = CovarianceRisk.from_returns(returns, method="ewma", half_life=1, periods_per_year=1)
    assert model.aligned(["BTC"], "USD").specific[0] == pytest.approx(2 / 9 * 0.0009, rel=1e-14)


def test_ewma_with_a_long_memory_is_the_sample_without_its_correction() -> None:
    returns = random_returns(periods=20)
    model = CovarianceRisk.from_returns(returns, method="ewma", half_life=1e12)
    assert_covariance(model.aligned(ASSETS, "USD"), 252 * np.cov(returns.T, ddof=0), 1e-10)


def test_ledoit_wolf_is_that_of_scikit_learn() -> None:
    covariance = pytest.importorskip("sklearn.covariance")
    returns = random_returns(periods=12)
    model = CovarianceRisk.from_returns(returns, method="ledoit_wolf", periods_per_year=52)
    assert_covariance(model.aligned(ASSETS, "USD"), 52 * covariance.LedoitWolf().fit(returns.to_numpy()).covariance_)


def test_ledoit_wolf_without_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.covariance", None)
    with pytest.raises(ImportError, match=r"pip install 'equipoise\[risk\]', or use another method"):
        CovarianceRisk.from_returns(random_returns(), method="ledoit_wolf")


def test_fewer_periods_than_assets() -> None:
    returns = random_returns(periods=3)
    risk = CovarianceRisk.from_returns(returns).aligned(ASSETS, "USD")
    assert len(risk.factors) == 2
    assert_covariance(risk, 252 * np.cov(returns.T))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["sample", "ewma"]), st.permutations(ASSETS))
def test_the_order_of_the_columns_does_not_matter(method: Any, order: list[str]) -> None:
    returns, half_life = random_returns(), 10.0 if method == "ewma" else None
    one, other = (
        CovarianceRisk.from_returns(table, method=method, half_life=half_life).aligned(ASSETS, "USD")
        for table in (returns, returns[order])
    )
    assert_covariance(one, other.covariance())


def test_riskless_and_alias_of_returns() -> None:
    returns = random_returns().assign(USDC=0.0, DEAD=np.nan)
    model = CovarianceRisk.from_returns(returns, riskless=["USDC", "DEAD"], alias={"WETH": "ETH"})
    assert model.assets == tuple(ASSETS)
    risk = model.aligned(["USDC", "WETH", "DEAD"], "USD")
    assert_covariance(risk, np.diag([0.0, 252 * returns["ETH"].var(), 0.0]))


def with_entry(row: int, asset: str, value: float) -> pd.DataFrame:
    returns = random_returns()
    returns.loc[returns.index[row], asset] = value
    return returns


def prices_that_grow_evenly() -> pd.DataFrame:
    prices = pd.Series(np.cumprod(np.full(61, 1.0001)))
    return random_returns().assign(FUND=(prices / prices.shift() - 1).iloc[1:].to_numpy())


def stale_since(periods: int) -> pd.DataFrame:
    returns = random_returns(periods=400)
    returns.iloc[-periods:, 2] = 0.0
    return returns


@pytest.mark.parametrize(
    ("returns", "more", "asset", "message"),
    [
        (with_entry(2, "ETH", np.nan), {}, "ETH", "row '2024-01-03 00:00:00': a return must be a"),
        (with_entry(0, "SOL", -np.inf), {}, "SOL", "row '2024-01-01 00:00:00'"),
        (random_returns(periods=1), {}, None, "at least 2 periods"),
        (random_returns().assign(STALE=0.0), {}, "STALE", "a stale price; drop the asset, or list it"),
        (random_returns().assign(STALE=0.1), {}, "STALE", "the return never changes"),
        (prices_that_grow_evenly(), {}, "FUND", "the return never changes"),
        (stale_since(350), {"method": "ewma", "half_life": 2}, "SOL", "(under these weights)"),
        (random_returns(), {"method": "ewma"}, None, "half_life (in periods) belongs to method='ewma'"),
        (random_returns(), {"half_life": 5}, None, "half_life (in periods) belongs to method='ewma'"),
        (random_returns(), {"method": "ewma", "half_life": 0}, None, "column 'half_life'"),
        (random_returns(), {"method": "ewma", "half_life": np.nan}, None, "column 'half_life'"),
        (random_returns(), {"periods_per_year": -252}, None, "column 'periods_per_year'"),
        (random_returns(), {"periods_per_year": np.inf}, None, "column 'periods_per_year'"),
        (random_returns(), {"method": "gerber"}, None, "must be 'sample', 'ewma' or 'ledoit_wolf'"),
        (random_returns(), {"riskless": "BTC"}, None, "write riskless=['BTC']"),
        (random_returns().to_numpy(), {}, None, "labels are given once: a DataFrame carries its own"),
        (random_returns()[["BTC", "ETH", "BTC"]], {}, "BTC", "labels must be unique"),
        (random_returns().assign(ETH="up"), {}, "ETH", "row '2024-01-01 00:00:00': must be a number, finite and"),
    ],
)
def test_returns_refused(returns: Any, more: Any, asset: str | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        CovarianceRisk.from_returns(returns, **more)
    assert caught.value.asset == asset
    assert message in str(caught.value)


def test_nearly_stale_returns_are_kept() -> None:
    quiet = random_returns().assign(FUND=[1e-9, -1e-9] * 30)
    assert "FUND" in CovarianceRisk.from_returns(quiet).assets
    assert CovarianceRisk.from_returns(stale_since(350)).assets == tuple(ASSETS)


# ---- a factor model ---------------------------------------------------------------------------------------


LOADINGS = pd.DataFrame([[1.0, 0.5, 2.0], [0.0, -1.0, 0.3]], index=["market", "size"], columns=["BTC", "ETH", "SOL"])
OMEGA = pd.DataFrame([[0.04, 0.01], [0.01, 0.02]], index=["market", "size"], columns=["market", "size"])
SPECIFIC = pd.Series({"ETH": 0.2, "SOL": 0.3, "BTC": 0.1, "not in the loadings": 9.0})
WANTED = LOADINGS.T.to_numpy() @ OMEGA.to_numpy() @ LOADINGS.to_numpy() + np.diag([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    "model",
    [
        FactorRisk(LOADINGS, SPECIFIC, factor_covariance=OMEGA),
        FactorRisk(LOADINGS, SPECIFIC.to_dict(), factor_covariance=OMEGA.iloc[::-1]),
        FactorRisk(LOADINGS, SPECIFIC, factor_covariance=OMEGA.iloc[::-1, ::-1]),
        FactorRisk(LOADINGS.iloc[::-1, [2, 0, 1]], SPECIFIC, factor_covariance=OMEGA),
        FactorRisk(LOADINGS, [0.1, 0.2, 0.3], factor_covariance=OMEGA.to_numpy()),
        FactorRisk(LOADINGS.to_numpy(), SPECIFIC, assets=list(LOADINGS), factor_covariance=OMEGA.to_numpy()),
    ],
)
def test_factor_model_is_its_formula(model: FactorRisk) -> None:
    risk = model.aligned(["BTC", "ETH", "SOL"], "USD")
    assert_covariance(risk, WANTED)
    assert risk.specific.tolist() == [0.1, 0.2, 0.3]
    assert len(risk.factors) == 2
    assert_covariance(model.aligned(["SOL", "BTC"], "USD"), WANTED[np.ix_([2, 0], [2, 0])])


def test_factors_without_a_covariance_have_unit_variance() -> None:
    risk = FactorRisk(LOADINGS, SPECIFIC).aligned(["BTC", "ETH", "SOL"], "USD")
    assert risk.factors.tolist() == LOADINGS.to_numpy().tolist()
    assert_covariance(risk, LOADINGS.T @ LOADINGS + np.diag([0.1, 0.2, 0.3]))


def test_a_singular_factor_covariance_loses_its_empty_factors() -> None:
    omega = np.array([[0.04, 0.02], [0.02, 0.01]])
    model = FactorRisk(LOADINGS, SPECIFIC, factor_covariance=omega)
    L = LOADINGS.to_numpy()
    risk = model.aligned(list(LOADINGS), "USD")
    assert len(risk.factors) == 1
    assert_covariance(risk, L.T @ omega @ L + np.diag([0.1, 0.2, 0.3]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 8), st.floats(-12, 12))
def test_factor_models_of_any_size_and_scale(seed: int, k: int, n: int, exponent: float) -> None:
    rng, scale = np.random.default_rng(seed), 10.0**exponent
    L, s, omega = rng.normal(size=(k, n)), scale * rng.uniform(0.1, 1, n), scale * random_covariance(seed, k)
    labels = [f"a{i}" for i in range(n)]
    risk = FactorRisk(L, s, assets=labels, factor_covariance=omega).aligned(labels, "USD")
    assert len(risk.factors) <= min(k, n)
    assert_covariance(risk, L.T @ omega @ L + np.diag(s), 1e-11)


def test_the_riskless_need_no_specific_variance_and_no_loadings() -> None:
    loadings = LOADINGS.assign(USDC=np.nan)
    risk = FactorRisk(loadings, SPECIFIC, riskless=["USDC"]).aligned(["USDC", "BTC"], "USD")
    assert_covariance(risk, np.diag([0.0, 1.1]))


TRANSPOSED = "loadings looks transposed: factors are its rows and assets its columns, so pass loadings.T"
INDEFINITE = frame([[1.0, 2.0], [2.0, 1.0]], ["market", "size"])


@pytest.mark.parametrize(
    ("loadings", "specific", "more", "place", "message"),
    [
        (LOADINGS.T, SPECIFIC, {}, ("market", "specific_variance"), TRANSPOSED),
        (LOADINGS.T, [0.1, 0.2, 0.3], {}, (None, "specific_variance"), TRANSPOSED),
        (LOADINGS.T, [0.1, 0.2], {"factor_covariance": OMEGA}, (None, "factor_covariance"), TRANSPOSED),
        (LOADINGS.T.to_numpy(), SPECIFIC, {"assets": ["BTC", "ETH", "SOL"]}, (None, "loadings"), TRANSPOSED),
        (LOADINGS, SPECIFIC.drop("ETH"), {}, ("ETH", "specific_variance"), "every asset needs one"),
        (LOADINGS, [0.1, 0.2], {"assets": list(LOADINGS)}, (None, "loadings"), "labels are given once"),
        (LOADINGS.to_numpy(), [0.1, 0.2, 0.3], {}, (None, "loadings"), "an array needs assets="),
        (LOADINGS, [0.1] * 4, {}, (None, "specific_variance"), "is (4,), and loadings has 3 columns"),
        (LOADINGS, 0.1, {}, (None, "specific_variance"), "its shape is ()"),
        (LOADINGS, ["a", "b", "c"], {}, ("BTC", "specific_variance"), "must be a number, finite"),
        (LOADINGS, [0.1, -0.2, 0.3], {}, ("ETH", "specific_variance"), "value -0.2: a specific variance"),
        (LOADINGS, [0.1, 0.2, np.nan], {}, ("SOL", "specific_variance"), "finite number, not negative"),
        (LOADINGS, [np.inf, 0.2, 0.3], {}, ("BTC", "specific_variance"), "finite number, not negative"),
        (LOADINGS.replace(0.3, np.nan), SPECIFIC, {}, ("SOL", "loadings"), "row 'size': a loading must be"),
        (LOADINGS[["BTC", "BTC", "ETH"]], SPECIFIC, {}, ("BTC", "loadings"), "labels must be unique"),
        (LOADINGS.rename({"size": "market"}), SPECIFIC, {}, ("market", "loadings"), "occurs more than once"),
        (LOADINGS, pd.concat([SPECIFIC, SPECIFIC]), {}, ("ETH", "specific_variance"), "more than once"),
        (LOADINGS, SPECIFIC, {"factor_covariance": np.eye(3)}, (None, "factor_covariance"), "2 labels need"),
        (
            LOADINGS,
            SPECIFIC,
            {"factor_covariance": frame(np.eye(2), ["market", "value"])},
            (None, "factor_covariance"),
            "those of the rows of loadings, and 'size' is only in one",
        ),
        (
            LOADINGS,
            SPECIFIC,
            {"factor_covariance": INDEFINITE},
            (("market", "size"), "factor_covariance"),
            "smallest eigenvalue of its correlations is -1;",
        ),
    ],
)
def test_factor_model_refuses(loadings: Any, specific: Any, more: Any, place: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        FactorRisk(loadings, specific, **more)
    assert (caught.value.asset, caught.value.column) == place
    assert message in str(caught.value)


def test_no_hint_of_a_transposed_table_where_there_is_none() -> None:
    with pytest.raises(InputError) as caught:
        FactorRisk(LOADINGS, SPECIFIC.drop("ETH"))
    assert "transposed" not in str(caught.value)


# ---- the module -------------------------------------------------------------------------------------------


def test_arrays_alone_import_neither_pandas_nor_scikit_learn_nor_cvxpy() -> None:
    code = (
        "import sys; from equipoise.optimizer.risk.models import CovarianceRisk as C, FactorRisk as F; "
        "C([[1, 0], [0, 1]], assets=['a', 'b']); F([[1, 2]], {'a': 1, 'b': 2}, assets=['a', 'b']); "
        "print([m for m in ('pandas', 'sklearn', 'cvxpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
