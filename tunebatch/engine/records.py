"""What a run leaves behind: one record per request, one row per step."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class EndReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"  # the model emitted an end-of-sequence token
    LENGTH = "length"  # max_tokens reached
    CANCELLED = "cancelled"  # the client hung up
    REJECTED = "rejected"  # it could never fit into the KV cache or the context
    UNFINISHED = "unfinished"  # the run was stopped first


@dataclass(slots=True)
class RequestRecord:
    """One request's life, all times in seconds on the run's clock.

    ``token_times_s[i]`` is when output token i reached the host; tokens of one speculative step
    share a time. ``num_cached_tokens`` are the prompt's at its first admission: what is found again
    after a preemption is not in it. What preemption i took at ``preempted_at_s[i]`` was computed again by
    ``recomputed_at_s[i]``, or taken once more; the last has no such time where the request ended first.
    """

    id: int
    arrival_s: float
    num_prompt_tokens: int
    max_tokens: int
    first_scheduled_s: float | None = None
    token_times_s: list[float] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    preempted_at_s: list[float] = field(default_factory=list)
    recomputed_at_s: list[float] = field(default_factory=list)
    num_drafted: int = 0
    num_accepted: int = 0
    num_verifications: int = 0
    end_s: float = 0.0
    end_reason: EndReason = EndReason.UNFINISHED

    @property
    def completed(self) -> bool:
        return self.end_reason in (EndReason.STOP, EndReason.LENGTH)


STEP_COLUMNS = (
    "start_s",
    "duration_s",
    "num_prefills",
    "num_prefill_tokens",
    "num_decodes",
    "context_sum",
    "slots_active",
    "slots_held",
    "blocks_used",
    "num_waiting",
    "num_preempted",
    "num_draft_tokens",
    "num_rejected",
    "num_wasted",
)


@dataclass(slots=True)
class StepLog:
    """One column per fact of a step, one entry per step; appending is all that the loop pays.

    ``context_sum`` is the KV tokens that the step's decodes attended to; ``slots_active`` the
    batch slots that computed something, ``slots_held`` those that were occupied at all.
    ``slices`` holds ``(request id, slot, start, num_tokens)`` of every prefill or chunk, and
    ``verifications`` ``(request id, slot, num_draft_tokens, num_rejected)`` of every sequence whose
    drafts were verified: it computes them and one token more, and is neither a prefill nor a decode of
    the other columns.

    With overlap a step that was planned while another was in flight starts when that has ended, so that the
    durations tile the time; and ``num_wasted`` decodes were for sequences that had ended by then, which was
    not known yet. They were computed like others and are in the other columns, but nobody got the tokens.
    """

    start_s: list[float] = field(default_factory=list)
    duration_s: list[float] = field(default_factory=list)
    num_prefills: list[int] = field(default_factory=list)
    num_prefill_tokens: list[int] = field(default_factory=list)
    num_decodes: list[int] = field(default_factory=list)
    context_sum: list[int] = field(default_factory=list)
    slots_active: list[int] = field(default_factory=list)
    slots_held: list[int] = field(default_factory=list)
    blocks_used: list[int] = field(default_factory=list)
    num_waiting: list[int] = field(default_factory=list)
    num_preempted: list[int] = field(default_factory=list)
    num_draft_tokens: list[int] = field(default_factory=list)
    num_rejected: list[int] = field(default_factory=list)
    num_wasted: list[int] = field(default_factory=list)
    slices: list[tuple[tuple[int, int, int, int], ...]] = field(default_factory=list)
    verifications: list[tuple[tuple[int, int, int, int], ...]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.start_s)


@dataclass(slots=True)
class SpeculationRecord:
    """What became of the drafts of a run.

    Attributes:
        drafted_at: How often a draft stood at each position.
        accepted_at: How often it was accepted there.
        num_decodes: Sequences that could have been drafted for, summed over steps.
        depth_sum: Drafts that were asked for them.
        depth_by_batch: ``(smallest batch, largest batch, drafts)`` that the run learnt, if it chose itself;
            ranges in order, from 1 on and without gaps.
        num_computed: Tokens of prompts and answers that a draft model computed before it could draft.
        num_reused: Those that it found computed, as others begin alike.
        synthetic_acceptance: Rates by which it was drawn what is accepted, see ``SyntheticAcceptance``; empty
            where the models' own tokens decided.
    """

    drafted_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    num_decodes: int = 0
    depth_sum: int = 0
    depth_by_batch: list[tuple[int, int, int]] = field(default_factory=list)
    num_computed: int = 0
    num_reused: int = 0
    synthetic_acceptance: list[float] = field(default_factory=list)

    def count(self, drafted: int, accepted: int) -> None:
        """Add one verification."""
        missing = drafted - len(self.drafted_at)
        if missing > 0:
            self.drafted_at += [0] * missing
            self.accepted_at += [0] * missing
        for position in range(drafted):
            self.drafted_at[position] += 1
        for position in range(accepted):
            self.accepted_at[position] += 1


@dataclass(slots=True)
class RunRecord:
    """Everything that a run produced, in the order in which requests arrived.

    Attributes:
        occupancy: ``(slot, request id, from_s, to_s, held_until_s)`` per stay in a batch slot;
            ``held_until_s > to_s`` when the slot stayed empty after the request had ended.
        stopped_early: A watcher ended the run before all requests were served.
        speculation: What became of drafts, where there were any to be had.
        overlap: Steps were planned while the ones before were in flight.
    """

    requests: list[RequestRecord]
    steps: StepLog
    occupancy: list[tuple[int, int, float, float, float]] = field(default_factory=list)
    num_blocks: int = 0
    block_size: int = 0
    stopped_early: bool = False
    speculation: SpeculationRecord | None = None
    prefix_caching: bool = False
    overlap: bool = False
