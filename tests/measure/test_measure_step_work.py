"""Operations and bytes of steps, counted anew token by token, and what share of the ceilings they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measure_records import request, run, step

from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import VirtualClock
from tunebatch.engine.plan import StepOutput, StepPlan
from tunebatch.engine.records import RunRecord, StepLog
from tunebatch.engine.request import Request
from tunebatch.engine.strategies import strategy
from tunebatch.execute.torch.same_tokens import AllAtOnce
from tunebatch.measure.decode_balance import Peaks
from tunebatch.measure.kv_memory import KvLayout
from tunebatch.measure.step_work import ModelWork, model_work, step_work
from tunebatch.measure.utilization import utilization
from tunebatch.models.architecture import architecture
from tunebatch.models.parameters import count_parameters
from tunebatch.models.shapes import SHAPES

LAYERS, HEADS, KV_HEADS, WIDTH, BYTES = 3, 4, 2, 8, 2
WORK = ModelWork(1000, 500, BYTES, HEADS, KvLayout(KV_HEADS, WIDTH, (None,) * LAYERS, BYTES))


class Recorder:
    """Counts anew, from the plans, what each step does. Half of a draft is kept."""

    block_size, num_blocks, max_slots, max_context = 4, 40, 8, 256
    eos_token_ids: frozenset[int] = frozenset()
    drafter = None

    def __init__(self, num_blocks: int = 40) -> None:
        self.num_blocks = num_blocks
        self.flops: list[float] = []
        self.bytes: list[float] = []

    def execute(self, plan: StepPlan) -> StepOutput:
        pieces = [(s.start, s.num_tokens, (1 + len(s.draft_tokens)) * s.sample) for s in plan.slices]
        group = plan.decodes
        members = [] if group is None else [(group.num_computed(one), 1, 1) for one in group.members]
        pieces += members
        flops, moved, sampled = 0.0, 1000.0 * BYTES, False
        for start, num, rows in pieces:
            flops += 2 * 1000 * num + 2 * 500 * rows
            for position in range(start, start + num):
                flops += LAYERS * HEADS * (position + 1) * (2 * WIDTH + 2 * WIDTH)
            moved += LAYERS * KV_HEADS * 2 * WIDTH * BYTES * (start + num + num)
            sampled |= rows > 0
        self.flops.append(flops)
        self.bytes.append(moved + 500 * BYTES * sampled)
        tokens = [self._tokens(s.draft_tokens) if s.sample else [] for s in plan.slices]
        return StepOutput(tokens, [5] * len(members) if members else None, 1.0)

    def _tokens(self, drafts: tuple[int, ...]) -> list[int]:
        return [*drafts[: len(drafts) // 2], 5]

    def reset(self) -> None: ...


def served(name: str, num_blocks: int = 40, **knobs: float) -> tuple[Recorder, RunRecord]:
    repeated = (7, 8, 9)
    requests = tuple(
        Request(i, (*repeated * 3, 50 + i, *repeated), 6 + 3 * i, ignore_eos=True) for i in range(6)
    )
    executor = Recorder(num_blocks)
    chosen = strategy(name, {"max_batch_size": 4, **knobs})
    return executor, engine_for(chosen, executor, AllAtOnce(requests), VirtualClock()).run()


@pytest.mark.parametrize(
    ("name", "num_blocks", "knobs", "happens"),
    [
        ("continuous", 40, {}, lambda record: max(record.steps.num_decodes) == 4),
        ("mixed", 40, {"chunk_size": 5}, lambda record: max(map(len, record.steps.slices)) >= 1),
        ("continuous", 13, {}, lambda record: sum(record.steps.num_preempted) > 0),
        ("continuous+prefix", 40, {}, lambda record: sum(r.num_cached_tokens for r in record.requests) > 0),
        ("continuous+ngram", 40, {"num_drafts": 3}, lambda record: sum(record.steps.num_rejected) > 0),
    ],
)
def test_each_step_of_a_served_run_counts_as_its_plan_does(
    name: str, num_blocks: int, knobs: dict[str, float], happens: Callable[[RunRecord], bool]
) -> None:
    executor, record = served(name, num_blocks, **knobs)
    assert happens(record)
    counted = step_work(record, WORK)
    np.testing.assert_allclose(counted.flops, executor.flops)
    np.testing.assert_allclose(counted.bytes, executor.bytes)


def test_a_run_without_steps_did_nothing() -> None:
    counted = step_work(run([request(0, 0.0, [])]), WORK)
    assert counted.flops.size == counted.bytes.size == 0
    assert utilization(counted, Peaks(1.0, 1.0, "")) is None


@given(st.integers(0, 30), st.integers(1, 20), st.sampled_from([None, 1, 7, 100]))
def test_windows_bound_what_tokens_see(start: int, num: int, window: int | None) -> None:
    layout = KvLayout(1, 2, (window, None), 2)
    seen = [range(0 if window is None else max(0, p + 1 - window), p + 1) for p in range(start, start + num)]
    everything = [range(p + 1) for p in range(start, start + num)]
    args = np.array([float(start)]), np.array([float(num)])
    assert layout.attended(*args)[0] == sum(map(len, seen)) + sum(map(len, everything))
    keys = len(set().union(*seen)) + len(set().union(*everything))
    assert layout.bytes_of_seen(*args)[0] == keys * 2 * 2 * 2


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.2-1b", "qwen3-0.6b"])
def test_the_work_of_a_model_is_that_of_its_parameters(name: str) -> None:
    model = architecture(SHAPES[name].config)
    work, parameters = model_work(model, 2), count_parameters(model)
    assert work.head_weights == model.vocab * model.hidden
    assert work.body_weights + work.head_weights == parameters.active
    assert work.layout.bytes_per_token == 2 * model.layers * model.kv_heads * model.head_dim * 2
    read = work.weights_read(np.array([0.0, 1.0, 9.0]), np.array([0.0, 0.0, 3.0]))
    assert read.tolist() == [0, work.body_weights, parameters.read_per_step]


def test_a_batch_meets_more_experts_than_a_token() -> None:
    name = next(name for name, shape in SHAPES.items() if architecture(shape.config).num_experts)
    model = architecture(SHAPES[name].config)
    work, parameters = model_work(model, 2), count_parameters(model)
    one, two, many = work.weights_read(np.array([1.0, 2.0, 1e6]), np.ones(3))
    assert one == pytest.approx(parameters.active)
    assert one < two < many == pytest.approx(parameters.read_per_step)
    share = model.experts_per_token / model.num_experts
    assert (two - one) / (many - one) == pytest.approx(share)  # a choice is new to the first with that chance


def test_shares_of_the_ceilings_by_hand() -> None:
    log = StepLog()
    for start_s, duration_s in ((0.0, 2.0), (5.0, 3.0)):
        step(log, start_s, duration_s, active=1, held=1, blocks=1)
    log.num_decodes[:] = [1, 1]
    log.context_sum[:] = [10, 20]
    counted = step_work(run([request(0, 0.0, [2.0, 8.0])], log), WORK)
    # One step is bound by arithmetic under these ceilings, the other by memory.
    ceilings = Peaks(2.0 * counted.flops[0], counted.bytes[0] / 0.1, "by hand")
    counted = replace(
        counted, flops=counted.flops * [1.0, 0.0], bytes=counted.bytes[0] * np.array([1.0, 10.0])
    )
    used = utilization(counted, ceilings)
    assert used is not None and used.step_s == 5.0
    assert used.mfu == pytest.approx(0.5 / 5.0)
    assert used.mbu == pytest.approx((0.1 + 1.0) / 5.0)
    assert used.roofline == pytest.approx((0.5 + 1.0) / 5.0)
    bare = utilization(counted)
    assert bare is not None and bare.mfu is bare.mbu is bare.roofline is bare.ceilings is None
    assert (bare.flops_per_s, bare.bytes_per_s) == (used.flops_per_s, used.bytes_per_s)
    assert used.flops_per_s == pytest.approx(counted.flops.sum() / 5.0)
