"""Mixed steps: every step computes a token of whoever decodes and, with them, parts of prompts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from tunebatch.engine.limits import NO_LIMITS, LatencyLimits
from tunebatch.engine.plan import StepPlan
from tunebatch.engine.policies.base import StepTaken
from tunebatch.engine.policies.budget import AutoBudget, FixedBudget
from tunebatch.engine.queues import Queues
from tunebatch.engine.sequence import Sequence

_MOST_PASSED = 64  # waiting long prompts that a step looks past for short ones


class Mixed:
    """Fused steps within a token budget (Dynamic SplitFuse of DeepSpeed-FastGen, 2024; Sarathi-Serve's
    stall-free batching, OSDI 2024).

    All running decodes go first and are never left out. Prompts that have begun take what they leave of
    the budget, then new ones are admitted into the rest, oldest first. A request starts only where it gets
    a token, and a step adds no more decodes than prompts end in it: so a prompt that has begun gets a token
    in every step, and decodes that take the whole budget keep out new requests only.

    With ``max_partial_prefills`` above 1 long prompts do not keep short ones waiting, see `add_prompts`.

    Args:
        max_batch_size: Most sequences that run at once.
        chunk_size: Most tokens per step, decodes included; so no more than this many sequences run. 0: as
            many as the run's own steps say, see `AutoBudget`.
        max_partial_prefills: Most prompts that may be left half computed by a step; above 1, one place of
            them is never a long prompt's.
        limits: Of the SLO, which an automatic ``chunk_size`` keeps to.
    """

    holds_slots = False

    def __init__(
        self,
        max_batch_size: int = 32,
        chunk_size: int = 512,
        max_partial_prefills: int = 2,
        limits: LatencyLimits = NO_LIMITS,
    ) -> None:
        self.max_batch_size = max_batch_size
        self._budget = FixedBudget(chunk_size) if chunk_size else AutoBudget(limits.tpot_s)
        self._max_partial = max_partial_prefills

    def plan(self, now: float, queues: Queues) -> StepPlan | float | None:
        plan = queues.decode(StepPlan(), now)
        tokens = self._budget.prompt_tokens(plan, queues)
        add_prompts(plan, queues, tokens, self._max_partial, lambda prompt: queues.admit(now, prompt))
        return plan or None

    def took(self, step: StepTaken) -> None:
        self._budget.took(step)


def add_prompts(
    plan: StepPlan, queues: Queues, budget: int, max_partial: int, admit: Callable[[Sequence], bool]
) -> None:
    """Fill a step with parts of prompts.

    A prompt is long where it has more tokens to compute than the whole budget. With ``max_partial`` above 1
    short prompts pass long ones, as with vLLM's ``max_num_partial_prefills`` and
    ``max_long_partial_prefills``:

    * At most ``max_partial - 1`` long prompts are computed at a time; while they are, those that wait for
      a place are passed by short ones. With 1 nobody is passed: order of arrival.
    * No long prompt starves: in every step each that has begun gets an equal share at least, the budget
      over ``max_partial``, and the oldest gets what the short ones leave. So it ends after a bounded number
      of steps, and the oldest that waits has its place; from then on, if it needs a slot or blocks, nobody
      passes it.
    * Short ones keep their order among themselves, and so do long ones.

    Args:
        budget: Most prompt tokens; at least one for each prompt that has begun, or 0 where none has.
        max_partial: Most prompts that may be left half computed.
        admit: Starts a waiting request, or says that it has to wait.
    """
    share = max(budget // max_partial, 1)
    sizes = {prompt: min(prompt.num_uncomputed, share) for prompt in queues.partial.values()}
    room = budget - sum(sizes.values())
    for prompt in sizes:
        if prompt.num_tokens <= budget:
            room -= _give(sizes, prompt, room)
    # Long prompts that end in this step may leave some of the budget, and do leave their places: so twice.
    for _ in range(2):
        room = _begin(sizes, room, queues, budget, max_partial, admit)
        for prompt in sizes:
            room -= _give(sizes, prompt, room)
    plan.slices += [queues.chunk(prompt, size) for prompt, size in sizes.items()]


def _begin(
    sizes: dict[Sequence, int],
    room: int,
    queues: Queues,
    budget: int,
    max_partial: int,
    admit: Callable[[Sequence], bool],
) -> int:
    """Admit prompts: short ones whole, as long as there is room, long ones with their share; returns the room
    that is left."""
    cut = [prompt for prompt, size in sizes.items() if size < prompt.num_uncomputed]
    num_cut, num_long = len(cut), sum(prompt.num_tokens > budget for prompt in cut)
    num_passed = 0
    while room > 0 and (prompt := _waiting_behind(queues, num_passed)) is not None:
        wanted = queues.num_to_compute(prompt)
        is_long = wanted > budget
        if is_long and num_long >= max(max_partial - 1, 1):
            num_passed += 1
            continue
        if (wanted > room and num_cut >= max_partial) or not admit(prompt):
            break
        num_cut += is_long
        num_long += is_long
        room -= _give(sizes, prompt, min(room, max(budget // max_partial, 1)) if is_long else room)
    return room


def _waiting_behind(queues: Queues, num_passed: int) -> Sequence | None:
    """The oldest waiting request but for some, if these are not too many to look past in every step."""
    if num_passed > _MOST_PASSED:
        return None
    return next(islice(queues.waiting.values(), num_passed, None), None)


def _give(sizes: dict[Sequence, int], prompt: Sequence, most: int) -> int:
    """Add to a prompt's part what is left of it, or as much as may be; returns how much."""
    size = sizes.get(prompt, 0)
    more = min(prompt.num_uncomputed - size, most)
    sizes[prompt] = size + more
    return more
