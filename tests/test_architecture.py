"""The arrows between the modules, and what importing the package costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ("constraints", "optimizer") for path in (ROOT / folder).rglob("*.py"))
PIECES = "constraints/pieces/__init__"  # imported by the others, as one module
MODULES = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in FILES}
MODULES = {name: path for name, path in MODULES.items() if path.stem != "__init__" or name == PIECES}
CVXPY = {
    "constraints/rules/custom.py",
    "constraints/rules/terms.py",
    "optimizer/batches/workers.py",
    "optimizer/problem/joint.py",
    "optimizer/solvers/program/cvxpy_model.py",
    "optimizer/solvers/program/envelopes.py",
    "optimizer/solvers/program/program.py",
    "optimizer/solvers/program/readable.py",
    "optimizer/solvers/program/supporting_plane.py",
}

#: The folders on the way of the data: a file imports from its own folder and those before it, types included.
ORDER = (
    "constraints",
    "constraints/pieces",
    "constraints/rules",
    "optimizer/risk",
    "optimizer/formulas",
    "optimizer/portfolio",
    "optimizer/problem",
    "optimizer/verification",
    "optimizer/solvers/newton",
    "optimizer/solvers/program",
    "optimizer/solvers",
    "optimizer/lots/points",
    "optimizer/lots/search",
    "optimizer/lots/bounds",
    "optimizer/lots",
    "optimizer/sequence",
    "optimizer/plans",
    "optimizer/batches",
    "optimizer",
    "optimizer/command",
)
MOST_ENTRIES = 15


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


def own(name: str) -> str | None:
    """The module of this project that an imported name is of or in."""
    parts = name.removeprefix("equipoise.").split(".") if within(name, "equipoise") else []
    paths = ("/".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for path in paths for name in (path, f"{path}/__init__") if name in MODULES), None)


def arrows(name: str) -> set[str]:
    """The modules that this one imports, in whatever way and for whatever use."""
    return {found for i in of(MODULES[name]) if (found := own(i.name)) is not None} - {name}


def reached(name: str) -> set[str]:
    """The module, what it imports, and what that imports in turn."""
    todo, seen = [name], set()
    while todo:
        seen.add(one := todo.pop())
        todo += arrows(one) - seen
    return seen


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


def test_every_folder_has_its_place_and_is_seen_at_a_glance() -> None:
    folders = {path.parent for path in FILES}
    assert {folder.relative_to(ROOT).as_posix() for folder in folders} == set(ORDER)
    for folder in folders:
        entries = {path.relative_to(folder).parts[0] for path in FILES if folder in path.parents} - {"__init__.py"}
        assert len(entries) <= MOST_ENTRIES, folder.name
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))), folder.name


def test_the_folders_are_the_way_of_the_data() -> None:
    backwards = {
        (name, other)
        for name in MODULES
        for other in arrows(name)
        if ORDER.index(other.rpartition("/")[0]) > ORDER.index(name.rpartition("/")[0])
    }
    assert not backwards


def test_no_module_imports_itself_in_a_circle() -> None:
    """Types included: a circle that is hidden by a lazy or typed import is still one for who reads."""
    assert len(list(TopologicalSorter({name: arrows(name) for name in MODULES}).static_order())) == len(MODULES)


def test_the_exact_check_is_independent() -> None:
    """No solver, no search, no cvxpy, no scipy: what the check needs, and what that needs in turn."""
    seen = reached("optimizer/verification/exact")
    assert "optimizer/problem/problem" in seen
    assert not [name for name in seen if name.startswith(("optimizer/solvers", "optimizer/lots"))]
    for name in seen:
        outside = [i.name for i in of(MODULES[name])]
        assert not [one for one in outside for p in ("cvxpy", "clarabel", "scipy", "highspy") if within(one, p)], name


def test_the_closed_form_does_not_know_the_program() -> None:
    assert not [name for name in reached("optimizer/solvers/newton/newton") if "program" in name]


@pytest.mark.parametrize(
    ("package", "where"),
    [
        ("cvxpy", CVXPY),
        (
            "scipy",
            {f"optimizer/{name}.py" for name in ("lots/alone", "lots/feasibility", "solvers/program/supporting_plane")},
        ),
        ("sklearn", {"optimizer/risk/models.py"}),
        ("clarabel", set()),
        ("matplotlib", set()),
    ],
)
def test_who_may_import_the_heavy_packages(package: str, where: set[str]) -> None:
    """Only there, and only within functions."""
    found = [(path.relative_to(ROOT).as_posix(), i) for path in FILES for i in of(path) if within(i.name, package)]
    assert {name for name, _ in found} <= where
    assert not [name for name, i in found if i.at_load and not i.only_types]
    if package == "cvxpy":
        assert {name for name, _ in found} == where  # the scanner finds those that are there


@pytest.mark.parametrize(
    "name", ["equipoise", "equipoise.optimizer", "equipoise.constraints", "equipoise.optimizer.command.main"]
)
def test_importing_is_light(name: str) -> None:
    """cvxpy costs seconds: it is imported when the first program is compiled."""
    heavy = "cvxpy", "scipy.optimize", "matplotlib", "sklearn"
    code = f"import sys, {name}; print([m for m in {heavy} if m in sys.modules], '{name}' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert run.stderr == ""
    assert run.stdout.strip() == "[] True"
