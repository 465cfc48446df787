"""Prompts that are computed in parts: what a step may carry, who goes first, what an interruption costs."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebatch.engine.plan import StepPlan
from tunebatch.engine.policies.base import Policy
from tunebatch.engine.policies.chunked import Chunked
from tunebatch.engine.policies.continuous import Continuous
from tunebatch.engine.policies.mixed import Mixed
from tunebatch.engine.queues import Queues
from tunebatch.engine.records import RunRecord, StepLog
from tunebatch.engine.request import Request
from tunebatch.engine.strategies import strategy
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


@settings(max_examples=80, deadline=None)
@given(SHAPES, st.integers(1, 6), st.integers(1, 12), st.integers(1, 4), st.integers(12, 40))
def test_mixed_keeps_its_limits_and_fills_its_budget(
    kit: SimpleNamespace,
    shapes: list[tuple[int, int, int]],
    batch: int,
    budget: int,
    max_partial: int,
    num_blocks: int,
) -> None:
    executor = kit.Executor(num_blocks=num_blocks)
    requests = requests_of(shapes, kit)
    engine = kit.engine(Mixed(batch, budget, max_partial), requests, executor)
    log, queues = engine._log, engine.queues
    while True:
        before, decoding = len(log), len(queues.decodes)
        queued = {i: sequence.num_tokens for i, sequence in queues.waiting.items()}
        ran = set(queues.running)
        wanted = {i: sequence.num_uncomputed for i, sequence in queues.partial.items()}
        if not engine.step():
            break
        if len(log) == before:
            continue
        sizes = {i: num for i, _, _, num in log.slices[-1]}
        left = budget - log.num_decodes[-1]
        for request in requests:
            if request.id not in ran and request.arrival_s <= log.start_s[-1]:
                queued.setdefault(request.id, len(request.prompt))
        order = [*(i for i in queues.waiting if i in ran), *queued]
        admitted = [i for i, _, start, _ in log.slices[-1] if start == 0 and i in queued]
        for joined in admitted:
            passed = [i for i in order[: order.index(joined)] if i in queues.waiting]
            assert not passed or max_partial > 1, "overtaking"
            assert not passed or queued[joined] <= left, "a long prompt passed another"
            assert all(queues.waiting[i].num_tokens > left for i in passed), "a short prompt was passed"
        longs = [i for i, sequence in queues.partial.items() if sequence.num_tokens > left]
        if set(longs) & set(admitted):
            assert len(longs) <= max(max_partial - 1, 1), "no place was kept for short prompts"
        if not log.num_preempted[-1]:
            assert log.num_decodes[-1] == decoding, "a decode was left out"
        assert sum(sizes.values()) <= left
        assert len(queues.partial) <= max_partial
        if not log.num_preempted[-1]:
            assert set(wanted) <= set(sizes), "a begun prompt got nothing"
            fair = left // max(max_partial, len(wanted))
            assert all(sizes.get(i, 0) >= min(want, fair) for i, want in wanted.items()), "unfair"
            share = max(left // max_partial, 1)
            late = [i for i in longs if i in wanted][1:]
            assert all(sizes[i] <= share for i in late), "the oldest long prompt does not get the rest"
        if queues.partial and left > 0:
            assert sum(sizes.values()) == left, "some budget was left unused before a prompt"


def test_mixed_steps(kit: SimpleNamespace) -> None:
    requests = [kit.request(0, 2, 5), kit.request(1, 8, 2, 0.5), kit.request(2, 5, 1, 0.5)]
    steps = kit.serve(Mixed(chunk_size=5), requests).steps
    assert steps.slices == [
        ((0, 0, 0, 2),),
        ((1, 1, 0, 4),),
        ((1, 1, 4, 4),),
        ((2, 2, 0, 3),),
        ((2, 2, 3, 2),),
    ]
    assert steps.num_decodes == [0, 1, 1, 2, 1]


def test_mixed_admits_into_what_is_left(kit: SimpleNamespace) -> None:
    run = kit.serve(Mixed(chunk_size=10), [kit.request(i, 4, 1) for i in range(4)])
    assert [[num for *_, num in step] for step in run.steps.slices] == [[4, 4, 2], [2, 4]]


@pytest.mark.parametrize(("max_partial", "done_s"), [(1, 11.0), (2, 2.0)])
def test_short_prompts_pass_a_long_one_only_where_two_may_be_partial(
    kit: SimpleNamespace, max_partial: int, done_s: float
) -> None:
    requests = [kit.request(0, 100, 1), *(kit.request(i, 2, 1, 0.5) for i in (1, 2))]
    run = kit.serve(Mixed(chunk_size=10, max_partial_prefills=max_partial), requests)
    assert [run.requests[i].token_times_s[0] for i in (1, 2)] == [done_s, done_s]
    sizes = [num for _, num in chunks_of(run.steps, 0)]
    assert sizes == [10] * 10 if max_partial == 1 else [10, 6, *[10] * 8, 4]


@pytest.mark.parametrize("max_partial", [2, 3, 4])
@pytest.mark.parametrize("num_long", [1, 2, 5])
@pytest.mark.parametrize("name", ["mixed", "adaptive"])
def test_however_many_long_prompts_come_first_a_short_one_is_not_kept_waiting(
    kit: SimpleNamespace, name: str, num_long: int, max_partial: int
) -> None:
    # More than any step's budget, be it one of the first that an automatic one tries.
    requests = [kit.request(i, 2000, 2) for i in range(num_long)]
    requests += [kit.request(i, 8, 2, float(i - num_long) + 0.5) for i in range(num_long, num_long + 8)]
    knobs = {"max_partial_prefills": max_partial, "max_batch_size": 16}
    knobs |= {"min_batch_size": 16} if name == "adaptive" else {}
    policy = strategy(name, knobs).make_policy()
    run = kit.serve(policy, requests, kit.Executor(num_blocks=3000))
    firsts = [record.token_times_s[0] - record.arrival_s for record in run.requests[num_long:]]
    assert firsts == [1.5] * 8
    longs = [record.token_times_s[0] for record in run.requests[:num_long]]
    assert longs == sorted(longs)


def test_long_prompts_share_and_the_oldest_gets_the_rest(kit: SimpleNamespace) -> None:
    requests = [kit.request(0, 40, 1), kit.request(1, 21, 1), kit.request(2, 30, 1), kit.request(3, 2, 1)]
    run = kit.serve(Mixed(chunk_size=10, max_partial_prefills=3), requests)
    assert [num for _, num in chunks_of(run.steps, 0)] == [5, 7, 7, 7, 7, 7]
    assert [num for _, num in chunks_of(run.steps, 1)] == [3] * 7
    assert run.requests[2].first_scheduled_s == 6.0
    assert run.requests[3].token_times_s == [1.0]


def test_a_long_prompt_that_ends_leaves_its_place_in_the_same_step(kit: SimpleNamespace) -> None:
    requests = [kit.request(i, prompt, 1) for i, prompt in enumerate((18, 15, 13))]
    steps = kit.serve(Mixed(chunk_size=10, max_partial_prefills=2), requests).steps
    assert steps.slices == [
        ((0, 0, 0, 10),),
        ((0, 0, 10, 8), (1, 1, 0, 2)),
        ((1, 1, 2, 10),),
        ((1, 1, 12, 3), (2, 0, 0, 7)),
        ((2, 0, 7, 6),),
    ]


def test_a_prompt_that_decodes_make_long_takes_no_third_place(kit: SimpleNamespace) -> None:
    """Request 2 begins when it fits into a step; a decode later it does not, and two prompts are cut."""
    requests = [kit.request(0, 99, 1), kit.request(1, 1, 9), kit.request(2, 12, 1), kit.request(3, 2, 1, 0.5)]
    run = kit.serve(Mixed(chunk_size=12, max_partial_prefills=2), requests)
    assert [num for _, num in chunks_of(run.steps, 2)] == [5, 5, 2]
    assert run.requests[3].first_scheduled_s == 2.0


@pytest.mark.parametrize("max_partial", [1, 2, 3, 4])
@pytest.mark.parametrize("num_blocks", [20, 32, 200])
def test_endless_short_prompts_starve_no_long_one(
    kit: SimpleNamespace, max_partial: int, num_blocks: int
) -> None:
    """Nor of a place, nor of slots, nor of blocks: a long one takes 16 of these."""
    requests = [kit.request(i, 60, 4, 10.0) for i in range(3)]
    requests += [kit.request(i, 5, 6, i / 2) for i in range(3, 800)]
    policy = Mixed(8, chunk_size=12, max_partial_prefills=max_partial)
    run = kit.serve(policy, requests, kit.Executor(num_blocks=num_blocks))
    firsts = [run.requests[i].token_times_s[0] for i in range(3)]
    begins = [run.requests[i].first_scheduled_s for i in range(3)]
    assert begins == sorted(begins)
    # Those that came before have ended after 40 steps; then at least the share of what eight decodes leave.
    assert firsts[0] <= 50.0 + 60 / (4 // max_partial)
    assert firsts[2] <= 50.0 + 3 * (60 / (4 // max_partial) + 6)
    assert run.requests[-1].first_scheduled_s > firsts[2] + 100, "the stream of short ones has dried up"


def test_prompts_go_on_when_decodes_that_took_the_whole_budget_end(kit: SimpleNamespace) -> None:
    requests = [*(kit.request(i, 1, 6) for i in range(4)), kit.request(4, 3, 1, 0.5)]
    run = kit.serve(Mixed(chunk_size=4), requests)
    assert run.requests[4].first_scheduled_s == run.requests[0].end_s == 6.0
    assert run.requests[4].end_s == 7.0


def test_a_decode_in_a_mixed_step_is_not_stalled(kit: SimpleNamespace) -> None:
    run = kit.serve(Mixed(chunk_size=4), [kit.request(0, 2, 5), kit.request(1, 7, 1, 0.5)])
    summary = summarize(run)
    # Request 1 is queued from 0.5 to 1, then prefilled with 3, 3 and 1 tokens beside request 0's decodes.
    where = summary.where
    assert (where.queue_s, where.prefill_s, where.decode_s, where.stalled_s) == (0.5, 4.0, 4.0, 0.0)
    assert summary.bubble == 0.0


PARTIAL: dict[str, Callable[[], Policy]] = {
    "chunked": lambda: Chunked(chunk_size=2),
    "mixed": lambda: Mixed(chunk_size=3),
    "mixed, two partial": lambda: Mixed(chunk_size=3, max_partial_prefills=2),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_cancelled_in_mid_prompt_frees_everything_at_once(kit: SimpleNamespace, name: str) -> None:
    requests = [kit.request(0, 20, 4, cancel_at_s=2.5), kit.request(1, 20, 1, 0.5)]
    engine = kit.engine(PARTIAL[name](), requests, kit.Executor(num_blocks=6))
    run: RunRecord = engine.run()
    assert sum(num for _, num in chunks_of(run.steps, 0)) in (6, 9)
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
    chunks = chunks_of(run.steps, 1)
    again = [start for start, _ in chunks].index(0, 1)
    assert again > 1 and sum(num for _, num in chunks[again:]) == 36
    assert [record.output for record in run.requests] == [kit.expected_output(r) for r in requests]
    assert run.requests[1].first_scheduled_s == 7.0


@pytest.mark.parametrize("name", ["chunked", "mixed, two partial"])
def test_whoever_decodes_yields_to_an_older_prompt_and_is_counted(kit: SimpleNamespace, name: str) -> None:
    # Ten blocks of 4: nine for the long prompt, one for request 1, which needs another for its fifth token.
    requests = [kit.request(0, 36, 1), kit.request(1, 3, 4)]
    run = kit.serve(PARTIAL[name](), requests, kit.Executor(num_blocks=10))
    assert [record.num_preemptions for record in run.requests] == [0, 1]
    assert sum(run.steps.num_preempted) == 1
    assert run.requests[1].end_s > run.requests[0].end_s
    assert [record.output for record in run.requests] == [kit.expected_output(r) for r in requests]
