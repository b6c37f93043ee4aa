"""The arrows between the modules, and what importing the package costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("constraints", "optimizer")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
LONGEST = 400
CVXPY = {"optimizer/cvxpy_model.py", "optimizer/epigraph.py", "constraints/custom.py", "constraints/terms.py"}
CVXPY |= {"optimizer/joined.py", "optimizer/workers.py"}

#: The layers of optimizer/, lowest first: a module imports its own layer and those below. A module that is not
#: named here is on top: it may import everything, and none of these may import it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("checked", "effort", "lending", "liquidation", "leverage", "margin", "parameters"),
    (
        *("whole", "labelled", "spectrum", "factored", "risk", "portfolio", "cells", "stack", "costs", "separable"),
        *("transfers", "accounts", "joined", "rows", "problem", "policy"),
    ),
    ("discrete", "dust", "solution", "structure", "certificate"),
    (
        *("holding", "dual", "line_search", "iteration", "newton", "dense"),
        *("compiled_jit", "compiled_dual", "compiled_step", "compiled"),
        *(
            "epigraph",
            "supporting_plane",
            "cvxpy_model",
            "program",
            "lot_points",
            "lot_search",
            "lot_program",
            "lots",
            "account_closing",
            "lot_dive",
            "lot_polish",
        ),
        *("lot_split", "lot_dual", "lot_hull", "lot_bound", "lot_exact", "lot_levels", "verify", "verify_stack"),
        *("lot_grid", "lot_descent", "lot_prices", "lot_stack", "lot_diffusion"),
    ),
    ("conflict",),
    ("explain", "choose", "account_lots", "account_least"),
    (
        *("reasons", "shortfall", "rounding", "plan", "triggers", "report"),
        *("order_rules", "order_moves", "order_model", "order_states", "order_search", "sequence"),
        *("order_stack", "order_listing"),
    ),
    (
        *("files", "tables", "rebalancer", "batch_input", "batch", "output"),
        *("message", "arrow", "chunk", "tasks", "workers", "stream", "sink"),
        *("digest", "checkpoint", "progress", "engine"),
    ),
)
SOLVERS = (
    *(
        "holding",
        "dual",
        "iteration",
        "newton",
        "dense",
        "epigraph",
        "supporting_plane",
        "cvxpy_model",
        "program",
        "lot_points",
        "lot_search",
    ),
    *("lot_program", "lots", "account_lots", "account_least", "conflict", "explain", "choose"),
)


@dataclass(frozen=True)
class Import:
    """One imported name: where it stands, and whether importing the module runs it."""

    name: str
    at_load: bool
    only_types: bool


def imports(source: str) -> Iterator[Import]:
    """All imports of a module, also those within functions, under TYPE_CHECKING and by importlib."""

    def walk(node: ast.AST, at_load: bool, only_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, at_load, only_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from package import module` imports package.module; for a mere name the longer path does no harm.
            yield from (Import(f"{node.module}.{alias.name}", at_load, only_types) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            # A name that is computed is a user's.
            yield from (Import(str(a.value), at_load, only_types) for a in node.args if isinstance(a, ast.Constant))
        inner = at_load and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for field, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child, inner, only_types or (typing and field == "body"))

    yield from walk(ast.parse(source), True, False)


def of(path: Path) -> list[Import]:
    return list(imports(path.read_text(encoding="utf-8")))


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def inside(path: Path, package: str = "equipoise.optimizer") -> set[str]:
    """The modules of a package that this file imports, in whatever way."""
    return {i.name.removeprefix(package + ".").split(".")[0] for i in of(path) if i.name.startswith(package + ".")}


def layer(module: str) -> int:
    return next((number for number, modules in enumerate(LAYERS) if module in modules), len(LAYERS))


def module(name: str) -> Path:
    return ROOT / "optimizer" / f"{name}.py"


def test_the_scanner_sees_every_kind_of_import() -> None:
    source = """
import a.b
from c import d
if TYPE_CHECKING:
    from e import f
else:
    import g
def function():
    import h
    x = importlib.import_module("i.j")
class C:
    import k
