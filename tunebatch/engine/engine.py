"""The loop: arrivals, a plan, a step, tokens out, blocks back."""

from __future__ import annotations

from typing import Protocol

from tunebatch.engine.clock import Clock
from tunebatch.engine.commit import Commit, StepMade
from tunebatch.engine.plan import Executor, Overlapping, StepOutput, StepPlan
from tunebatch.engine.policies.base import Learner, Policy, StepTaken
from tunebatch.engine.queues import Queues
from tunebatch.engine.records import EndReason, RequestRecord, RunRecord, StepLog
from tunebatch.engine.request import Request
from tunebatch.engine.speculation.speculator import Speculator
from tunebatch.engine.step_log import log_outcome, log_plan


class RequestSource(Protocol):
    """Where requests come from; some wait for answers before they send more, or send them back."""

    def next_arrival_s(self) -> float | None: ...

    def take(self, now_s: float) -> list[Request]: ...

    def finished(self, record: RequestRecord, now_s: float) -> None: ...


class Watcher(Protocol):
    """Sees a run while it happens and may end it."""

    def arrived(self, request: Request) -> None: ...

    def first_token(self, record: RequestRecord, now: float) -> None: ...

    def ended(self, record: RequestRecord, now: float) -> None: ...

    def should_stop(self, now: float) -> bool: ...


