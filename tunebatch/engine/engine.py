"""The loop: arrivals, a plan, a step, tokens out, blocks back."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as SequenceOf
from typing import Protocol

from tunebatch.engine.clock import Clock
from tunebatch.engine.plan import Executor, Slice, StepOutput, StepPlan
from tunebatch.engine.policies.base import Learner, Policy, StepTaken
from tunebatch.engine.queues import Queues
from tunebatch.engine.records import EndReason, RequestRecord, RunRecord, StepLog
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.engine.speculation.speculator import Speculator


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

    Args:
        watcher: Told of arrivals, first tokens and ends; asked after every step whether to go on.
        prefix_caching: Blocks keep their content after their owners have gone, for prompts that begin alike.
        speculator: Drafts tokens, which steps verify.

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
    ) -> None:
        self._executor = executor
        self._policy = policy
        self._learner = policy if isinstance(policy, Learner) else None
        self._source = source
        self._clock = clock
        self._watcher = watcher
        self._eos: Collection[int] = executor.eos_token_ids
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

    def run(self) -> RunRecord:
        """Serve until the source is dry and everything has ended, or the watcher says stop."""
        while not self._stopped and self.step():
            pass
        return self.record()

    def step(self) -> bool:
        """Make one step, or wait for something to do; False when nothing is left."""
        now = self._clock.now()
        self._arrivals(now)
        queues = self.queues
        decision = self._policy.plan(now, queues)
        if not isinstance(decision, StepPlan):
            return self._idle(decision)
        waiting = len(queues.waiting)
        for piece in decision.slices:
            queues.first_time(piece.sequence, now)
        context_sum = queues.decodes.context_sum if decision.decodes is not None else 0
        output = self._executor.execute(decision)
        self._clock.step_took(output.duration_s)
        end = self._clock.now()
        self._log_step(decision, now, end, context_sum, waiting)
        self._log_slices(decision, output)
        self._commit(decision, output, end)
        if self._speculator is not None:
            self._tell_speculator(decision, output, end - now)
        if self._learner is not None:
            self._learner.took(self._taken(decision))
        self._tell_ended(end)
        return True

    def _tell_speculator(self, plan: StepPlan, output: StepOutput, duration_s: float) -> None:
        assert self._speculator is not None
        verified = [
            (len(piece.draft_tokens), len(tokens) - 1)
            for piece, tokens in zip(plan.slices, output.slice_tokens, strict=True)
            if piece.draft_tokens
        ]
        self._speculator.step_done(verified, len(verified) == len(plan.slices), duration_s)

    def _taken(self, plan: StepPlan) -> StepTaken:
        """The step that was logged last."""
        log = self._log
        drafting = [piece for piece in plan.slices if piece.draft_tokens]
        return StepTaken(
            duration_s=log.duration_s[-1],
            num_decodes=log.num_decodes[-1] + len(drafting),
            context_sum=log.context_sum[-1] + sum(piece.start + piece.num_tokens for piece in drafting),
            num_more_tokens=log.num_prefill_tokens[-1] + log.num_draft_tokens[-1],
            num_accepted=log.num_draft_tokens[-1] - log.num_rejected[-1],
            num_preempted=log.num_preempted[-1],
            ended=self.queues.ended,
        )

    def record(self) -> RunRecord:
        """What has happened so far; what still runs counts as unfinished."""
        queues = self.queues
        now = self._clock.now()
        for sequence in [*queues.running.values(), *queues.waiting.values()]:
            queues.finish(sequence, EndReason.UNFINISHED, now)
        queues.release_held(now)
        return RunRecord(
            requests=queues.records,
            steps=self._log,
            occupancy=queues.occupancy,
            num_blocks=queues.kv.num_blocks,
            block_size=queues.kv.block_size,
            stopped_early=self._stopped,
            speculation=None if self._speculator is None else self._speculator.record(),
            prefix_caching=queues.prefixes is not None,
        )

    def _arrivals(self, now: float) -> None:
        for request in self._source.take(now):
            self.queues.add(request, now)
            if self._watcher is not None:
                self._watcher.arrived(request)
        self.queues.cancel_due(now)
        if self.queues.ended:
            self._tell_ended(now)
        self.queues.arrivals_open = self._source.next_arrival_s() is not None

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

    def _commit(self, plan: StepPlan, output: StepOutput, now: float) -> None:
        if plan.decodes is not None:
            self._commit_decodes(output, now)
        for piece, tokens in zip(plan.slices, output.slice_tokens, strict=True):
            sequence = piece.sequence
            sequence.num_computed = piece.start + piece.num_tokens
            if 0 < sequence.num_lost <= sequence.num_computed:
                sequence.num_lost = 0
                sequence.record.recomputed_at_s.append(now)
            if piece.draft_tokens:
                self._commit_verified(piece, tokens, now)
                continue
            self.queues.cache_blocks(sequence)
            if piece.sample:
                self._commit_sample(sequence, tokens, now)

    def _commit_decodes(self, output: StepOutput, now: float) -> None:
        queues = self.queues
        group = queues.decodes
        queues.decode_end_s.append(now)
        group.advance()
        stopped: list[Sequence] = []
        if output.decode_tokens is not None:
            eos = self._eos
            for sequence, token in zip(group.members, output.decode_tokens, strict=True):
                sequence.output.append(token)
                if token in eos and not sequence.request.ignore_eos:
                    stopped.append(sequence)
        for sequence in group.finishing():
            queues.finish(sequence, EndReason.LENGTH, now)
        for sequence in stopped:
            if sequence.row >= 0:
                queues.finish(sequence, EndReason.STOP, now)
            else:
                sequence.record.end_reason = EndReason.STOP

    def _commit_sample(self, sequence: Sequence, tokens: Collection[int], now: float) -> None:
        request = sequence.request
        sequence.output.extend(tokens)
        sequence.num_output += 1
        sequence.record.token_times_s.append(now)
        if sequence.num_output == 1 and self._watcher is not None:
            self._watcher.first_token(sequence.record, now)
        if not request.ignore_eos and any(token in self._eos for token in tokens):
            self.queues.finish(sequence, EndReason.STOP, now)
        elif sequence.num_output == request.max_tokens:
            self.queues.finish(sequence, EndReason.LENGTH, now)
        else:
            self.queues.decodes.join(sequence)

    def _commit_verified(self, piece: Slice, tokens: SequenceOf[int], now: float) -> None:
        """Tokens of one step, the accepted drafts and one more; they arrive together."""
        sequence, record = piece.sequence, piece.sequence.record
        accepted = len(tokens) - 1
        sequence.num_computed = piece.start + 1 + accepted
        record.num_verifications += 1
        record.num_drafted += len(piece.draft_tokens)
        record.num_accepted += accepted
        if not sequence.request.ignore_eos:
            ends = next((i for i, token in enumerate(tokens) if token in self._eos), accepted)
            tokens = tokens[: ends + 1]
        sequence.output.extend(tokens)
        sequence.num_output += len(tokens)
        record.token_times_s += [now] * len(tokens)
        if not sequence.request.ignore_eos and tokens[-1] in self._eos:
            self.queues.finish(sequence, EndReason.STOP, now)
        elif sequence.num_output == sequence.request.max_tokens:
            self.queues.finish(sequence, EndReason.LENGTH, now)
        else:
            self.queues.cache_blocks(sequence)
            self.queues.decodes.join(sequence)

    def _tell_ended(self, now: float) -> None:
        for sequence in self.queues.ended:
            self._source.finished(sequence.record, now)
            if self._watcher is not None:
                self._watcher.ended(sequence.record, now)
        self.queues.ended.clear()
        self._stopped = self._watcher is not None and self._watcher.should_stop(now)

    def _log_step(self, plan: StepPlan, start: float, end: float, context_sum: int, waiting: int) -> None:
        log, queues = self._log, self.queues
        log.start_s.append(start)
        log.duration_s.append(end - start)
        log.num_decodes.append(plan.num_decodes)
        log.context_sum.append(context_sum)
        log.slots_active.append(len(plan.slices) + plan.num_decodes)
        log.slots_held.append(queues.num_held)
        log.blocks_used.append(queues.kv.num_used)
        log.num_waiting.append(waiting)
        log.num_preempted.append(plan.num_preempted)

    def _log_slices(self, plan: StepPlan, output: StepOutput) -> None:
        log = self._log
        prefills, verifications = [], []
        for piece, tokens in zip(plan.slices, output.slice_tokens, strict=True):
            sequence, drafted = piece.sequence, len(piece.draft_tokens)
            if drafted:
                # One token more is sampled than drafts are accepted.
                verifications.append((sequence.id, sequence.slot, drafted, drafted + 1 - len(tokens)))
            else:
                prefills.append((sequence.id, sequence.slot, piece.start, piece.num_tokens))
        log.num_prefills.append(len(prefills))
        log.num_prefill_tokens.append(sum(piece[3] for piece in prefills))
        log.num_draft_tokens.append(sum(one[2] for one in verifications))
        log.num_rejected.append(sum(one[3] for one in verifications))
        log.slices.append(tuple(prefills))
        log.verifications.append(tuple(verifications))
