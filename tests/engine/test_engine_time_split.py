"""On random work in tiny pools, every second of a request is in one part of its time split."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import VirtualClock
from tunebatch.engine.records import RequestRecord, StepLog
from tunebatch.engine.strategies import STRATEGIES, knobs_of, strategy
from tunebatch.measure.metrics import summarize
from tunebatch.measure.time_split import PARTS, split_by_request

TICK = 1 / 16  # exact in binary
KNOBS = {
    "max_batch_size": 4,
    "min_batch_size": 2,
    "max_batched_tokens": 9,
    "max_delay_s": 2 * TICK,
    "chunk_size": 4,
    "num_drafts": 3,
}

SHAPES = st.tuples(
    st.integers(1, 12),  # prompt
    st.integers(1, 10),  # max_tokens
    st.integers(0, 12),  # ticks since the arrival before
    st.none() | st.integers(0, 60),  # ticks until cancelled
)


@pytest.mark.parametrize("name", [*STRATEGIES, "continuous+draft", "mixed+prefix+draft"])
@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=12),
    num_blocks=st.integers(5, 12),
    num_steps=st.integers(0, 80),
    weight=st.integers(0, 3),
)
def test_the_parts_are_positive_and_add_up(
    kit: SimpleNamespace,
    name: str,
    shapes: list[tuple[int, int, int, int | None]],
    num_blocks: int,
    num_steps: int,
    weight: int,
) -> None:
    requests, arrival_s = [], 0.0
    for i, (prompt, max_tokens, gap, patience) in enumerate(shapes):
        arrival_s += gap * TICK
        cancel_at_s = None if patience is None else arrival_s + patience * TICK
        requests.append(kit.request(i, prompt, max_tokens, arrival_s, cancel_at_s))
    executor = kit.Executor(
        num_blocks, 2, duration=lambda plan: TICK * (1 + weight * plan.num_slice_tokens + plan.num_decodes)
    )
    knobs = {knob.name: KNOBS[knob.name] for knob in knobs_of(name) if knob.name in KNOBS}
    engine = engine_for(strategy(name, knobs), executor, kit.Source(requests), VirtualClock())
    for _ in range(num_steps):
        if not engine.step():
            break
    run = engine.record()

    split = split_by_request(run)
    assert tuple(split) == PARTS
    assert all((seconds >= 0.0).all() for seconds in split.values())
    whole = [max(r.end_s - r.arrival_s, 0.0) for r in run.requests]
    np.testing.assert_allclose(sum(split.values()), whole, rtol=0, atol=1e-12)
    assert summarize(run).where.total_s == pytest.approx(sum(whole))
    for index, record in enumerate(run.requests):
        preempted, stalled, wasted = walked(record, run.steps)
        assert split["preempted_s"][index] == pytest.approx(preempted, abs=1e-12)
        assert split["stalled_s"][index] == pytest.approx(stalled, abs=1e-12)
        assert split["speculation_waste_s"][index] <= wasted + 1e-12
        if not split["stalled_in_mixed_s"][index]:  # which goes before, where both want the same seconds
            assert split["speculation_waste_s"][index] == pytest.approx(wasted, abs=1e-12)


def walked(record: RequestRecord, steps: StepLog) -> tuple[float, float, float]:
    """Preempted, stalled and wasted seconds, step by step."""
    ended = [*record.recomputed_at_s, record.end_s]
    gone = list(zip(record.preempted_at_s, ended, strict=False))
    preempted = sum(until - since for since, until in gone)
    stalled = wasted = 0.0
    for start_s, duration_s, num_decodes, slices, verifications in zip(
        steps.start_s, steps.duration_s, steps.num_decodes, steps.slices, steps.verifications, strict=True
    ):
        num_tokens = num_decodes + sum(num for *_, num in slices)
        num_tokens += sum(1 + drafted for _, _, drafted, _ in verifications)
        rejected = sum(rejected for i, _, _, rejected in verifications if i == record.id)
        wasted += duration_s * rejected / num_tokens
        if num_decodes or verifications or not record.token_times_s:
            continue
        inside = record.token_times_s[0] <= start_s < record.end_s
        if inside and not any(since <= start_s < until for since, until in gone):
            stalled += duration_s
    return preempted, stalled, wasted
