"""Mixed steps: every step computes a token of whoever decodes and, with them, parts of prompts."""

from __future__ import annotations

from tunebatch.engine.plan import Slice, StepPlan
from tunebatch.engine.queues import Queues
from tunebatch.engine.sequence import Sequence


class Mixed:
    """Fused steps within a token budget (Dynamic SplitFuse of DeepSpeed-FastGen, 2024; Sarathi-Serve's
    stall-free batching, OSDI 2024).

    All running decodes go first and are never left out. Prompts that have begun take what they leave of
    the budget, oldest first, then new ones are admitted into the rest. A request starts only where it gets
    a token, and a step adds no more decodes than prompts end in it: so a prompt that has begun gets a token
    in every step, and decodes that take the whole budget keep out new requests only.

    With ``max_partial_prefills`` above 1, a prompt's equal share of what the decodes leave is kept for each
    that may be cut, as vLLM's concurrent partial prefills do: a request joins where it fits between those
    shares. The tokens are then shared max-min fairly: equally, except that what a prompt does not need goes
    to the longer ones.

    Args:
        max_batch_size: Most sequences that run at once.
        chunk_size: Most tokens per step, decodes included; so no more than this many sequences run.
        max_partial_prefills: Most prompts that may be left half computed by a step.
    """

    holds_slots = False

    def __init__(
        self, max_batch_size: int = 32, chunk_size: int = 512, max_partial_prefills: int = 1
    ) -> None:
        self.max_batch_size = max_batch_size
        self._token_budget = chunk_size
        self._max_partial = max_partial_prefills

    def plan(self, now: float, queues: Queues) -> StepPlan | float | None:
        plan = queues.decode(StepPlan(), now)
        # Drafts may leave less than the decodes alone, but a prompt that has begun always gets on.
        budget = max(self._token_budget - plan.num_decodes - plan.num_slice_tokens, len(queues.partial))
        # Prompts that leave some of the budget are computed, so that others can have their places.
        while budget > 0 and (prompts := self._prompts(now, queues, budget)):
            slices = _shared(prompts, queues, budget)
            plan.slices += slices
            budget -= sum(piece.num_tokens for piece in slices)
        return plan or None

    def _prompts(self, now: float, queues: Queues, budget: int) -> list[Sequence]:
        """Those that have begun and, oldest first, as many more as cannot take from their shares."""
        share = max(budget // self._max_partial, 1)
        prompts = list(queues.partial.values())
        room = budget - sum(min(sequence.num_uncomputed, share) for sequence in prompts)
        num_cut = sum(sequence.num_uncomputed > share for sequence in prompts)
        while (oldest := queues.oldest_waiting) is not None:
            wanted = queues.num_to_compute(oldest)
            room -= min(wanted, share)
            num_cut += wanted > share
            if room < 0 or num_cut > self._max_partial or not queues.admit(now):
                break
            prompts.append(oldest)
        return prompts


def _shared(prompts: list[Sequence], queues: Queues, budget: int) -> list[Slice]:
    """Equal shares of the budget, shortest first, so that what one leaves is there for the longer ones."""
    slices: list[Slice] = []
    for taken, sequence in enumerate(sorted(prompts, key=lambda prompt: prompt.num_uncomputed)):
        share = min(sequence.num_uncomputed, budget // (len(prompts) - taken))
        slices.append(queues.chunk(sequence, share))
        budget -= share
    return slices
