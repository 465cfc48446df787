"""How many prompt tokens a mixed step may carry."""

from __future__ import annotations

from tunebatch.engine.plan import StepPlan
from tunebatch.engine.policies.base import StepTaken
from tunebatch.engine.queues import Queues
from tunebatch.engine.step_cost import StepCost

_SHARE_OF_LIMIT = 0.9  # of the limit on the TPOT that a step is planned to take
_FIXED_SHARE = 0.15  # of a step's cost that may be paid whatever it computes
_WEIGHT = 1.0 / 32.0  # of the last step in what a decode gives
_LEAST_TOKENS, _MOST_TOKENS = 16, 8192
# The first steps with prompts differ in size, so that they tell the fixed cost from that of a token.
_TRIALS = (256, 128, 64, 192, 96, 256, 48, 160)


class FixedBudget:
    """As many as decodes and drafts leave of a step of ``step_tokens``; at least one for each prompt that has
    begun, as drafts may leave less than the decodes alone."""

    def __init__(self, step_tokens: int) -> None:
        self._step_tokens = step_tokens

    def prompt_tokens(self, plan: StepPlan, queues: Queues) -> int:
        return max(self._step_tokens - plan.num_decodes - plan.num_slice_tokens, len(queues.partial))

    def took(self, step: StepTaken) -> None:
        pass


class AutoBudget:
    """As many as the run's own steps say; the dynamic part of Dynamic SplitFuse, which keeps each step at the
    size where the device's throughput levels off (DeepSpeed-FastGen, 2024).

    With a limit on the TPOT, whoever decodes waits for the whole step between two tokens (or, with drafts,
    between what two steps give): the prompt tokens are those that fit between the step's decodes, as
    predicted by `StepCost`, and a share of the limit. That is the rule by which Sarathi-Serve (OSDI 2024,
    section 4.3) chooses its budget, but step by step.

    Without one it is the balance point: more prompt tokens amortise what a step costs whatever it computes,
    but stall the decodes. With ``n`` tokens a step computes ``n / (a + n d)`` of them a second, so the fixed
    cost ``a`` is down to 15 % of it, and 85 % of the rate that ever longer steps tend to is reached, at
    ``n = (1 / 0.15 - 1) a / d``.

    A budget at most doubles or halves from one step to the next, so that a fit that is wrong is corrected by
    the steps on the way. It never falls under 16 tokens, so a prompt always makes progress.

    Args:
        tpot_limit_s: Limit on the TPOT; None: the balance point.
        share: Of that limit that a step is planned to take.
    """

    def __init__(self, tpot_limit_s: float | None, share: float = _SHARE_OF_LIMIT) -> None:
        self._target_s = None if tpot_limit_s is None else share * tpot_limit_s
        self._cost = StepCost()
        self._tokens_per_decode = 1.0  # more with accepted drafts
        self._tokens = float(_TRIALS[0])

    def prompt_tokens(self, plan: StepPlan, queues: Queues) -> int:
        """For a step that so far has decodes and drafts; at least one for each prompt that has begun."""
        cost = self._cost
        if cost.num_token_steps < len(_TRIALS):
            self._tokens = _TRIALS[cost.num_token_steps]
        elif cost.token_s > 0.0:
            tokens = self._room_s(plan, queues) / cost.token_s
            tokens = min(max(tokens, 0.5 * self._tokens), 2.0 * self._tokens)
            self._tokens = min(max(tokens, _LEAST_TOKENS), _MOST_TOKENS)
        return max(int(self._tokens), len(queues.partial))

    def _room_s(self, plan: StepPlan, queues: Queues) -> float:
        """What the step's prompt tokens may take."""
        cost = self._cost
        if self._target_s is None:
            return (1.0 / _FIXED_SHARE - 1.0) * cost.fixed_s
        drafting = plan.slices
        num_decodes = plan.num_decodes + len(drafting)
        context_sum = queues.decodes.context_sum + sum(piece.start + piece.num_tokens for piece in drafting)
        num_drafts = plan.num_slice_tokens - len(drafting)
        decodes_s = cost.decode_s(num_decodes, context_sum) + num_drafts * cost.token_s
        return self._tokens_per_decode * self._target_s - decodes_s

    def took(self, step: StepTaken) -> None:
        if step.num_decodes:
            given = 1.0 + step.num_accepted / step.num_decodes
            self._tokens_per_decode += _WEIGHT * (given - self._tokens_per_decode)
        self._cost.learn(step.num_decodes, step.context_sum, step.num_more_tokens, step.duration_s)
