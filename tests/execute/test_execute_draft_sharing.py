"""A draft model that shares blocks proposes, and keeps, what one that computes everything anew does."""

from __future__ import annotations

import random
from collections.abc import Sequence as SequenceOf

import pytest
import torch
from test_execute_tokens import executor
from tiny_models import BLOCK_SIZE

from tunebatch.engine.blocks import BlockPool
from tunebatch.engine.clock import ReplayClock
from tunebatch.engine.engine import Engine
from tunebatch.engine.records import EndReason, RunRecord
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.engine.speculation.drafter import Wanted
from tunebatch.engine.speculation.speculator import Speculator
from tunebatch.engine.strategies import strategy
from tunebatch.execute.torch import same_tokens
from tunebatch.execute.torch.draft_model import DraftModel
from tunebatch.execute.torch.executor import TorchExecutor

POLICIES = {
    "continuous": {"max_batch_size": 5, "max_batched_tokens": 40},
    "mixed": {"max_batch_size": 5, "chunk_size": 9},
}


class Compared:
    """A draft model beside one that forgets all before each sequence that it drafts for."""

    def __init__(self, name: str, backend: str, num_blocks: int) -> None:
        self._draft = DraftModel(executor(name, backend, num_blocks))
        self._anew = DraftModel(executor(name, backend, num_blocks))
        self.waited = self.compared = 0

    @property
    def num_computed(self) -> int:
        return self._draft.num_computed

    @property
    def num_reused(self) -> int:
        return self._draft.num_reused

    def reset(self) -> None:
        self._draft.reset()

    def propose(self, wanted: SequenceOf[Wanted], generation: SequenceOf[int]) -> list[SequenceOf[int]]:
        proposed = self._draft.propose(wanted, generation)
        for one, drafts in zip(wanted, proposed, strict=True):
            if not drafts:
                self.waited += 1
                continue
            self._anew.reset()
            (want,) = self._anew.propose([one], generation)
            assert self._anew.num_reused == 0
            assert drafts == want, one[0]
            self._compare(one[0])
        return proposed

    def _compare(self, sequence: Sequence) -> None:
        num_tokens = len(sequence.request.prompt) + len(sequence.output)
        full = sequence.block_table[: num_tokens // BLOCK_SIZE]
        for layer, pools in self._anew.executor.cache.layers.items():
            for want, got in zip(pools, self._draft.executor.cache.layers[layer], strict=True):
                torch.testing.assert_close(got[full], want[full], rtol=1e-3, atol=1e-3)
        self.compared += len(full)


class AnyDepth:
    """Now so many drafts, now so many, and often none, so that the target is ahead of the draft."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def choose(self, batch: int) -> int:
        return self._draw.choice((0, 0, 0, 1, 3))

    def took(self, batch: int, depth: int, duration_s: float) -> None: ...

    def verified(self, depth: int, batch: int, accepted: list[int]) -> None: ...

    def table(self) -> list[tuple[int, int, int]]:
        return []


def traffic(draw: random.Random, num_requests: int) -> list[Request]:
    """Prompts that begin with parts of two trunks, which are more than the pool keeps for long."""
    trunks = [[draw.randrange(3, 99) for _ in range(24)] for _ in range(2)]
    return [
        Request(
            i,
            (*draw.choice(trunks)[: draw.randint(0, 24)], *(draw.randrange(3, 99) for _ in range(3))),
            max_tokens=draw.randint(1, 18),
            ignore_eos=True,
        )
        for i in range(num_requests)
    ]


def serve(served: TorchExecutor, compared: Compared, policy: str, seed: int) -> RunRecord:
    """A run in which clients hang up at any step."""
    draw = random.Random(seed)
    compared.reset()
    served.reset()
    engine = Engine(
        served,
        strategy(policy, POLICIES[policy]).make_policy(),
        same_tokens.AllAtOnce(traffic(draw, 14)),
        ReplayClock(),
        prefix_caching=True,
        speculator=Speculator(compared, AnyDepth(seed)),
    )
    while engine.step():
        engine.queues.check_integrity()
        here = [*engine.queues.running.values(), *engine.queues.waiting.values()]
        if here and draw.random() < 0.05:
            engine.queues.finish(draw.choice(here), EndReason.CANCELLED, 0.0)
    return engine.record()


@pytest.mark.parametrize(
    ("name", "backend", "runs"),
    [
        ("llama", "compiled", 12),
        ("llama", "reference", 2),
        ("gemma2", "packed", 2),
        ("mistral", "compiled", 2),
        ("gpt2", "packed", 2),
    ],
)
def test_drafts_and_their_cache_are_those_of_a_draft_that_shares_nothing(
    name: str, backend: str, runs: int
) -> None:
    # The longest sequence takes 11 blocks of the 16.
    served = executor(name, backend, num_blocks=16)
    compared = Compared(name, backend, num_blocks=16)
    preempted = cancelled = accepted = reused = 0
    for seed in range(runs):
        for policy in POLICIES:
            record = serve(served, compared, policy, seed)
            assert record.speculation is not None
            preempted += sum(request.num_preemptions for request in record.requests)
            cancelled += sum(request.end_reason is EndReason.CANCELLED for request in record.requests)
            accepted += sum(request.num_accepted for request in record.requests)
            reused += record.speculation.num_reused
    assert min(preempted, cancelled, accepted, reused, compared.compared) > 0


class Kit:
    """A draft model, and sequences that get their blocks by hand."""

    def __init__(self) -> None:
        self.draft = DraftModel(executor("llama", "compiled", 16))
        self.pool = BlockPool(16, BLOCK_SIZE)

    def sequence(self, slot: int, num_tokens: int, shared: SequenceOf[int] = ()) -> Sequence:
        """One that begins as all others do, with room for two drafts."""
        made = Sequence(Request(slot, tuple(range(3, 3 + num_tokens)), 20))
        for block in shared:
            self.pool.share(block)
        num_blocks = self.pool.blocks_for(num_tokens + 2) - len(shared)
        made.block_table, made.slot = [*shared, *self.pool.allocate(num_blocks)], slot
        return made

    def propose(self, *sequences: Sequence) -> tuple[int, int, list[SequenceOf[int]]]:
        """Tokens that were computed and reused for this, and the drafts."""
        draft = self.draft
        computed, reused = draft.num_computed, draft.num_reused
        drafts = draft.propose([(one, 2) for one in sequences], self.pool.generation)
        return draft.num_computed - computed, draft.num_reused - reused, drafts


def test_full_blocks_are_computed_once() -> None:
    kit = Kit()
    first = kit.sequence(0, 10)
    assert kit.propose(first)[:2] == (10, 0)
    assert kit.propose(kit.sequence(1, 13, first.block_table[:2]))[:2] == (5, 8)


def test_the_last_token_is_computed_even_where_its_block_is_full() -> None:
    kit = Kit()
    first = kit.sequence(0, 8)
    kit.propose(first)
    computed, reused, (drafts,) = kit.propose(kit.sequence(1, 8, first.block_table[:2]))
    assert (computed, reused) == (4, 4) and len(drafts) == 2


def test_a_block_that_was_given_to_other_tokens_is_computed() -> None:
    kit = Kit()
    first = kit.sequence(0, 10)
    kit.propose(first)
    kit.pool.release(first.block_table)
    again = kit.sequence(0, 10)
    assert set(again.block_table) == set(first.block_table)
    assert kit.propose(again)[:2] == (10, 0)


def test_a_block_that_the_target_filled_alone_is_computed() -> None:
    kit = Kit()
    undrafted = kit.sequence(0, 10)
    second = kit.sequence(1, 10, undrafted.block_table[:2])
    assert kit.propose(second)[:2] == (10, 0)
    # Now it is there for the first as well.
    assert kit.propose(undrafted)[:2] == (2, 8)


def test_who_follows_in_a_slot_fills_blocks_of_its_own() -> None:
    kit = Kit()
    first = kit.sequence(0, 12)
    kit.propose(first)
    kit.pool.release(first.block_table)
    follower = kit.sequence(0, 10)
    kit.propose(follower)
    assert kit.propose(kit.sequence(1, 10, follower.block_table[:2]))[:2] == (2, 8)


def test_rejected_drafts_fill_no_block() -> None:
    kit = Kit()
    first = kit.sequence(0, 10)
    _, _, (drafts,) = kit.propose(first)
    first.output += [drafts[0] + 1, 50]
    # The target has filled the third block by now, and the draft has written there: other tokens.
    after = kit.sequence(1, 10, first.block_table[:3])
    after.output += [*first.output, 51]
    assert kit.propose(after)[:2] == (5, 8)


def test_accepted_drafts_fill_blocks() -> None:
    kit = Kit()
    first = kit.sequence(0, 10)
    _, _, (drafts,) = kit.propose(first)
    first.output += [*drafts, 50]
    # Of two drafts one was computed, so that two tokens are missing.
    assert kit.propose(first)[:2] == (2, 0)
    after = kit.sequence(1, 10, first.block_table[:3])
    after.output += first.output
    assert kit.propose(after)[:2] == (1, 12)


def test_of_two_that_share_what_neither_has_one_waits_a_step() -> None:
    kit = Kit()
    first = kit.sequence(0, 10)
    second, apart = kit.sequence(1, 11, first.block_table[:2]), kit.sequence(2, 10)
    computed, reused, drafts = kit.propose(first, second, apart)
    assert (computed, reused) == (20, 0)
    assert [len(found) for found in drafts] == [2, 0, 2]
    assert kit.propose(second)[:2] == (3, 8)


def test_nothing_is_known_after_a_reset() -> None:
    kit = Kit()
    first = kit.sequence(0, 10)
    kit.propose(first)
    kit.draft.reset()
    assert (kit.draft.num_computed, kit.draft.num_reused) == (0, 0)
    assert kit.propose(kit.sequence(1, 10, first.block_table[:2]))[:2] == (10, 0)
