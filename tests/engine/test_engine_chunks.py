"""Prompts that are computed in parts: what a step may carry, who goes first, what an interruption costs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebatch.engine.plan import StepPlan
from tunebatch.engine.policies.base import Policy
from tunebatch.engine.policies.chunked import Chunked
from tunebatch.engine.policies.continuous import Continuous
from tunebatch.engine.queues import Queues
from tunebatch.engine.records import RunRecord, StepLog
from tunebatch.engine.request import Request
from tunebatch.measure.metrics import summarize

SHAPES = st.lists(
    st.tuples(st.integers(1, 30), st.integers(1, 8), st.integers(0, 6)), min_size=1, max_size=12
)


def requests_of(shapes: list[tuple[int, int, int]], kit: SimpleNamespace) -> list[Request]:
    """``(prompt, max_tokens, steps since the arrival before)`` of each."""
    arrivals_s = [float(sum(gap for _, _, gap in shapes[: i + 1])) for i in range(len(shapes))]
    return [
        kit.request(i, prompt, max_tokens, arrivals_s[i]) for i, (prompt, max_tokens, _) in enumerate(shapes)
    ]


def chunks_of(steps: StepLog, request_id: int) -> list[tuple[int, int]]:
    """``(start, num_tokens)`` of each chunk of a request."""
    return [(start, num) for step in steps.slices for i, _, start, num in step if i == request_id]


class Alternating(Continuous):
    """Continuous batching, but for a decode step after each prefill step."""

    _prefilled = False

    def plan(self, now: float, queues: Queues) -> StepPlan | float | None:
        if self._prefilled and queues.decodes:
            self._prefilled = False
            return queues.decode(StepPlan(), now)
        plan = super().plan(now, queues)
        self._prefilled = isinstance(plan, StepPlan) and bool(plan.slices)
        return plan


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 6), st.integers(1, 60), st.integers(12, 40))
def test_chunked_with_chunks_for_whole_prompts_is_continuous_but_for_the_alternation(
    kit: SimpleNamespace, shapes: list[tuple[int, int, int]], batch: int, tokens: int, num_blocks: int
) -> None:
    requests = requests_of(shapes, kit)
    # A preempted request computes its answer again too, so a whole prompt is at most 30 + 8 tokens.
    policies: list[Policy] = [Alternating(batch, tokens), Chunked(batch, tokens, chunk_size=38)]
    runs = [kit.serve(policy, requests, kit.Executor(num_blocks=num_blocks)) for policy in policies]
    assert runs[0] == runs[1]


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 6), st.integers(1, 40), st.integers(1, 12), st.integers(12, 40))
def test_chunked_keeps_its_limits_and_alternates(
    kit: SimpleNamespace,
    shapes: list[tuple[int, int, int]],
    batch: int,
    tokens: int,
    chunk: int,
    num_blocks: int,
) -> None:
    policy = Chunked(batch, tokens, chunk)
    executor = kit.Executor(num_blocks=num_blocks)
    engine = kit.engine(policy, requests_of(shapes, kit), executor)
    log, queues = engine._log, engine.queues
    while True:
        before, decoding, begun = len(log), len(queues.decodes), list(queues.partial)
        if not engine.step():
            break
        if len(log) == before:
            continue
        sizes = [num for _, _, _, num in log.slices[-1]]
        assert all(size <= chunk for size in sizes)
        assert sum(sizes) <= tokens or len(sizes) == 1
        assert bool(sizes) != bool(log.num_decodes[-1]), "chunks and decodes in one step"
        if sizes:
            assert [i for i, *_ in log.slices[-1]][: len(begun)] == begun, "a begun prompt was passed over"
            if before and log.slices[-2]:
                # Unless all of them have yielded to an older prompt.
                assert decoding <= log.num_preempted[-1], "whoever decodes waited for two prefill steps"


def test_chunked_steps(kit: SimpleNamespace) -> None:
    requests = [kit.request(0, 2, 4), kit.request(1, 9, 2, 0.5), kit.request(2, 3, 1, 0.5)]
    run = kit.serve(Chunked(max_batched_tokens=6, chunk_size=4), requests)
    assert run.steps.slices == [
        ((0, 0, 0, 2),),
        (),
        ((1, 1, 0, 4),),
        (),
        ((1, 1, 4, 4),),
        (),
        ((1, 1, 8, 1), (2, 0, 0, 3)),
        (),
    ]
    assert run.steps.num_decodes == [0, 1, 0, 1, 0, 1, 0, 1]
    assert run.steps.slots_held == [1, 1, 2, 2, 2, 2, 2, 1]
    assert run.requests[1].first_scheduled_s == 2.0
    assert run.requests[1].token_times_s == [7.0, 8.0]


def test_a_chunk_over_the_step_budget_goes_alone(kit: SimpleNamespace) -> None:
    steps = kit.serve(Chunked(max_batched_tokens=3, chunk_size=5), [kit.request(i, 7, 1) for i in range(2)])
    assert [[num for *_, num in step] for step in steps.steps.slices] == [[5], [2], [5], [2]]


def test_time_between_chunks_is_prefill_and_decodes_stall_behind_chunks(kit: SimpleNamespace) -> None:
    run = kit.serve(Chunked(chunk_size=4), [kit.request(0, 2, 4), kit.request(1, 8, 1, 0.5)])
    where = summarize(run).where
    # Request 0: prefilled in [0, 1], decodes in [1, 2], [3, 4], [5, 6], and waits for a chunk in between.
    # Request 1: queued from 0.5 to 2, its two chunks with a decode step between them take [2, 5].
    assert (where.queue_s, where.prefill_s, where.decode_s, where.stalled_s) == (1.5, 4.0, 3.0, 2.0)


PARTIAL = {"chunked": lambda: Chunked(chunk_size=2)}


@pytest.mark.parametrize("name", PARTIAL)
def test_cancelled_in_mid_prompt_frees_everything_at_once(kit: SimpleNamespace, name: str) -> None:
    requests = [kit.request(0, 20, 4, cancel_at_s=2.5), kit.request(1, 20, 1, 0.5)]
    engine = kit.engine(PARTIAL[name](), requests, kit.Executor(num_blocks=6))
    run: RunRecord = engine.run()
    assert 0 < len(chunks_of(run.steps, 0)) < 10
    assert not run.requests[0].token_times_s
    assert run.requests[0].end_s == run.requests[1].first_scheduled_s == 3.0
    assert run.requests[1].output == kit.expected_output(requests[1])
    assert not engine.queues.partial and engine.queues.kv.num_used == 0


@pytest.mark.parametrize("name", PARTIAL)
def test_preempted_in_mid_prompt_begins_again_and_answers_the_same(kit: SimpleNamespace, name: str) -> None:
    # Fourteen blocks of 4: request 0 grows from 3 to 6 of them while request 1, with 9, is half computed.
    requests = [kit.request(0, 12, 12), kit.request(1, 36, 3, 6.5)]
    run = kit.serve(PARTIAL[name](), requests, kit.Executor(num_blocks=14))
    assert run.requests[0].num_preemptions == 0
    assert run.requests[1].num_preemptions == 1 and run.requests[0].end_s < run.requests[1].end_s
    starts = [start for start, _ in chunks_of(run.steps, 1)]
    again = starts.index(0, 1)
    assert again > 1 and starts[again:] == list(range(0, 36, 2))
    assert [record.output for record in run.requests] == [kit.expected_output(r) for r in requests]
    assert run.requests[1].first_scheduled_s == 7.0
