"""Part 10: a full sweep of both shapes with the tool itself, in a process of its own.

It needs optuna, pydantic and scipy. What a GPU machine without a network lacks of them is carried there:

    python -m pip download --no-deps --only-binary=:all: -c constraints.txt -d wheels --python-version 3.12 \\
        --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \\
        --platform manylinux2014_x86_64 optuna alembic colorlog mako sqlalchemy pydantic pydantic-core \\
        annotated-types typing-inspection
    python -m pip install --no-index --no-deps --target site wheels/*.whl; export PYTHONPATH=site
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from itertools import chain, count
from pathlib import Path
from typing import Any

from claimed.claim import Table

from on_gpu.bench import GpuBench
from on_gpu.found import Found, Part
from tunebatch.cli import sweep_folder

NEEDED = ("optuna", "pydantic", "scipy")
# A batch limit is searched up to these, of which there are by default as many as suit a laptop.
SLOTS = "TUNEBATCH_DEVICE_MAX_SLOTS"
SLO = ("p90_ttft<=1s", "p90_tpot<=50ms")
ROOT = Path(__file__).resolve().parents[2]
_STARTS_S = 60.0  # of what a sweep takes beside its search: it loads the model
_LATE_S = 90.0  # a trial that is begun ends, and the winner is confirmed


def measure(bench: GpuBench) -> Found:
    bench.release()
    setting = bench.setting
    found = Found(
        setting=f"`tunebatch sweep` on chat, SLO {', '.join(SLO)}, {setting.small} and {setting.large}"
    )
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    answers: dict[str, Any] = {}
    models = (setting.small, setting.large)
    for place, model in enumerate(models):
        search_s = bench.budget.share(len(models) - place).left_s() - _STARTS_S
        command = _command(bench, model, search_s)
        if missing:
            found.not_measured.append(f"sweep of {model}: {', '.join(missing)} not installed here")
        elif setting.dry:
            found.not_measured.append(
                f"sweep of {model}: not in a dry run; it would be: {SLOTS}={setting.max_slots} python "
                f"{shlex.join(command[1:])}"
            )
        elif search_s < _STARTS_S:
            found.not_measured.append(f"sweep of {model}: out of time")
        else:
            answers[model] = _swept(bench, model, command, search_s, found)
    rows = [f"{model} | {answer}" for model, answer in answers.items() if answer]
    if rows:
        found.tables.append(Table("Answers", "model | answer", rows))
    found.data = {"answers": answers}
    return found


def _command(bench: GpuBench, model: str, search_s: float) -> list[str]:
    slo = [part for text in SLO for part in ("--slo", text)]
    out = ["--out", str(_unused(bench.folder / f"sweep-{model}"))] if bench.folder is not None else []
    return [
        sys.executable,
        *("-m", "tunebatch.cli", "sweep", "--model", model, "--workload", "chat", *slo),
        *("--time", f"{max(0, search_s):.0f}s", *out),
    ]


def _unused(folder: Path) -> Path:
    """That folder, or beside those of earlier runs, in which a sweep would not begin, one with a number."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(one for one in chain([folder], numbered) if not sweep_folder.begun(one))


def _swept(bench: GpuBench, model: str, command: list[str], search_s: float, found: Found) -> str | None:
    bench.say(f"sweeping {model} for {search_s:.0f} s")
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {SLOTS: str(bench.setting.max_slots)},
            capture_output=True,
            text=True,
            timeout=search_s + _STARTS_S + _LATE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        found.not_measured.append(f"sweep of {model}: did not end in time; what it measured is in its folder")
        return None
    if done.returncode not in (0, 6):
        last = (done.stderr.strip() or "no word of why").splitlines()[-1]
        found.not_measured.append(f"sweep of {model}: ended with code {done.returncode}: {last}")
        return None
    return next((line for line in done.stdout.splitlines() if line.strip()), None)


PART = Part("sweep", "Which strategy serves the most inside an SLO?", 900.0, measure)
