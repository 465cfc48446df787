"""The wheel is enough: it brings all of ours, names all that it needs, and is used from another folder."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_BYTES = 25 * 2**20  # of which the models are allowed 20 MB


# Whose module has another name than the distribution.
DISTRIBUTIONS = {"pynvml": "nvidia-ml-py"}


def third_party_imports() -> dict[str, Path]:
    """The distributions that the package imports, wherever in a file, and one of the files."""
    found: dict[str, Path] = {}
    for path in sorted((ROOT / "tunebatch").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for top in {name.partition(".")[0] for name in names}:
                if top != "tunebatch" and top not in sys.stdlib_module_names:
                    found.setdefault(DISTRIBUTIONS.get(top, top), path.relative_to(ROOT))
    return found


def canonical(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def test_all_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [one for extra in project["optional-dependencies"].values() for one in extra]
    declared = {canonical(one) for one in [*project["dependencies"], *extras]}
    imported = third_party_imports()
    assert {"torch", "huggingface_hub", "nvidia-ml-py"} <= imported.keys()
    assert {name: path for name, path in imported.items() if canonical(name) not in declared} == {}


def test_the_versions_of_ci_are_of_what_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {canonical(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {canonical(one) for one in project["dependencies"]} <= pinned


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    (built,) = folder.glob("tunebatch-*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tunebatch"}
    assert not [name for name in names if "__pycache__" in name or "test" in Path(name).name]
    profiles = {path.name for path in (ROOT / "profiles").glob("*.toml")}
    assert {Path(name).name for name in names if name.startswith("tunebatch/profiles/")} == profiles
    assert {"tunebatch/py.typed", "tunebatch/models/bundled/target/model.safetensors"} <= set(names)
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tunebatch").rglob("*.py")}
    assert modules <= set(names)
    assert any(name.endswith("/LICENSE") for name in names)
    assert wheel.stat().st_size < MOST_BYTES


def site_packages(home: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))


def sweep_from_elsewhere(home: Path, elsewhere: Path) -> None:
    """With the environment in ``home``: all of ours comes out of it, and a sweep gives an answer."""
    elsewhere.mkdir()
    environ = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and not name.startswith("TUNEBATCH_")
    }
    # Compiling kernels takes longer than all the rest, and says nothing about the wheel.
    environ["TUNEBATCH_MODEL_BACKEND"] = "packed"

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=elsewhere, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = (
        "import tunebatch, tunebatch.models as m, tunebatch.profile as p; "
        "print(tunebatch.__file__, m.bundled_target(), p._profiles_folder(), sep='\\n')"
    )
    found = run(str(home / "bin" / "python"), "-c", where).split()
    assert len(found) == 3 and all(Path(path).is_relative_to(site_packages(home)) for path in found)
    budget = ["--profile", "smoke", "--strategy", "continuous", "--trials", "1", "--requests", "64"]
    goal = ["--objective", "throughput", "--slo", "p90_ttft<=1min"]  # which any machine keeps
    told = run(str(home / "bin" / "tunebatch"), "sweep", *budget, *goal, "--out", "here")
    assert told.startswith("continuous, max_batch_size ") and "tok/s inside the SLO" in told.splitlines()[0]
    assert (elsewhere / "here" / "result.json").is_file()


def test_a_sweep_from_another_folder_with_nothing_of_ours_but_the_wheel(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "env"
    venv.create(home, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "--quiet"]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", str(wheel)], check=True)
    # The libraries are those that run this test, since installing torch again takes minutes. A path that
    # a .pth file adds is not searched for .pth files itself, so no editable install of ours comes along.
    (site_packages(home) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    sweep_from_elsewhere(home, tmp_path / "elsewhere")


@pytest.mark.slow
def test_a_sweep_from_another_folder_in_an_environment_that_was_empty(wheel: Path, tmp_path: Path) -> None:
    """As a user installs it: the package index gives what the wheel asks for, in the versions of CI."""
    home = tmp_path / "env"
    venv.create(home, with_pip=True, symlinks=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "--quiet"]
    install = [*pip, "install", "--constraint", str(ROOT / "constraints.txt")]
    tried = subprocess.run([*install, "--dry-run", "--no-deps", "typer"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no package index to be reached: {tried.stderr.strip().splitlines()[-1]}")
    done = subprocess.run([*install, str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (site_packages(home) / "torch").is_dir()
    subprocess.run([*pip, "check"], check=True)
    sweep_from_elsewhere(home, tmp_path / "elsewhere")
