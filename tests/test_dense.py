"""Dense covariances: their factors by Cholesky, and Newton's method in trial weights, against the general program."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise import InputError, Rebalancer, Status
from equipoise.constraints import DriftBand, FactorLimit, Leverage, LongOnly, Turnover, WeightBounds
from equipoise.optimizer import CovarianceRisk, FactorRisk, ImpactCost, ProportionalCost, QuadraticCost
from equipoise.optimizer.risk import covariance_spectrum as spectra
from equipoise.optimizer.solvers.newton import dense
from equipoise.optimizer.solvers.program import program

N = 60
NAMES = [f"A{i:02d}" for i in range(N)]


def covariance(rng: np.random.Generator, days: int, n: int = N) -> pd.DataFrame:
    names = NAMES[:n]
    returns = 0.01 * rng.standard_normal((days, 1)) + 0.02 * rng.uniform(0.5, 2.0, n) * rng.standard_normal((days, n))
    return pd.DataFrame(252.0 * returns.T @ returns / days, index=names, columns=names)


def table(rng: np.random.Generator) -> pd.DataFrame:
    target, held = 0.95 * rng.dirichlet(np.ones(N)), 0.9 * rng.dirichlet(np.ones(N))
    held[:5] = 0.0
    price = rng.uniform(1.0, 100.0, N)
    made = pd.DataFrame({"quantity": 1e6 * held / price, "price": price, "target": target}, index=NAMES)
    made["group"] = [f"group {i % 4}" for i in range(N)]
    made.loc["USD"] = [1e5, 1.0, 1.0 - target.sum(), None]
    return made


RULES: dict[str, list[Any]] = {
    "long": [LongOnly(), WeightBounds(upper=0.05), DriftBand(absolute=0.02, by="group")],
    "short": [WeightBounds(lower=-0.02, upper=0.04), Leverage(gross=0.9), Turnover(0.2)],
    "rows": [
        LongOnly(),
        Turnover(0.3),
        FactorLimit({name: 1.0 + i % 3 for i, name in enumerate(NAMES)}, upper=1.6),
        DriftBand(absolute=0.001, by="group"),
    ],
    "few": [LongOnly()],
}
COSTS: dict[str, list[Any]] = {
    "none": [],
    "spread": [ProportionalCost(0.0005)],
    "bent": [ProportionalCost(0.0002), ImpactCost(0.1, 1e7), QuadraticCost(0.001)],
}


@pytest.mark.parametrize("costs", COSTS)
@pytest.mark.parametrize("rules", RULES)
def test_answers_are_those_of_the_program(rules: str, costs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same objective, no rule broken, and a closed gap, for samples that are hardly longer than the portfolio."""
    monkeypatch.setattr(dense, "FACTORS", 10)
    rng = np.random.default_rng([sum(map(ord, rules)), len(costs)])
    for days in (N + 5, 3 * N):
        risk = CovarianceRisk(covariance(rng, days))
        made = Rebalancer(cash="USD", risk=risk, costs=COSTS[costs], constraints=RULES[rules])
        problem = made.problem(table(rng))
        assert dense.takes(problem)
        found, attempt = dense.solution(problem)
        assert found is not None and found.weights is not None, attempt
        expected = program.solve(problem)
        assert found.gap <= max(1e-9 * found.objective, 1e-14)
        assert problem.violation(found.weights) <= 1e-10
        assert found.bound <= expected.objective + 1e-12
        assert found.objective <= expected.objective + 1e-9 * abs(expected.objective) + 1e-14


def test_a_plan_from_a_dense_covariance_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "FACTORS", 10)
    rng = np.random.default_rng(1)
    made = Rebalancer(cash="USD", risk=CovarianceRisk(covariance(rng, 90)), constraints=RULES["long"])
    plan = made.solve(table(rng))
    assert plan.status is Status.OPTIMAL
    assert plan.verified is not None and plan.verified.passed
    target = Rebalancer(cash="USD", risk=CovarianceRisk(covariance(rng, 90))).solve(table(rng))
    np.testing.assert_allclose(target.weights["after"], target.weights["target"], atol=1e-12)


def test_what_cannot_be_kept_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "FACTORS", 10)
    rng = np.random.default_rng(2)
    rules = [LongOnly(), FactorLimit(dict.fromkeys(NAMES, 1.0), lower=0.9), Turnover(0.1), WeightBounds(upper=0.016)]
    problem = Rebalancer(cash="USD", risk=CovarianceRisk(covariance(rng, 90)), constraints=rules).problem(table(rng))
    found, attempt = dense.solution(problem)
    assert found is None
    assert attempt.said == "infeasible"


@pytest.mark.parametrize("days", [45, 60, 400])
def test_a_factor_by_cholesky_is_that_covariance(days: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "LARGE", 10)
    cov = covariance(np.random.default_rng(days), days, 40)
    risk = CovarianceRisk(cov)
    assets = [*cov.columns[::-1], "USD"]
    aligned = risk.aligned(assets, "USD")
    expected = cov.reindex(index=assets, columns=assets).fillna(0.0).to_numpy()
    np.testing.assert_allclose(aligned.covariance(), expected, rtol=0, atol=1e-14)
    volatility = np.sqrt(np.diag(cov))
    smallest = np.linalg.eigvalsh(cov / np.outer(volatility, volatility))[0]
    θ = (aligned.specific[:-1] / volatility[::-1] ** 2).max()
    assert 0 < θ < smallest


def test_what_has_no_factor_by_cholesky_is_taken_apart_by_its_eigenvalues(monkeypatch: pytest.MonkeyPatch) -> None:
    """A low rank, equal correlations, a diagonal, a riskless asset, and what is indefinite are as they were."""
    rng = np.random.default_rng(3)
    short, long = covariance(rng, 10, 40), covariance(rng, 100, 40)
    equal = pd.DataFrame(0.04 * (0.5 + 0.5 * np.eye(40)), index=NAMES[:40], columns=NAMES[:40])
    riskless = long.copy()
    riskless.iloc[7], riskless.iloc[:, 7] = 0.0, 0.0
    diagonal = pd.DataFrame(np.diag(np.diag(long)), index=long.index, columns=long.columns)
    given = (short, equal, riskless, diagonal)
    before = [CovarianceRisk(cov).aligned(NAMES[:40], "USD") for cov in given]
    monkeypatch.setattr(spectra, "LARGE", 10)
    for cov, own in zip(given, before, strict=True):
        found = CovarianceRisk(cov).aligned(NAMES[:40], "USD")
        assert found.factors.tolist() == own.factors.tolist()
        assert found.specific.tolist() == own.specific.tolist()
    broken = long.copy()
    broken.iloc[0, 1] = broken.iloc[1, 0] = 1.1 * np.sqrt(broken.iloc[0, 0] * broken.iloc[1, 1])
    with pytest.raises(InputError, match="positive semidefinite"):
        CovarianceRisk(broken)
    assert CovarianceRisk(broken, repair=True).repaired is not None


def test_few_factors_and_assets_without_risk_are_for_the_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "FACTORS", 10)
    rng = np.random.default_rng(4)
    loadings = pd.DataFrame(rng.normal(0.0, 0.1, (12, N)), columns=NAMES)
    few = FactorRisk(loadings, dict.fromkeys(NAMES, 0.04))
    riskless = CovarianceRisk(covariance(rng, 90), riskless=NAMES[:1])
    for risk in (few, riskless):
        assert not dense.takes(Rebalancer(cash="USD", risk=risk).problem(table(rng)))