class Engine:
    """Serves a source of requests with a policy on an executor.

    Deterministic: the same requests, policy and step durations give the same steps.

    With overlap, a step is planned and submitted while the one before computes, and the tokens of that one
    are collected then: a step takes the longer of what host and device need, not the sum. Tokens are those
    without overlap. Plans are too, but for what hangs on the time or on tokens: a sequence whose EOS is found
    late has been given one decode too many, and requests, cancellations and measured durations are seen as
    of when the step before began. Where a plan needs the tokens in flight they are collected first: to
    preempt, to end a batch, and always with drafts, which go on from the last token.

    Args:
        watcher: Told of arrivals, first tokens and ends; asked after every step whether to go on.
        prefix_caching: Blocks keep their content after their owners have gone, for prompts that begin alike.
        speculator: Drafts tokens, which steps verify.
        overlap: Plan a step while the one before computes, if the executor can and there is no speculator; by
            default where the executor gains by it.

    Raises (from `run`):
        OutOfDeviceMemoryError: A step did not fit on the device.
        RuntimeError: The policy wants neither to compute nor to wait; a bug in the policy.
    """

    def __init__(
        self,
        executor: Executor,
        policy: Policy,
        source: RequestSource,
        clock: Clock,
        watcher: Watcher | None = None,
        *,
        prefix_caching: bool = False,
        speculator: Speculator | None = None,
        overlap: bool | None = None,
    ) -> None:
        self._executor = executor
        self._policy = policy
        self._learner = policy if isinstance(policy, Learner) else None
        self._source = source
        self._clock = clock
        self._watcher = watcher
        self._overlapping = None if speculator is not None else _overlapping(executor, overlap)
        self._in_flight: StepMade | None = None
        self._log = StepLog()
        self._stopped = False
        self._speculator = speculator
        self.queues = Queues(
            num_blocks=executor.num_blocks,
            block_size=executor.block_size,
            num_slots=min(policy.max_batch_size, executor.max_slots),
            max_context=executor.max_context,
            holds_slots=policy.holds_slots,
            prefix_caching=prefix_caching,
            speculator=speculator,
        )
        first_token = None if watcher is None else watcher.first_token
        self._commit = Commit(self.queues, executor.eos_token_ids, first_token)

    def run(self) -> RunRecord:
        """Serve until the source is dry and everything has ended, or the watcher says stop."""
        while not self._stopped and self.step():
            pass
        return self.record()

    def step(self) -> bool:
        """Make one step, or wait for something to do; False when nothing is left.

        With overlap the step that is made is in flight afterwards, and the one before has ended; where the
        plan needs the tokens of that one, they are taken in first and nothing else is done.
        """
        now = self._arrivals()
        if self._in_flight is not None and self.queues.needs_tokens():
            self._land()
            return True
        plan = self._policy.plan(now, self.queues)
        if not isinstance(plan, StepPlan):
            return self._land() is not None or self._idle(plan)
        step = StepMade(plan, now)
        if self._overlapping is not None:
            self._submit(step, self._overlapping)
            return True
        self.queues.slots.begin(now)
        output = self._executor.execute(plan)
        log_plan(self._log, plan, self.queues)
        self._complete(step, output)
        return True

    def _submit(self, step: StepMade, executor: Overlapping) -> None:
        """Put a step in flight, and take in the tokens of the one that was."""
        self._commit.submitted(step)
        step.handle = executor.submit(step.plan)
        log_plan(self._log, step.plan, self.queues)
        if (end_s := self._land()) is not None:
            step.start_s = end_s
        self.queues.slots.begin(step.start_s)
        self._commit.advance(step)
        self._in_flight = step

    def _land(self) -> float | None:
        """Wait for the step in flight and take in its tokens; returns when it ended, if there was one."""
        step, self._in_flight = self._in_flight, None
        if step is None or self._overlapping is None:
            return None
        return self._complete(step, self._overlapping.collect(step.handle))

    def _complete(self, step: StepMade, output: StepOutput) -> float:
        """A step's tokens are on the host; returns the time."""
        self._clock.step_took(output.duration_s)
        end_s = self._clock.now()
        log_outcome(self._log, step.plan, output, step.start_s, end_s)
        self._log.num_wasted.append(self._commit.deliver(step, output, end_s))
        if self._speculator is not None:
            self._tell_speculator(step.plan, output, end_s - step.start_s)
        if self._learner is not None:
            self._learner.took(self._taken(step.plan))
        self._tell_ended(end_s)
        return end_s

    def _tell_speculator(self, plan: StepPlan, output: StepOutput, duration_s: float) -> None:
        assert self._speculator is not None
        verified = [
            (len(piece.draft_tokens), len(tokens) - 1)
            for piece, tokens in zip(plan.slices, output.slice_tokens, strict=True)
            if piece.draft_tokens
        ]
        self._speculator.step_done(verified, len(verified) == len(plan.slices), duration_s)

    def _taken(self, plan: StepPlan) -> StepTaken:
        """The step whose outcome was logged last; with overlap the plan of the next is logged too."""
        log = self._log
        at = len(log.duration_s) - 1
        drafting = [piece for piece in plan.slices if piece.draft_tokens]
        return StepTaken(
            duration_s=log.duration_s[at],
            num_decodes=log.num_decodes[at] + len(drafting),
            context_sum=log.context_sum[at] + sum(piece.start + piece.num_tokens for piece in drafting),
            num_more_tokens=log.num_prefill_tokens[at] + log.num_draft_tokens[at],
            num_accepted=log.num_draft_tokens[at] - log.num_rejected[at],
            num_preempted=log.num_preempted[at],
            ended=self.queues.ended,
        )

    def record(self) -> RunRecord:
        """What has happened so far; what still runs counts as unfinished."""
        self._land()
        queues = self.queues
        now = self._clock.now()
        for sequence in [*queues.running.values(), *queues.waiting.values()]:
            queues.finish(sequence, EndReason.UNFINISHED, now)
        queues.slots.release_held(now)
        return RunRecord(
            requests=queues.records,
            steps=self._log,
            occupancy=queues.slots.occupancy,
            num_blocks=queues.kv.num_blocks,
            block_size=queues.kv.block_size,
            stopped_early=self._stopped,
            speculation=None if self._speculator is None else self._speculator.record(),
            prefix_caching=queues.prefixes is not None,
            overlap=self._overlapping is not None,
        )

    def _arrivals(self) -> float:
        """Take in what has arrived and let go of who has hung up; returns the time."""
        now = self._clock.now()
        for request in self._source.take(now):
            self.queues.add(request, now)
            if self._watcher is not None:
                self._watcher.arrived(request)
        self.queues.cancel_due(now)
        if self.queues.ended:
            self._tell_ended(now)
        self.queues.arrivals_open = self._source.next_arrival_s() is not None
        return now

    def _idle(self, wake_at: float | None) -> bool:
        queues = self.queues
        times = [wake_at, self._source.next_arrival_s()]
        if queues.waiting or queues.running:
            times.append(queues.next_cancellation_s())
        due = [time for time in times if time is not None]
        if due:
            self._clock.idle_until(min(due))
            return True
        if queues.waiting or queues.running:
            raise RuntimeError(
                f"{type(self._policy).__name__} plans nothing with {len(queues.waiting)} waiting and "
                f"{len(queues.running)} running requests"
            )
        return False

    def _tell_ended(self, now: float) -> None:
        for sequence in self.queues.ended:
            self._source.finished(sequence.record, now)
            if self._watcher is not None:
                self._watcher.ended(sequence.record, now)
        self.queues.ended.clear()
        self._stopped = self._watcher is not None and self._watcher.should_stop(now)


def _overlapping(executor: Executor, overlap: bool | None) -> Overlapping | None:
    if not isinstance(executor, Overlapping):
        return None
    return executor if (executor.overlaps if overlap is None else overlap) else None
