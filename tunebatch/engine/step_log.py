"""How a step becomes a row of the log: what was planned when it is made, what it took when it has ended."""

from __future__ import annotations

from tunebatch.engine.plan import StepOutput, StepPlan
from tunebatch.engine.queues import Queues
from tunebatch.engine.records import StepLog


def log_plan(log: StepLog, plan: StepPlan, queues: Queues) -> None:
    """Note what a step computes; before anything of it is committed."""
    decodes, slices = plan.decodes, plan.slices
    num_decodes = 0 if decodes is None else len(decodes.members)
    log.num_decodes.append(num_decodes)
    log.context_sum.append(0 if decodes is None else decodes.context_sum)
    log.slots_active.append(len(slices) + num_decodes)
    log.slots_held.append(queues.slots.num_taken)
    log.blocks_used.append(queues.kv.num_used)
    log.num_waiting.append(len(queues.waiting))
    log.num_preempted.append(plan.num_preempted)
    if not slices:
        log.num_prefills.append(0)
        log.num_prefill_tokens.append(0)
        log.num_draft_tokens.append(0)
        log.slices.append(())
        return
    prefills = [
        (piece.sequence.id, piece.sequence.slot, piece.start, piece.num_tokens)
        for piece in slices
        if not piece.draft_tokens
    ]
    log.num_prefills.append(len(prefills))
    log.num_prefill_tokens.append(sum([piece[3] for piece in prefills]))
    log.num_draft_tokens.append(sum([len(piece.draft_tokens) for piece in slices]))
    log.slices.append(tuple(prefills))


def log_outcome(log: StepLog, plan: StepPlan, output: StepOutput, start_s: float, end_s: float) -> None:
    """Note how the oldest step went of those that have no outcome yet; before its tokens are committed."""
    log.start_s.append(start_s)
    log.duration_s.append(end_s - start_s)
    if not log.num_draft_tokens[len(log.duration_s) - 1]:
        log.num_rejected.append(0)
        log.verifications.append(())
        return
    verifications = [
        # One token more is sampled than drafts are accepted.
        (piece.sequence.id, piece.sequence.slot, drafted, drafted + 1 - len(tokens))
        for piece, tokens in zip(plan.slices, output.slice_tokens, strict=True)
        if (drafted := len(piece.draft_tokens))
    ]
    log.num_rejected.append(sum([one[3] for one in verifications]))
    log.verifications.append(tuple(verifications))
