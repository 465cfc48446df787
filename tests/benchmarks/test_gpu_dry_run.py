"""A dry run of the GPU's benchmark: every part runs, with nothing but what a GPU machine has."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu
import pytest
from on_gpu import seam

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="module")
def ran(folder: Path) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("gpu_bare.py")
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env=environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def data(ran: object, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "dry" / "gpu.json").read_text())
    return found


def test_every_part_runs_to_its_end(data: dict[str, Any]) -> None:
    assert list(data["parts"]) == list(gpu.PARTS)
    assert {name: part["failed"] for name, part in data["parts"].items() if part["failed"]} == {}


def test_what_a_gpu_machine_lacks_is_not_needed(ran: object, folder: Path) -> None:
    assert json.loads((folder / "imported.json").read_text()) == []


def test_a_model_is_let_go_before_the_next_is_loaded(ran: subprocess.CompletedProcess[str]) -> None:
    assert "loading llama-8m" in ran.stderr and "still held" not in ran.stderr


def test_no_figure_of_a_dry_run_is_taken_for_a_gpus(data: dict[str, Any], folder: Path) -> None:
    page = (folder / "dry" / "gpu.md").read_text()
    assert data["dry"] and "No figure here is of a GPU" in page
    assert page.count("| dry run |") == sum(len(part["bars"]) for part in data["parts"].values()) == 14
    assert "| met |" not in page and "| missed |" not in page


def test_what_was_not_measured_is_told_with_its_reason(folder: Path, data: dict[str, Any]) -> None:
    told = (folder / "dry" / "gpu.md").read_text().split("## Not measured")[1]
    assert "optuna, pydantic, scipy not installed here" in told
    assert "context 10,000, batch 1, 2: beyond the context of" in told
    assert ("overlap on and off: not available" in told) != seam.has_overlap()


def test_a_prompt_is_computed_with_the_compiler_too(data: dict[str, Any], folder: Path) -> None:
    found = data["parts"]["prefill"]["data"]["compiled"]
    # As many tokens as the KV cache of the dry run holds.
    assert found["tokens"] == 320 and set(found["ms"]) == {"torch.compile", "transformers"}
    assert all(ms > 0 for ms in found["ms"].values())
    assert (
        f"| 320 tokens | {found['ms']['torch.compile']:.4g} ms |" in (folder / "dry" / "gpu.md").read_text()
    )


def test_steps_are_kept_with_plan_and_duration(data: dict[str, Any], folder: Path) -> None:
    names = {path.name for path in (folder / "dry").glob("steps-*.csv")}
    assert names == {f"steps-{part}.csv" for part in ("decode", "prefill", "strategies", "host", "busy")}
    with open(folder / "dry" / "steps-decode.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    of_one = [("1", "19"), ("1", "20"), ("2", "38"), ("2", "40")]
    assert [(row["num_decodes"], row["context_sum"]) for row in rows] == 2 * of_one
    assert all(float(row["duration_s"]) > 0 for row in rows)
    with open(folder / "dry" / "steps-prefill.csv", newline="") as file:
        first = next(csv.DictReader(file))
    assert (first["slices"], first["num_prefill_tokens"]) == ("0:16", "16")
