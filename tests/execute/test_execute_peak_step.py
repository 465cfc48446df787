"""The KV cache takes what the largest step leaves; a step without memory is told, and the next one served."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bench import burst
from tiny_models import BLOCK_SIZE, tiny

from tunebatch import bench
from tunebatch.cli.errors import INFEASIBLE, report_error
from tunebatch.engine.plan import OutOfDeviceMemoryError
from tunebatch.engine.strategies import STRATEGIES, Strategy, strategy
from tunebatch.execute.torch import peak_step
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.load import ModelError, serve
from tunebatch.execute.torch.peak_step import PEAK_TOKENS, PeakStep, run_peak_step
from tunebatch.measure.result import RunResult
from tunebatch.tune.study import run_sweep

SLOTS, MIB = 8, 2**20
KV_BYTES = 2 * 2 * 2 * 8 * 4  # a token's: layers, keys and values, heads, head size, float32


class FakeMemory:
    """A GPU of 10 MiB, of which 6 are free, and whose steps take 1000 bytes a token."""

    def __init__(self, free: int = 6 * MIB) -> None:
        self.free = free
        self.tokens: list[int] = []
        self.watching = False

    def free_and_total(self) -> tuple[int, int]:
        assert self.tokens, "the largest step must have run before what is free is asked for"
        return self.free, 10 * MIB

    def start_peak(self) -> int:
        self.watching = True
        return 5000

    def peak(self) -> int:
        self.watching = False
        return 5000 + 1000 * self.tokens[-1]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> FakeMemory:
    """Which sees the steps that run while it watches."""
    fake = FakeMemory()
    whole = TorchExecutor.logits

    def logits(self: TorchExecutor, plan: Any) -> torch.Tensor:
        if fake.watching:
            fake.tokens.append(plan.num_slice_tokens + plan.num_decodes)
        return whole(self, plan)

    monkeypatch.setattr(TorchExecutor, "logits", logits)
    return fake


@pytest.fixture(autouse=True)
def no_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed, and one takes longer than a run."""
    monkeypatch.setattr(bench, "_without_gc", nullcontext)


def served(memory: FakeMemory | None = None, **options: Any) -> TorchExecutor:
    return serve(
        tiny(),
        name="tiny",
        backend="reference",
        block_size=BLOCK_SIZE,
        max_slots=SLOTS,
        memory=memory,
        **options,
    )


def test_the_kv_cache_takes_what_the_largest_step_leaves(
    memory: FakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak_step.run_peak_step, "__defaults__", (300,))
    memory.free = 5 * MIB + 500_000
    executor = served(memory, utilization=0.5)
    # Contexts of 127 tokens: 300 are three prompts, and five decodes beside them.
    assert memory.tokens == [305]
    assert executor.model_info["peak_step"] == {"prefill_tokens": 300, "decodes": 5, "num_bytes": 305_000}
    # Half of 10 MiB belong to others.
    assert executor.num_blocks == (500_000 - 305_000) // (KV_BYTES * BLOCK_SIZE)
    assert executor.num_blocks == executor.model_info["num_blocks"] < SLOTS * 128 // BLOCK_SIZE


def test_the_pool_is_no_larger_than_all_slots_could_fill(memory: FakeMemory) -> None:
    assert served(memory).num_blocks == SLOTS * 128 // BLOCK_SIZE


def test_more_than_there_are_slots_for_is_as_much_as_there_are(memory: FakeMemory) -> None:
    peak = run_peak_step(lambda blocks: served(num_blocks=blocks), memory)
    assert PEAK_TOKENS > SLOTS * 127
    assert peak == PeakStep(SLOTS * 127, 0, 1000 * SLOTS * 127)


def test_the_largest_step_is_the_largest_that_any_strategy_may_be_asked_for() -> None:
    named = ("max_batched_tokens", "chunk_size")
    highs = [knob.high for kind in STRATEGIES.values() for knob in kind.knobs if knob.name in named]
    assert PEAK_TOKENS == max(highs) > min(highs)


def test_where_blocks_are_asked_for_no_step_is_run(memory: FakeMemory) -> None:
    executor = served(memory, num_blocks=20)
    assert executor.num_blocks == 20 and not memory.tokens and "peak_step" not in executor.model_info


