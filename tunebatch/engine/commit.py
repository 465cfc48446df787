"""What a step changes, in two halves.

How many tokens it computes is known as soon as it is planned: positions, block tables, who is through by
length. Which tokens they are is known when they have come to the host. So the first half can be made while
the step runs, and the next be planned from it (as vLLM's async scheduler does with placeholders); without
overlap the second follows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

from tunebatch.engine.plan import Slice, StepOutput, StepPlan
from tunebatch.engine.queues import Queues
from tunebatch.engine.records import EndReason, RequestRecord
from tunebatch.engine.sequence import Sequence, Status


@dataclass(slots=True)
class StepMade:
    """A step between its plan and its tokens.

    Attributes:
        start_s: When it was planned or, if another was still in flight then, when that had ended.
        handle: The executor's, if it was submitted.
        decoding: Who decodes in it, in row order; the group itself goes on to change.
        num_ended: Requests that had ended when it was submitted.
        advanced: Its first half is done.
        finishing: Of those who decode, whose last token this is.
    """

    plan: StepPlan
    start_s: float
    handle: Any = None
    decoding: SequenceOf[Sequence] = ()
    num_ended: int = 0
    advanced: bool = False
    finishing: SequenceOf[Sequence] = ()


class Commit:
    """Brings steps into the queues.

    Args:
        eos: Tokens that end a sequence, unless its request ignores them.
        first_token: Told of the first token of each request, with the time.
    """

    def __init__(
        self,
        queues: Queues,
        eos: Collection[int],
        first_token: Callable[[RequestRecord, float], None] | None = None,
    ) -> None:
        self._queues = queues
        self._eos = eos
        self._first_token = first_token

    def submitted(self, step: StepMade) -> None:
        """Note who is there as a step goes to the device."""
        step.num_ended = self._queues.num_ended
        if step.plan.decodes is not None:
            step.decoding = step.plan.decodes.snapshot()

    def advance(self, step: StepMade) -> None:
        """The first half, for a step that is in flight; it verifies no drafts, as these need tokens."""
        if step.plan.decodes is not None:
            self._advance_decodes(step)
        for piece in step.plan.slices:
            self._advance_slice(piece)
        step.advanced = True

    def deliver(self, step: StepMade, output: StepOutput, now: float) -> int:
        """The second half, and before it the first where that is still to do, part by part.

        What was computed for somebody who had ended by then is nobody's: after an EOS that was found while
        the next step was in flight already, or when the client has hung up.

        Returns:
            Decodes whose token was not wanted any more.
        """
        num_wasted = 0
        slices, decodes = step.plan.slices, step.plan.decodes
        if decodes is not None:
            if not step.advanced:
                if output.decode_tokens is not None:
                    step.decoding = decodes.snapshot()
                self._advance_decodes(step)
            num_wasted = self._deliver_decodes(step, output.decode_tokens, now)
            if not slices:
                return num_wasted
        for piece, tokens in zip(slices, output.slice_tokens, strict=True):
            if piece.sequence.num_lost:
                self._note_recomputed(piece, now)
            if piece.draft_tokens:
                self._deliver_verified(piece, tokens, now)
                continue
            if not step.advanced:
                self._advance_slice(piece)
            if piece.sample:
                self._deliver_sample(piece.sequence, tokens, now)
        return num_wasted

    def _advance_decodes(self, step: StepMade) -> None:
        group = self._queues.decodes
        group.advance()
        step.finishing = group.finishing()
        for sequence in step.finishing:
            self._queues.retire(sequence)

    def _advance_slice(self, piece: Slice) -> None:
        sequence = piece.sequence
        sequence.num_computed = piece.start + piece.num_tokens
        if (prefixes := self._queues.prefixes) is not None:
            prefixes.extend(sequence)
        if not piece.sample:
            return
        if sequence.num_output + 1 == sequence.request.max_tokens:
            self._queues.retire(sequence)
        else:
            sequence.num_output += 1
            self._queues.decodes.join(sequence)

    def _deliver_decodes(self, step: StepMade, tokens: SequenceOf[int] | None, now: float) -> int:
        queues, eos = self._queues, self._eos
        queues.decode_end_s.append(now)
        decoding = step.decoding
        if step.advanced and queues.num_ended != step.num_ended:
            wanted = [sequence.status is not Status.FINISHED for sequence in decoding]
            decoding = [one for one, is_wanted in zip(decoding, wanted, strict=True) if is_wanted]
            if tokens is not None:
                tokens = [one for one, is_wanted in zip(tokens, wanted, strict=True) if is_wanted]
        stopped: list[Sequence] = []
        if tokens is not None:
            for sequence, token in zip(decoding, tokens, strict=True):
                sequence.output.append(token)
                if token in eos and not sequence.request.ignore_eos:
                    stopped.append(sequence)
        for sequence in step.finishing:
            if sequence.status is not Status.FINISHED:
                sequence.record.token_times_s.append(now)
                queues.finish(sequence, EndReason.LENGTH, now)
        for sequence in stopped:
            if sequence.status is not Status.FINISHED:
                queues.finish(sequence, EndReason.STOP, now)
            else:
                sequence.record.end_reason = EndReason.STOP
        return len(step.decoding) - len(decoding)

    def _deliver_sample(self, sequence: Sequence, tokens: Collection[int], now: float) -> None:
        if sequence.status is Status.FINISHED:
            return
        request, times_s = sequence.request, sequence.record.token_times_s
        sequence.output.extend(tokens)
        times_s.append(now)
        if len(times_s) == 1 and self._first_token is not None:
            self._first_token(sequence.record, now)
        if not request.ignore_eos and any(token in self._eos for token in tokens):
            self._queues.finish(sequence, EndReason.STOP, now)
        elif len(times_s) == request.max_tokens:
            self._queues.finish(sequence, EndReason.LENGTH, now)

    def _deliver_verified(self, piece: Slice, tokens: SequenceOf[int], now: float) -> None:
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
            self._queues.finish(sequence, EndReason.STOP, now)
        elif sequence.num_output == sequence.request.max_tokens:
            self._queues.finish(sequence, EndReason.LENGTH, now)
        else:
            if (prefixes := self._queues.prefixes) is not None:
                prefixes.extend(sequence)
            self._queues.decodes.join(sequence)

    def _note_recomputed(self, piece: Slice, now: float) -> None:
        """What preemption took of a sequence may be whole again."""
        sequence = piece.sequence
        whole = sequence.num_lost <= piece.start + piece.num_tokens
        if whole and sequence.status is not Status.FINISHED:
            sequence.num_lost = 0
            sequence.record.recomputed_at_s.append(now)
