"""The folder tree tells the architecture: imports point downward, and planning needs no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

import tunebatch

ROOT = Path(tunebatch.__file__).parent
README = ROOT.parent / "README.md"
HEAVY = {"torch", "transformers", "optuna", "rich", "typer", "pandas"}


def _for_types(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(path: Path) -> set[str]:
    """What a file imports when it runs, wherever in it, so not for types alone; of ``from tunebatch import
    bench`` the module is meant."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    guarded = [node for node in ast.walk(tree) if isinstance(node, ast.If) and _for_types(node)]
    for_types = {id(node) for one in guarded for body in one.body for node in ast.walk(body)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "tunebatch":
            found |= {f"tunebatch.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def layers() -> list[list[str]]:
    """The rows of README's table, from the top; each is names of folders and patterns of files."""
    text = README.read_text()
    table = text[text.index("| layer |") :].split("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    return [
        [name.removeprefix("tunebatch/").split("/")[0] for name in re.findall(r"`([^`]+)`", cell)]
        for cell in cells
    ]


def place(part: str) -> tuple[int, str]:
    """The row of what stands under ``tunebatch/``, and its name in it."""
    for row, names in enumerate(layers()):
        for name in names:
            if fnmatch(part, name.removesuffix(".py")):
                return row, name
    raise AssertionError(f"{part} is in no row of README's layers")


def parts() -> list[str]:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    return sorted(folders | {path.stem for path in ROOT.glob("*.py") if path.stem != "__init__"})


def files_of(part: str) -> Iterator[Path]:
    yield from (ROOT / part).rglob("*.py") if (ROOT / part).is_dir() else [ROOT / f"{part}.py"]


@pytest.mark.parametrize("part", parts())
def test_imports_point_downward(part: str) -> None:
    row, name = place(part)
    others = set(parts()) - {part}
    for path in files_of(part):
        for module in imported(path):
            top, _, rest = module.partition(".")
            other = rest.partition(".")[0]
            if top == "tunebatch" and other in others:
                below, other_name = place(other)
                assert below > row or other_name == name, f"{path.relative_to(ROOT)} imports {module}"


def test_every_row_of_the_table_is_there() -> None:
    names = [name.removesuffix(".py") for row in layers() for name in row]
    assert len(names) > 7 and all(any(fnmatch(part, name) for part in parts()) for name in names)


@pytest.mark.parametrize("part", ["engine", "workload", "measure"])
def test_traffic_and_metrics_need_no_torch(part: str) -> None:
    for path in files_of(part):
        assert not {name.split(".")[0] for name in imported(path)} & {"torch", "transformers"}, path


@pytest.mark.parametrize("path", sorted((ROOT / "engine").rglob("*.py")), ids=lambda p: p.stem)
def test_the_engine_imports_itself_and_the_standard_library_only(path: Path) -> None:
    for name in imported(path):
        top = name.split(".")[0]
        assert name.startswith("tunebatch.engine") or top in sys.stdlib_module_names, f"{path}: {name}"


def test_a_benchmark_can_be_planned_without_torch() -> None:
    code = "import sys, tunebatch.bench; print(sorted(set(sys.modules) & set(sys.argv[1:])))"
    done = subprocess.run([sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
