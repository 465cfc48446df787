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


@pytest.mark.parametrize("name", ["chat", "code", "summarize", "offline"])
def test_a_named_workload_shrinks_to_the_kv_cache(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(FakeExecutor, "num_blocks", 40)
    done = tunebatch("run", "sequential", "-w", name, "-n", "200", "-o", "here")
    assert done.code == 0, done.err
    assert "to fit a KV cache of 640 tokens" in done.out
    with Path("here/requests.csv").open() as file:
        assert len(file.readlines()) == 201


def test_a_trace_is_clipped_to_the_kv_cache(tunebatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeExecutor, "num_blocks", 40)
    rows = [f'{{"arrival_s": {n}, "prompt_tokens": {600 + n}, "output_tokens": 40}}' for n in range(3)]
    Path("t.jsonl").write_text("\n".join(rows))
    done = tunebatch("run", "sequential", "--trace-file", "t.jsonl", "-o", "here")
    assert done.code == 0 and "2 of 3 requests were clipped to the KV cache of 640 tokens" in done.out, done


def test_what_the_kv_cache_cannot_hold_is_told_with_the_remedy(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch, fake_model: list[str]
) -> None:
    monkeypatch.setattr(FakeExecutor, "num_blocks", 40)
    Path("mine.toml").write_text(
        '[workload]\nname = "quickstart"\nclip = false\nprompt_tokens = 600\noutput_tokens = 57\n'
    )
    for command in ("run", "compare", "sweep"):
        done = tunebatch(command, "-p", "mine.toml", "--slo", "p50_ttft<=1s")
        assert done.code == 2 and "same tokens" not in fake_model
        (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert "request 0: 657 tokens do not fit into a KV cache of 40 blocks of 16" in line
        assert "[device] num_blocks = 41 " in line and "TUNEBATCH_DEVICE_NUM_BLOCKS=41" in line
        assert "clip = true" in line
    monkeypatch.setattr(FakeExecutor, "num_blocks", 41)
    assert tunebatch("run", "sequential", "-p", "mine.toml", "-q").code == 0
