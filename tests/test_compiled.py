"""The compiled iteration: the same answers as numpy's, with the switch that chooses between them."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pandas as pd
import pytest
from strategies import many
from test_newton import bits, stacked

from equipoise import Rebalancer
from equipoise.constraints import Turnover
from equipoise.constraints.errors import InputError
from equipoise.optimizer.problem.policy_digest import policy_digest
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.threshold import Separable
from equipoise.optimizer.solvers.newton import iteration, newton
from equipoise.optimizer.solvers.newton import numba_dual as compiled_dual
from equipoise.optimizer.solvers.newton import numba_jit as compiled_jit
from equipoise.optimizer.solvers.newton import numba_newton as compiled
from equipoise.optimizer.solvers.newton.dual import Dual
from equipoise.optimizer.solvers.newton.iteration import INFEASIBLE, SOLVED, UNSOLVED, Ends
from equipoise.optimizer.solvers.newton.newton import Answers
from equipoise.optimizer.solvers.newton.numba_dual import BUY, IMPACT, LONG, QUADRATIC, SELL, SHORT, SLOPE


def both(given: Problem) -> tuple[Answers, Answers]:
    """newton.solve by either path."""
    return newton.solve(given), newton.solve(replace(given, compiled=True))


def agree(plain: Answers, fast: Answers) -> None:
    assert fast.code.tolist() == plain.code.tolist()
    done = plain.code == SOLVED
    np.testing.assert_allclose(fast.weights[done], plain.weights[done], rtol=0, atol=1e-9)
    # Rows are kept to rounding, of which their prices say what it changes in the objective.
    rounding = 1e-12 * np.abs(plain.objective) + iteration.NEARLY * plain.rows.sum(axis=1) + 1e-15
    assert np.all(np.abs(fast.objective - plain.objective)[done] <= rounding[done])
    assert np.all(fast.violation[done] <= newton.VIOLATION)
    gap = fast.objective - fast.bound
    assert np.all(gap[done] <= np.maximum(newton.GAP_RELATIVE * np.abs(fast.objective[done]), newton.GAP_ABSOLUTE))


@pytest.mark.slow
def test_random_problems_have_the_same_answers() -> None:
    """All rules, costs and kinds of risk of the generator, with slack and with limits that exclude its point."""
    seen = np.zeros(3, dtype=int)
    apart = []
    tight = ("drift_band", "cash_floor", "health_factor", "gross_leverage", "turnover")
    for options in ({}, {"among": tight, "slack": -0.6}):
        for instance in many(200, 17, **options):
            given = instance.problem()
            if newton.refusal(given) is None:
                plain, fast = both(given.as_stack())
                agree(plain, fast)
                seen[plain.code] += 1
                apart.append(abs(int(plain.steps[0]) - int(fast.steps[0])))
    assert seen[SOLVED] >= 200
    assert seen[INFEASIBLE] >= 30
    # The same rules take the same steps; only rounding tells when to stop.
    assert np.mean(np.array(apart) > 1) <= 0.02


def test_a_stack_has_the_same_answers() -> None:
    rules, stack = stacked(120)
    rules = replace(rules, constraints=(*rules.constraints, Turnover(0.06)))
    plain, fast = both(rules.stacked(stack))
    agree(plain, fast)
    assert {SOLVED, INFEASIBLE} <= set(plain.code.tolist())


def test_a_stack_gives_the_bits_of_any_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rules, stack = stacked()
    rules = replace(rules, compiled=True)
    whole = newton.solve(rules.stacked(stack))
    for part in (np.array([7]), np.array([31, 2, 11]), np.arange(40)[::-1]):
        some = newton.solve(rules.stacked(stack.take(part)))
        assert bits(some, slice(None)) == bits(whole, part)


def test_the_threshold_rule_is_that_of_separable() -> None:
    """Every kink and curve, holdings on both sides of 0 and at 0, bounds that hold and bounds that do not."""
    rng = np.random.default_rng(4)
    n = 4000

    def some(size: Any) -> Any:
        return size * rng.uniform(0, 1, n) * (rng.random(n) < 0.7)

    before = rng.normal(0, 0.1, n) * (rng.random(n) < 0.8)
    long, buy = rng.normal(0, 0.05, n), rng.normal(0, 0.05, n)
    rule = Separable(
        curvature=rng.uniform(0.01, 1, n),
        centre=rng.normal(0, 0.1, n),
        slope=rng.normal(0, 0.1, n),
        long=long,
        short=some(0.1) - long,
        buy=buy,
        sell=some(0.1) - buy,
        quadratic=some(1.0),
        impact=some(0.1),
        before=before,
        lower=-some(0.3),
        upper=some(0.3),
    )
    own = np.array([getattr(rule, name) for name in Separable.__dataclass_fields__])
    weights, moves = np.empty(n), np.empty(n)
    for charged in (1.0, 2.5):
        dearer = dict(zip(("quadratic", "impact"), charged * own[[QUADRATIC, IMPACT]], strict=True))
        expected = Separable(**(vars(rule) | dearer)).response()
        priced = own[[SLOPE, LONG, SHORT, BUY, SELL]].copy()
        compiled_dual.respond(own, priced, charged, weights, moves, True, True)
        np.testing.assert_allclose(weights, expected[0], rtol=0, atol=1e-15)
        np.testing.assert_allclose(moves, expected[1], rtol=1e-9)


@pytest.mark.parametrize(("value", "expected"), [(False, iteration.iterated), (True, compiled.iterated)])
def test_the_switch(value: bool, expected: Any) -> None:
    table = pd.DataFrame({"quantity": [60.0, 40.0], "price": 1.0, "target": [0.5, 0.5]}, index=["A", "USD"])
    assert newton._iterated(Rebalancer(cash="USD", compiled=value).problem(table)) is expected


def test_a_checkpoint_knows_which_iteration_ran() -> None:
    assert policy_digest(Rebalancer(cash="USD", compiled=True).policy) != policy_digest(Rebalancer(cash="USD").policy)


def test_without_numba_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equipoise.optimizer.problem.policy.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'compiled'.*equipoise\[fast\]"):
        Rebalancer(cash="USD", compiled=True)


def test_what_has_not_converged_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """After too few steps both say so, and return nothing."""
    rules, stack = stacked(20)
    given = rules.stacked(stack)
    monkeypatch.setattr(iteration, "STEPS", 2)
    monkeypatch.setattr(compiled, "_CONSTANTS", compiled._CONSTANTS._replace(rays=(2,) * 4))
    ends = []

    def recorded(dual: Dual, proximal: float) -> Ends:
        ends.append(compiled.iterated(dual, proximal))
        return ends[-1]

    monkeypatch.setattr(newton, "_iterated", lambda problem: recorded)
    answers = newton.solve(given)
    left = answers.code == UNSOLVED
    assert left.any()
    assert np.isnan(answers.weights[left]).all()
    assert max(int(end.steps.max()) for end in ends) == 2


def test_it_runs_where_nothing_can_be_kept_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """numba raises where it finds no directory to write to; then the code is compiled for this process only."""

    def nowhere(function: Any) -> Any:
        raise RuntimeError(f"cannot cache function {function.__name__!r}: no locator available")

    monkeypatch.setattr("numba.core.caching.FunctionCache", nowhere)

    def twice(x: float) -> float:
        return 2.0 * x

    assert compiled_jit.jit(twice)(4.0) == 8.0


INNER = """
from typing import NamedTuple
from machine.numba_jit import jit, part

