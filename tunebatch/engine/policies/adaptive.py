"""Mixed steps whose size, batch and admission follow what the run itself shows."""

from __future__ import annotations

from tunebatch.engine.limits import NO_LIMITS, LatencyLimits
from tunebatch.engine.plan import StepPlan
from tunebatch.engine.policies.base import StepTaken
from tunebatch.engine.policies.batch_limit import BatchLimit
from tunebatch.engine.policies.budget import AutoBudget
from tunebatch.engine.policies.forecast import PeakForecast
from tunebatch.engine.policies.mixed import add_prompts
from tunebatch.engine.queues import Queues
from tunebatch.engine.sequence import Sequence

_URGENT = 0.5  # of the limit on the TTFT, that a request has waited


class Adaptive:
    """`Mixed`, steered by three things that it learns: what a step costs, which sets its prompt tokens
    (`AutoBudget`); how long decodes take, which moves the batch limit (`BatchLimit`); how long answers are,
    which keeps out requests that would run the KV cache over (`PeakForecast`).

    Requests are admitted in the order of `Mixed`, and one that nobody runs beside always is.

    Args:
        min_batch_size: Sequences that may run at any time, however slow the steps.
        max_batch_size: Most sequences that ever run at once.
        target: Share of the limit on the TPOT that a step may take; without such a limit nothing.
        max_partial_prefills: Most prompts that may be left half computed by a step, as in `Mixed`.
        limits: Of the SLO.
    """

    holds_slots = False

    def __init__(
        self,
        min_batch_size: int = 4,
        max_batch_size: int = 32,
        target: float = 0.9,
        max_partial_prefills: int = 2,
        limits: LatencyLimits = NO_LIMITS,
    ) -> None:
        self.max_batch_size = max_batch_size
        self._budget = AutoBudget(limits.tpot_s, target)
        self._limit = BatchLimit(min_batch_size, max_batch_size, limits.tpot_s, target)
        self._forecast = PeakForecast()
        self._max_partial = max_partial_prefills
        self._ttft_limit_s = limits.ttft_s

    def plan(self, now: float, queues: Queues) -> StepPlan | float | None:
        plan = queues.decode(StepPlan(), now)
        tokens = self._budget.prompt_tokens(plan, queues)
        add_prompts(plan, queues, tokens, self._max_partial, lambda prompt: self._admit(prompt, now, queues))
        return plan or None

    def took(self, step: StepTaken) -> None:
        self._budget.took(step)
        self._limit.took(step)
        self._forecast.took(step)

    def _admit(self, prompt: Sequence, now: float, queues: Queues) -> bool:
        if len(queues.running) >= self._limit.size:
            self._limit.keeps_out(len(queues.waiting), self._is_urgent(prompt, now))
            return False
        return self._forecast.admit(queues, now, prompt)

    def _is_urgent(self, prompt: Sequence, now: float) -> bool:
        limit_s = self._ttft_limit_s
        if limit_s is None or prompt.num_output > 0:
            return False
        return now - prompt.request.arrival_s > _URGENT * limit_s
