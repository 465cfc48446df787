"""Mixed steps: every step computes a token of whoever decodes and, with them, parts of prompts."""

from __future__ import annotations

from collections.abc import Callable

from tunebatch.engine.limits import NO_LIMITS, LatencyLimits
from tunebatch.engine.plan import Slice, StepPlan
from tunebatch.engine.policies.base import StepTaken
from tunebatch.engine.policies.budget import AutoBudget, FixedBudget
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
        chunk_size: Most tokens per step, decodes included; so no more than this many sequences run. 0: as
            many as the run's own steps say, see `AutoBudget`.
        max_partial_prefills: Most prompts that may be left half computed by a step.
        limits: Of the SLO, which an automatic ``chunk_size`` keeps to.
    """

    holds_slots = False

    def __init__(
        self,
        max_batch_size: int = 32,
        chunk_size: int = 512,
        max_partial_prefills: int = 1,
        limits: LatencyLimits = NO_LIMITS,
    ) -> None:
        self.max_batch_size = max_batch_size
        self._budget = FixedBudget(chunk_size) if chunk_size else AutoBudget(limits.tpot_s)
        self._max_partial = max_partial_prefills

    def plan(self, now: float, queues: Queues) -> StepPlan | float | None:
        plan = queues.decode(StepPlan(), now)
        tokens = self._budget.prompt_tokens(plan, queues)
        add_prompts(plan, queues, tokens, self._max_partial, lambda: queues.admit(now))
        return plan or None

    def took(self, step: StepTaken) -> None:
        self._budget.took(step)


def add_prompts(
    plan: StepPlan, queues: Queues, num_tokens: int, max_partial: int, admit: Callable[[], bool]
) -> None:
    """Fill a step with parts of prompts.

    Args:
        num_tokens: Most prompt tokens; at least one for each prompt that has begun, or 0 where none has.
        max_partial: Most prompts that may be left half computed.
        admit: Starts the oldest waiting request, or says that it has to wait.
    """
    # Prompts that leave some of the budget are computed, so that others can have their places.
    while num_tokens > 0 and (prompts := _prompts(queues, num_tokens, max_partial, admit)):
        slices = _shared(prompts, queues, num_tokens)
        plan.slices += slices
        num_tokens -= sum(piece.num_tokens for piece in slices)


def _prompts(queues: Queues, budget: int, max_partial: int, admit: Callable[[], bool]) -> list[Sequence]:
    """Those that have begun and, oldest first, as many more as cannot take from their shares."""
    share = max(budget // max_partial, 1)
    prompts = list(queues.partial.values())
    room = budget - sum(min(sequence.num_uncomputed, share) for sequence in prompts)
    num_cut = sum(sequence.num_uncomputed > share for sequence in prompts)
    while (oldest := queues.oldest_waiting) is not None:
        wanted = queues.num_to_compute(oldest)
        room -= min(wanted, share)
        num_cut += wanted > share
        if room < 0 or num_cut > max_partial or not admit():
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
