"""A device that is too small for a batch is an outcome, told with the step, and not the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_fake import FakeExecutor

from tunebatch.engine.plan import OutOfDeviceMemoryError, StepOutput, StepPlan

TOLD = "out of device memory in a step of "


@pytest.fixture(autouse=True)
def small_device(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FakeExecutor.execute

    def execute(self: FakeExecutor, plan: StepPlan) -> StepOutput:
        if plan.num_decodes > 8:
            raise OutOfDeviceMemoryError(
                f"{TOLD}{plan.num_slice_tokens} prefill tokens and {plan.num_decodes} decodes"
            )
        return whole(self, plan)

    monkeypatch.setattr(FakeExecutor, "execute", execute)


def test_a_run_is_infeasible(tunebatch: Any) -> None:
    done = tunebatch("run", "static", "-o", "here")
    assert done.code == 6 and done.out == ""
    assert f"error: static, max_batch_size 32, max_batched_tokens 2048: {TOLD}" in done.err
    assert tunebatch("run", "static", "--set", "max_batch_size=8", "-o", "here").code == 0


def test_a_comparison_goes_on(tunebatch: Any) -> None:
    done = tunebatch("compare", "--strategy", "static", "--strategy", "sequential", "-o", "here")
    assert done.code == 0, done.err
    assert "sequential" in done.out and "static" not in done.out.splitlines()[0]
    assert TOLD in done.err
    assert tunebatch("compare", "--strategy", "static", "-o", "there").code == 6


def test_a_sweep_goes_on_and_finds_what_fits(tunebatch: Any) -> None:
    goal = ["--objective", "throughput", "--slo", "p90_ttft<=1min"]
    names = ["--strategy", "sequential", "--strategy", "continuous"]
    done = tunebatch("sweep", "-p", "smoke", *goal, *names, "--trials", "8", "-o", "here")
    assert done.code == 0, done.err
    assert TOLD in done.err
    trials = json.loads(Path("here/sweep.json").read_text())["trials"]
    too_large = [trial for trial in trials if trial["oom"]]
    assert too_large and len(too_large) < len(trials) == 8
    assert all(trial["binding"].startswith("device memory in a step of ") for trial in too_large)
    assert all(trial["knobs"]["max_batch_size"] > 8 for trial in too_large)