class Pair(NamedTuple):
    first: float
    second: float

@part
def inlined(x):
    return {slope} * x

@jit
def called(pair):
    return {intercept} + pair.first
"""
OUTER = """
from machine.numba_jit import jit
from machine.numba_inner import Pair, called, inlined

@jit
def outer(x):
    return called(Pair(inlined(x), x))
"""


def test_machine_code_on_disk_follows_every_source_it_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`outer` calls functions of another file, which changes, while its own file stays as it is."""
    package = tmp_path / "machine"
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def run(slope: float, intercept: float, inner: str = INNER) -> tuple[float, int]:
        """What a new process would find: the value, and how much of the machine code was on disk."""
        (package / "numba_inner.py").write_text(inner.format(slope=slope, intercept=intercept))
        for name in [name for name in sys.modules if name.partition(".")[0] == "machine"]:
            monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()
        outer = importlib.import_module("machine.numba_outer").outer
        return outer(2.0), sum(outer.stats.cache_hits.values())

    (package / "__init__.py").write_text("")
    (package / "numba_jit.py").write_text(Path(compiled_jit.__file__).read_text())
    (package / "numba_outer.py").write_text(OUTER)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # sources of one size within one second look alike to it
    assert run(3.0, 1.0) == (7.0, 0)
    assert run(3.0, 1.0) == (7.0, 1)
    assert run(4.0, 1.0) == (9.0, 0)
    assert run(4.0, 5.0) == (13.0, 0)
    swapped = INNER.replace("first: float\n    second", "second: float\n    first")
    assert run(4.0, 5.0, swapped) == (7.0, 0)
    monkeypatch.setattr(np, "__version__", "0.0")
    assert run(4.0, 5.0, swapped) == (7.0, 0)


def test_machine_code_is_made_of_nothing_else() -> None:
    """What compiled functions name is of the modules that their key on disk is made of, or a number, or numpy's."""
    own = "equipoise.optimizer.solvers.newton.numba_"
    modules = [sys.modules[own + name] for name in ("newton", "dual", "step")]
    functions = [one for module in modules for one in vars(module).values() if hasattr(one, "py_func")]
    assert len(functions) >= 15
    for function in functions:
        named, code = function.py_func.__globals__, function.py_func.__code__
        for used in (named[name] for name in code.co_names if name in named):
            home = used.__name__ if inspect.ismodule(used) else getattr(used, "__module__", "")
            assert isinstance(used, int | float) or home.startswith(("numpy", own)), used
    for signature in compiled._iterate.signatures:
        for kind in (kind for kind in signature if isinstance(kind, numba.types.BaseNamedTuple)):
            assert kind.instance_class.__module__.startswith(own)


def test_numba_is_loaded_when_it_is_first_used() -> None:
    code = "import sys, equipoise, equipoise.optimizer.solvers.newton.newton; print('numba' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout.strip() == "False", run.stderr
