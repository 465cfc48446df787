"""The wheel alone is enough: built, installed into an empty environment, and used from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_BYTES = 25 * 2**20  # of which the models are allowed 20 MB


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


def test_a_sweep_from_another_folder_with_nothing_but_the_wheel(wheel: Path, tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "env", tmp_path / "elsewhere"
    elsewhere.mkdir()
    venv.create(home, with_pip=False, symlinks=True)
    python = str(home / "bin" / "python")
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", str(wheel)], check=True)
    # The libraries are those that run this test, since installing torch again takes minutes. A path that
    # a .pth file adds is not searched for .pth files itself, so no editable install of ours comes along.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
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
    found = run(python, "-c", where).split()
    assert len(found) == 3 and all(Path(path).is_relative_to(site) for path in found)
    budget = ["--profile", "smoke", "--strategy", "continuous", "--trials", "1", "--requests", "64"]
    goal = ["--objective", "throughput", "--slo", "p90_ttft<=1min"]  # which any machine keeps
    told = run(str(home / "bin" / "tunebatch"), "sweep", *budget, *goal, "--out", "here")
    assert told.startswith("continuous, max_batch_size ") and "tok/s inside the SLO" in told.splitlines()[0]
    assert (elsewhere / "here" / "result.json").is_file()
