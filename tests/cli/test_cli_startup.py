"""Help and version come at once."""

from __future__ import annotations

import re
import subprocess
import sys

import tunebatch

HEAVY = ("torch", "transformers", "optuna", "pandas", "scipy", "pydantic", "rich", "numpy", "numba")

CODE = """
import sys
from tunebatch.cli.main import run_command
code = run_command(sys.argv[1:2])
loaded = sorted(set(sys.modules) & set(sys.argv[2:]))
print("loaded", loaded)
sys.exit(code)
"""


def _call(argument: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE, argument, *HEAVY], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_help_loads_nothing_heavy() -> None:
    printed = _call("--help")
    assert "loaded []" in printed
    assert all(command in printed for command in ("sweep", "compare", "run", "doctor"))
    told = " ".join(printed.split())
    assert "Exit codes: 0 an answer; 1 internal error; 2 wrong usage; 5 results" in told
    assert "7 no valid result: other tokens" in told and "130 interrupted." in told


def test_version() -> None:
    assert _call("--version").startswith(f"tunebatch {tunebatch.__version__}\n")


def test_help_names_what_there_is() -> None:
    from typer.testing import CliRunner

    from tunebatch.cli.main import app
    from tunebatch.engine.strategies import STRATEGIES
    from tunebatch.profile import profile_names
    from tunebatch.workload.named import NAMED
    from tunebatch.workload.traces import TRACE_FORMATS

    for command in ("sweep", "compare", "run", "doctor"):
        shown = CliRunner().invoke(app, [command, "--help"], terminal_width=80).output
        assert max(map(len, shown.splitlines())) <= 80
        words = set(re.findall(r"[\w-]+", shown))
        if command != "doctor":
            assert {*STRATEGIES, *profile_names(), *NAMED, *TRACE_FORMATS} <= words
