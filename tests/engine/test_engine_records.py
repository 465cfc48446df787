"""What the records say of preemptions and of verified drafts."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

from tunebatch.engine.plan import Slice, StepOutput, StepPlan
from tunebatch.engine.policies.chunked import Chunked
from tunebatch.engine.policies.continuous import Continuous
from tunebatch.engine.queues import Queues
from tunebatch.engine.records import RunRecord


def test_a_preempted_decode_has_its_tokens_again_when_the_next_one_comes(kit: SimpleNamespace) -> None:
    # Five blocks of 4 for two sequences that grow to three each.
    requests = [kit.request(0, 4, 8), kit.request(1, 4, 8)]
    run = kit.serve(Continuous(), requests, kit.Executor(num_blocks=5))
    assert not run.requests[0].preempted_at_s and not run.requests[0].recomputed_at_s
    record = run.requests[1]
    assert (record.preempted_at_s, record.recomputed_at_s) == ([5.0], [9.0])
    # Five tokens before, and the sixth with the step that computes what was lost.
    assert record.token_times_s[4:6] == [5.0, 9.0]


def test_a_prompt_preempted_midway_is_where_it_was_before_its_first_token(kit: SimpleNamespace) -> None:
    requests = [kit.request(0, 12, 12), kit.request(1, 36, 3, 6.5)]
    run = kit.serve(Chunked(max_batch_size=4, chunk_size=3), requests, kit.Executor(num_blocks=14))
    record = run.requests[1]
    (preempted_s,), (recomputed_s,) = record.preempted_at_s, record.recomputed_at_s
    had = max(num for end_s, num in ends(run, 1) if end_s <= preempted_s)
    assert recomputed_s == min(end_s for end_s, num in ends(run, 1) if end_s > preempted_s and num >= had)
    assert preempted_s < recomputed_s < record.token_times_s[0]


def test_a_preemption_during_a_recomputation_begins_it_anew(kit: SimpleNamespace) -> None:
    requests = [kit.request(i, 9, 14, 1.5 * i) for i in range(6)]
    run = kit.serve(Chunked(max_batch_size=6, chunk_size=3), requests, kit.Executor(num_blocks=12))
    again = 0
    for record in run.requests:
        assert len(record.preempted_at_s) == len(record.recomputed_at_s) == record.num_preemptions
        pairs = list(zip(record.preempted_at_s, record.recomputed_at_s, strict=True))
        assert all(preempted_s < recomputed_s for preempted_s, recomputed_s in pairs)
        assert all(one[1] <= two[0] for one, two in pairwise(pairs))
        for one, two in pairwise(pairs):
            if one[1] == two[0]:
                again += 1
                chunks = ends(run, record.id)
                had = max(num for end_s, num in chunks if end_s <= one[0])
                if record.token_times_s[0] <= one[0]:
                    had += sum(time <= one[0] for time in record.token_times_s) - 1
                assert two[1] == min(end_s for end_s, num in chunks if end_s > two[0] and num >= had)
    assert again == 1


def ends(run: RunRecord, request_id: int) -> list[tuple[float, int]]:
    """When each slice of a request was computed, and how many of its tokens then were."""
    steps = run.steps
    return [
        (start_s + duration_s, start + num_tokens)
        for start_s, duration_s, slices in zip(steps.start_s, steps.duration_s, steps.slices, strict=True)
        for i, _, start, num_tokens in slices
        if i == request_id
    ]


class VerifiesOnce:
    """A prompt, then one step that verifies three drafts, of which the executor below accepts one."""

    max_batch_size, holds_slots = 1, False

    def plan(self, now: float, queues: Queues) -> StepPlan | float | None:
        if slices := queues.prefill(now, 1, 100):
            return StepPlan(slices)
        if not queues.decodes:
            return None
        (sequence,) = queues.decodes.members
        queues.decodes.leave(sequence)
        return StepPlan([Slice(sequence, sequence.num_computed, 4, draft_tokens=(1, 2, 3))])


class AcceptsOne:
    num_blocks, block_size, max_slots, max_context, eos_token_ids = 8, 4, 4, 64, frozenset()

    def execute(self, plan: StepPlan) -> StepOutput:
        return StepOutput([[1, 7] if piece.draft_tokens else [5] for piece in plan.slices], None, 1.0)


def test_a_verification_is_logged_with_what_was_rejected(kit: SimpleNamespace) -> None:
    steps = kit.serve(VerifiesOnce(), [kit.request(4, 3, 3)], AcceptsOne()).steps
    assert steps.verifications == [(), ((4, 0, 3, 2),)]
    assert steps.slices == [((4, 0, 0, 3),), ()]
    assert (steps.num_draft_tokens, steps.num_rejected) == ([0, 3], [0, 2])
    assert (steps.num_prefills, steps.num_prefill_tokens, steps.slots_active) == ([1, 0], [3, 0], [1, 1])
