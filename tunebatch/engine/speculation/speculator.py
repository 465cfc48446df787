"""A drafter, how deep it drafts, and what became of its drafts."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from tunebatch.engine.plan import Slice
from tunebatch.engine.records import SpeculationRecord
from tunebatch.engine.sequence import Sequence
from tunebatch.engine.speculation.acceptance import SyntheticAcceptance
from tunebatch.engine.speculation.depth import Depth
from tunebatch.engine.speculation.drafter import Drafter, Wanted


class Speculator:
    """Proposes drafts for a step, and counts which positions were accepted.

    Args:
        drafter: Guesses tokens.
        depth: Chooses how many.
        acceptance: Draws which are accepted; without it the tokens decide.
    """

    def __init__(self, drafter: Drafter, depth: Depth, acceptance: SyntheticAcceptance | None = None) -> None:
        self._drafter = drafter
        self._depth = depth
        self._acceptance = acceptance
        self._asked: tuple[int, int] | None = None
        self._record = SpeculationRecord(
            synthetic_acceptance=[] if acceptance is None else list(acceptance.rates)
        )

    def record(self) -> SpeculationRecord:
        """What became of all drafts so far."""
        record = self._record
        record.depth_by_batch = self._depth.table()
        record.num_computed, record.num_reused = self._drafter.num_computed, self._drafter.num_reused
        return record

    def depth(self, batch: int) -> int:
        """Draft tokens for each of ``batch`` decoding sequences in the next step."""
        chosen = self._depth.choose(batch)
        self._asked = (batch, chosen)
        return chosen

    def propose(self, wanted: SequenceOf[Wanted], generation: SequenceOf[int]) -> list[SequenceOf[int]]:
        """See `Drafter`."""
        return self._drafter.propose(wanted, generation)

    def verification(self, sequence: Sequence, drafts: tuple[int, ...]) -> Slice:
        """What a step computes to verify a sequence's drafts."""
        start, accepted = sequence.num_computed, None
        if self._acceptance is not None:
            accepted = self._acceptance.num_accepted(sequence.id, start + 1, len(drafts))
        return Slice(sequence, start, 1 + len(drafts), draft_tokens=drafts, num_accepted=accepted)

    def step_done(self, verified: SequenceOf[tuple[int, int]], alone: bool, duration_s: float) -> None:
        """A step is over.

        Args:
            verified: ``(drafted, accepted)`` of each sequence that had drafts.
            alone: It computed no prompt, so that its duration tells what drafting costs.
        """
        if self._asked is None:
            return
        batch, depth = self._asked
        self._asked = None
        record = self._record
        record.depth_sum += depth * batch
        record.num_decodes += batch
        for drafted, accepted in verified:
            record.count(drafted, accepted)
        if depth:
            self._depth.verified(depth, batch, [accepted for _, accepted in verified])
        if alone:
            self._depth.took(batch, depth, duration_s)