"""
    found = {i.name: (i.at_load, i.only_types) for i in imports(source)}
    assert found == {
        "a.b": (True, False),
        "c.d": (True, False),
        "e.f": (True, True),
        "g": (True, False),
        "h": (False, False),
        "i.j": (False, False),
        "k": (True, False),
    }


def test_the_files_are_found() -> None:
    assert {path.parent.name for path in FILES} == set(FOLDERS)
    named = {name for modules in LAYERS for name in modules} - {"newton"}
    assert named <= {path.stem for path in FILES}
    assert set(SOLVERS) <= {name for modules in LAYERS for name in modules}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_reads_in_one_go(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_rules_know_nothing_of_the_optimizer() -> None:
    for path in (ROOT / "constraints").rglob("*.py"):
        assert not [i.name for i in of(path) if within(i.name, "equipoise.optimizer")], path.name


def test_the_arrows_of_the_optimizer_run_one_way() -> None:
    """constraints ← problem ← solvers and checks ← choice ← plan ← rebalancer ← the command line."""
    for path in (ROOT / "optimizer").rglob("*.py"):
        if path.stem != "__init__":
            above = {name for name in inside(path) if module(name).exists() and layer(name) > layer(path.stem)}
            # What is imported for its type only is no arrow between equals of neighbouring layers.
            typed = {i.name.split(".")[2] for i in of(path) if i.only_types and within(i.name, "equipoise.optimizer")}
            assert not above - typed, path.name


def test_no_module_waits_for_itself() -> None:
    """What runs when a module is imported has no cycle."""
    waits = {
        path.stem: {
            i.name.split(".")[2]
            for i in of(path)
            if i.at_load and not i.only_types and i.name.startswith("equipoise.optimizer.")
        }
        for path in (ROOT / "optimizer").rglob("*.py")
        if path.stem != "__init__"
    }
    assert any(waits.values())
    while waits:
        ready = [name for name, others in waits.items() if not others & waits.keys()]
        assert ready, f"a cycle among {sorted(waits)}"
        for name in ready:
            del waits[name]


def test_the_exact_check_is_independent() -> None:
    """No solver, no search, no cvxpy, no scipy: what verify needs, and what that needs in turn."""
    todo, seen = ["verify"], set()
    while todo:
        name = todo.pop()
        seen.add(name)
        for i in of(module(name)):
            assert not any(within(i.name, package) for package in ("cvxpy", "clarabel", "scipy", "highspy")), name
        todo += [other for other in inside(module(name)) - seen if module(other).exists()]
    assert not seen & set(SOLVERS)
    assert "problem" in seen


def test_the_closed_form_does_not_know_the_program() -> None:
    assert not inside(module("newton")) & {"program", "explain", "choose"}


@pytest.mark.parametrize(
    ("package", "where"),
    [
        ("cvxpy", CVXPY),
        ("scipy", {"optimizer/lots.py", "optimizer/lot_program.py", "optimizer/supporting_plane.py"}),
        ("sklearn", {"optimizer/risk.py"}),
        ("clarabel", set()),
        ("matplotlib", set()),
    ],
)
def test_who_may_import_the_heavy_packages(package: str, where: set[str]) -> None:
    """Only there, and only within functions."""
    found = [(f"{path.parent.name}/{path.name}", i) for path in FILES for i in of(path) if within(i.name, package)]
    assert {name for name, _ in found} <= where
    assert not [name for name, i in found if i.at_load and not i.only_types]
    if package == "cvxpy":
        assert {name for name, _ in found} == where  # the scanner finds those that are there


@pytest.mark.parametrize(
    "name", ["equipoise", "equipoise.optimizer", "equipoise.constraints", "equipoise.optimizer.cli"]
)
def test_importing_is_light(name: str) -> None:
    """cvxpy costs seconds: it is imported when the first program is compiled."""
    heavy = "cvxpy", "scipy.optimize", "matplotlib", "sklearn"
    code = f"import sys, {name}; print([m for m in {heavy} if m in sys.modules], '{name}' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert run.stderr == ""
    assert run.stdout.strip() == "[] True"
