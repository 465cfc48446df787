"""Acceptances that are drawn hang on request and position, and on nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import VirtualClock
from tunebatch.engine.plan import StepOutput, StepPlan
from tunebatch.engine.records import RequestRecord
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.engine.speculation.acceptance import AlwaysDrafts, SyntheticAcceptance
from tunebatch.engine.speculation.ngram import NGram
from tunebatch.engine.strategies import STRATEGIES, strategy


def test_none_all_and_the_last_rate_for_all_further_drafts() -> None:
    assert {SyntheticAcceptance((0.0,)).num_accepted(i, 9, 5) for i in range(50)} == {0}
    assert {SyntheticAcceptance((1.0,)).num_accepted(i, 9, 5) for i in range(50)} == {5}
    assert {SyntheticAcceptance((1.0, 1.0, 0.0)).num_accepted(i, 9, 5) for i in range(50)} == {2}
    assert SyntheticAcceptance((1.0,)).num_accepted(1, 9, 0) == 0


def test_each_further_draft_is_accepted_at_its_own_rate() -> None:
    drawn = SyntheticAcceptance((0.8, 0.5), seed=3)
    counts = [drawn.num_accepted(i, 10 * j, 3) for i in range(80) for j in range(80)]
    reached, shares = len(counts), []
    for place in range(3):
        accepted = sum(count > place for count in counts)
        shares.append(accepted / reached)
        reached = accepted
    assert shares == pytest.approx([0.8, 0.5, 0.5], abs=0.03)


def test_a_draw_hangs_on_seed_request_and_position() -> None:
    def row(seed: int, request: int) -> list[int]:
        drawn = SyntheticAcceptance((0.5,), seed)
        return [drawn.num_accepted(request, position, 1) for position in range(64)]

    assert row(1, 7) == row(1, 7)
    assert len({tuple(row(seed, request)) for seed in range(4) for request in range(4)}) == 16
    # What a longer row of drafts says of a position, a shorter one that begins there says too.
    drawn = SyntheticAcceptance((0.5,))
    for position in range(64):
        if drawn.num_accepted(7, position, 2) == 2:
            assert drawn.num_accepted(7, position + 1, 1) == 1


def test_where_nothing_is_found_drafts_are_tokens_of_the_prompt() -> None:
    fresh, repeating = (
        Sequence(Request(i, prompt, 9)) for i, prompt in enumerate([(1, 2, 3), (4, 5, 6, 4, 5)])
    )
    fresh.output.append(8)
    drafts = AlwaysDrafts(NGram()).propose([(fresh, 4), (repeating, 2)])
    assert [list(one) for one in drafts] == [[2, 3, 1, 2], [6, 4]]


class Obedient:
    """Accepts as many drafts as the plan says; what it says itself is its own step's number."""

    block_size, num_blocks, max_slots, max_context = 4, 64, 8, 64
    eos_token_ids: frozenset[int] = frozenset()
    drafter = None

    def __init__(self) -> None:
        self.step = 1000

    def execute(self, plan: StepPlan) -> StepOutput:
        self.step += 1
        tokens = [
            [*piece.draft_tokens[: piece.num_accepted or 0], self.step] if piece.sample else []
            for piece in plan.slices
        ]
        assert all((piece.num_accepted is not None) == bool(piece.draft_tokens) for piece in plan.slices)
        return StepOutput(tokens, [self.step] * plan.num_decodes or None, 1.0)

    def reset(self) -> None: ...


def served(name: str, acceptance: SyntheticAcceptance | None, knobs: dict[str, float]) -> Any:
    class Source:
        def __init__(self) -> None:
            self.left = [Request(i, tuple(range(1, 6 + i)), 20, ignore_eos=True) for i in range(6)]

        def next_arrival_s(self) -> float | None:
            return 0.0 if self.left else None

        def take(self, now_s: float) -> list[Request]:
            taken, self.left = self.left, []
            return taken

        def finished(self, record: RequestRecord, now_s: float) -> None: ...

    chosen = strategy(name, {"num_drafts": 3, **knobs})
    engine = engine_for(chosen, Obedient(), Source(), VirtualClock(), acceptance=acceptance)
    while engine.step():
        engine.queues.check_integrity()
    return engine.record()


def test_every_strategy_sees_the_same_acceptances() -> None:
    seen = set()
    for name in STRATEGIES:
        batches: list[dict[str, float]] = (
            [{}] if name == "sequential" else [{"max_batch_size": n} for n in (2, 5)]
        )
        for knobs in batches:
            run = served(f"{name}+ngram", SyntheticAcceptance((0.7, 0.4), seed=5), knobs)
            assert [len(one.output) for one in run.requests] == [20] * 6
            assert run.speculation.synthetic_acceptance == [0.7, 0.4]
            seen.add(
                tuple((one.num_drafted, one.num_accepted, one.num_verifications) for one in run.requests)
            )
    assert len(seen) == 1
    assert len(set(seen.pop())) > 1, "all requests met the same luck"


def test_without_it_the_plan_leaves_acceptance_to_the_executor() -> None:
    run = served("continuous+ngram", None, {})
    assert run.speculation.synthetic_acceptance == [] and run.speculation.num_decodes > 0