def test_nothing_left_is_told(memory: FakeMemory) -> None:
    memory.free = 4 * MIB
    with pytest.raises(ModelError, match="no memory is left for a KV cache after the weights"):
        served(memory, utilization=0.5)


def failing(
    executor: TorchExecutor, fails: Callable[[int], bool], error: type[Exception] = torch.OutOfMemoryError
):
    """Its forward finds no memory in steps of some numbers of tokens."""
    whole, made = executor.forward, []

    def forward(input_ids: torch.Tensor, *others: Any) -> torch.Tensor:
        if fails(len(input_ids)):
            activations = torch.empty(len(input_ids))
            made.append(weakref.ref(activations))
            raise error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(input_ids, *others)

    executor.forward = forward
    return made


def test_a_peak_step_that_does_not_fit_is_halved_until_it_does(memory: FakeMemory) -> None:
    def new_executor(blocks: int) -> TorchExecutor:
        executor = served(num_blocks=blocks)
        failing(executor, lambda tokens: tokens > 200)
        return executor

    peak = run_peak_step(new_executor, memory, 640)
    # Of 160 tokens two prompts; of 320 there were too many.
    assert (peak.prefill_tokens, peak.decodes) == (160, 6)

    def never(blocks: int) -> TorchExecutor:
        executor = served(num_blocks=blocks)
        failing(executor, lambda tokens: True)
        return executor

    with pytest.raises(ModelError, match=r"in a step of 80 prefill tokens beside the weights alone"):
        run_peak_step(never, memory, 640)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_run_tells_the_step_and_the_next_is_served(error: type[Exception]) -> None:
    executor = served()
    right = bench.measure(burst(6), strategy("static", {"max_batch_size": 2}), executor)
    made = failing(executor, lambda tokens: tokens == 4, error)
    with pytest.raises(OutOfDeviceMemoryError) as told:
        bench.measure(burst(6), strategy("static", {"max_batch_size": 4}), executor)
    assert str(told.value) == "out of device memory in a step of 0 prefill tokens and 4 decodes"
    # Though the error is still here, what the step had made is not.
    gc.collect()
    assert made and all(one() is None for one in made)
    again = bench.measure(burst(6), strategy("static", {"max_batch_size": 2}), executor)
    assert [one.output for one in again.record.requests] == [one.output for one in right.record.requests]


def test_another_error_is_none_of_memory() -> None:
    executor = served()
    whole = executor.forward
    executor.forward = lambda *arguments: whole(*arguments) @ torch.zeros(3)
    with pytest.raises(RuntimeError, match=r"size mismatch|mat1|vector"):
        bench.measure(burst(2), strategy("static"), executor)


def test_a_sweep_of_a_real_engine_goes_on(tmp_path: Path) -> None:
    executor = served()
    failing(executor, lambda tokens: tokens in (5, 6, 7, 8))

    def measured(chosen: Strategy, rate: float | None, seed: int, **_: Any) -> RunResult:
        return bench.measure(burst(12), chosen, executor)

    outcome = run_sweep(
        measured,
        strategies=("sequential", "static"),
        directory=tmp_path,
        objective="throughput",
        max_trials=3,
        max_slots=SLOTS,
        confirm_top=1,
    )
    fates = {trial.strategy: trial.binding for trial in outcome.trials if trial.oom}
    assert fates["static"].startswith("device memory in a step of 0 prefill tokens and ")
    assert outcome.winner is not None and not outcome.winner.oom


def test_what_is_too_large_while_tokens_are_checked_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    told = "out of device memory in a step of 5 prefill tokens and 0 decodes"
    assert report_error(OutOfDeviceMemoryError(told)) == INFEASIBLE
    assert capsys.readouterr().err == f"error: {told}\n"


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB.",
            "tried to allocate 2.00 GiB",
        ),
        ("CUDA out of memory", "CUDA out of memory"),
    ],
)
def test_memory_that_runs_out_in_no_step_is_one_line_too(
    told: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when a model's weights are taken to the device."""
    assert report_error(torch.OutOfMemoryError(told)) == INFEASIBLE
    assert capsys.readouterr().err == f"error: out of device memory: {shown}; use a smaller model\n"
