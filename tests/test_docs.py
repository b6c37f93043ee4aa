"""Every Python block of the README and of docs/ runs, in the order in which it stands there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from equipoise.optimizer.solvers import choose

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if BLOCK.search(p.read_text(encoding="utf-8"))], ids=lambda p: p.name
)
def test_page(page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(choose, "_registered", {})
    names: dict[str, object] = {"__name__": "__main__"}
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start())
        exec(compile("\n" * (line + 1) + block[1], str(page), "exec"), names)
    assert capsys.readouterr().out or page.name != "README.md"


def test_the_readme_has_blocks() -> None:
    assert len(BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))) >= 3


@pytest.mark.parametrize("script", ["treasury.py", "equity.py"])
def test_example(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The examples run from any folder and print a verified plan."""
    monkeypatch.chdir(ROOT.parent)
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    assert "exact checks passed" in capsys.readouterr().out
