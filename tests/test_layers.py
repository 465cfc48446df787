"""The folder tree tells the architecture: imports point downward, and planning needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tunebatch

ROOT = Path(tunebatch.__file__).parent
HEAVY = {"torch", "transformers", "optuna", "rich", "typer", "pandas"}


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "engine").rglob("*.py")), ids=lambda p: p.stem)
def test_the_engine_imports_itself_and_the_standard_library_only(path: Path) -> None:
    for name in imported(path):
        top = name.split(".")[0]
        assert name.startswith("tunebatch.engine") or top in sys.stdlib_module_names, f"{path}: {name}"


def test_a_benchmark_can_be_planned_without_torch() -> None:
    code = "import sys, tunebatch.bench; print(sorted(set(sys.modules) & set(sys.argv[1:])))"
    done = subprocess.run([sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
