"""Who waits, who runs and who owns which blocks: the mechanics that all policies share.

A policy decides; everything that must be done alike under every policy (admitting, allocating blocks,
preempting, ending a request) is here, once. Batch slots are counted in `slots`, what prompts share of
their beginnings is in `prefix_sharing`, who drafts in `speculation.drafting`.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable

from tunebatch.engine.blocks import BlockPool
from tunebatch.engine.group import DecodeGroup
from tunebatch.engine.plan import Slice, StepPlan
from tunebatch.engine.prefix_sharing import PrefixSharing
from tunebatch.engine.records import EndReason, RequestRecord
from tunebatch.engine.request import Request, why_never_fits
from tunebatch.engine.sequence import Sequence, Status
from tunebatch.engine.slots import Slots
from tunebatch.engine.speculation.drafting import drafted
from tunebatch.engine.speculation.speculator import Speculator

# Part of the pool that admission leaves free for the sequences that already run, so that a new
# prompt is not admitted only to be preempted by the next block that they need (vLLM's watermark).
ADMISSION_WATERMARK = 0.01


class Queues:
    """The state that a policy plans from.

    Args:
        num_blocks: KV blocks in the pool.
        block_size: Tokens per block.
        num_slots: Batch slots, the most sequences that may run at once.
        max_context: Most tokens a sequence may have.
        holds_slots: A finished sequence keeps its slot until its batch is over (static batching).
        prefix_caching: Full blocks keep their content, and prompts that begin with it share them.
        speculator: Drafts tokens for sequences that decode.

    Attributes:
        waiting: Requests not admitted, oldest first; a preempted one is first.
        running: Admitted sequences in order of admission, the newest last.
        partial: Those of them whose prompt is not wholly computed or planned, in the same order.
        slots: Who has which batch slot.
        prefixes: What prompts share of their beginnings; None without prefix caching.
        arrivals_open: More arrivals are scheduled.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        num_slots: int,
        max_context: int,
        holds_slots: bool = False,
        prefix_caching: bool = False,
        speculator: Speculator | None = None,
    ) -> None:
        self.kv = BlockPool(num_blocks, block_size)
        self.decodes = DecodeGroup(block_size)
        self.slots = Slots(num_slots, holds_slots)
        self.prefixes = PrefixSharing(self.kv, self.decodes) if prefix_caching else None
        self.waiting: OrderedDict[int, Sequence] = OrderedDict()
        self.running: OrderedDict[int, Sequence] = OrderedDict()
        self.partial: dict[int, Sequence] = {}
        self.arrivals_open = True
        self.records: list[RequestRecord] = []
        self.decode_end_s: list[float] = []
        self.ended: list[Sequence] = []
        self._max_context = max_context
        self._watermark = int(num_blocks * ADMISSION_WATERMARK)
        self._cancellations: list[tuple[float, int]] = []
        self._live: dict[int, Sequence] = {}
        self._speculator = speculator

    @property
    def num_ended(self) -> int:
        """Requests that have ended so far, however they did."""
        return len(self.records) - len(self._live)

    @property
    def oldest_waiting(self) -> Sequence | None:
        """The request that is admitted next."""
        return next(iter(self.waiting.values()), None)

    # Arrivals and departures

    def add(self, request: Request, now: float) -> None:
        """Queue a request, or reject one that could never be served."""
        sequence = Sequence(request)
        self.records.append(sequence.record)
        self._live[sequence.id] = sequence
        if why_never_fits(request, self.kv.num_blocks, self.kv.block_size, self._max_context):
            self._end(sequence, EndReason.REJECTED, now)
            return
        self.waiting[sequence.id] = sequence
        if request.cancel_at_s is not None:
            heapq.heappush(self._cancellations, (request.cancel_at_s, sequence.id))

    def cancel_due(self, now: float) -> None:
        """End every request whose client has hung up; its blocks return at once."""
        while self._cancellations and self._cancellations[0][0] <= now:
            sequence = self._live.get(heapq.heappop(self._cancellations)[1])
            if sequence is not None:
                self.finish(sequence, EndReason.CANCELLED, now)

    def next_cancellation_s(self) -> float | None:
        """When the next request that is still here will be cancelled."""
        while self._cancellations and self._cancellations[0][1] not in self._live:
            heapq.heappop(self._cancellations)
        return self._cancellations[0][0] if self._cancellations else None

    # What policies call

    def prefill(
        self,
        now: float,
        limit: int,
        token_budget: int,
        chunk_size: int | None = None,
        admit: Callable[[Sequence], bool] | None = None,
    ) -> list[Slice]:
        """Chunks of the prompts that have begun, and of waiting requests, admitted in order.

        Stops at ``limit`` requests, at the first that has no slot or no blocks, or before the one
        whose chunk would exceed ``token_budget``; a single chunk larger than the budget goes alone.
        Every prompt that has begun gets a chunk: none of its chunks is larger than the one before, so
        those that fitted into a step still do.

        Args:
            chunk_size: Most tokens of a prompt; by default all of it.
            admit: Starts a waiting request, or says that it has to wait; by default `admit`.
        """
        slices: list[Slice] = []
        for sequence in list(self.partial.values()):
            num_tokens = _at_most(sequence.num_uncomputed, chunk_size)
            slices.append(self.chunk(sequence, num_tokens))
            token_budget -= num_tokens
        while len(slices) < limit and (oldest := self.oldest_waiting) is not None:
            if slices and _at_most(self.num_to_compute(oldest), chunk_size) > token_budget:
                break
            if not (self.admit(now, oldest) if admit is None else admit(oldest)):
                break
            num_tokens = _at_most(oldest.num_uncomputed, chunk_size)
            slices.append(self.chunk(oldest, num_tokens))
            token_budget -= num_tokens
        return slices

    def admit(self, now: float, sequence: Sequence | None = None) -> bool:
        """Start a waiting request, the oldest unless another is named, if there are a slot and blocks for it.

        It gets the blocks of its whole prompt, however few of its tokens the first chunk computes: a
        prompt that has begun then never waits for blocks, so two of them cannot wait for each other.
        Those of its beginning that are cached it shares, and computes what comes after them. While another
        prompt computes what comes after them, it waits: that one gets a part of every step that computes
        prompts, so this lasts until it has got to where they differ, or has been preempted or cancelled.
        """
        sequence = sequence or self.oldest_waiting
        if sequence is None or not self.slots.free:
            return False
        prefixes, hit, shared = self.prefixes, None, []
        if prefixes is not None:
            hit = prefixes.hit(sequence)
            if prefixes.is_awaited(sequence, hit):
                return False
            shared = hit.path()
        num_blocks = self.kv.blocks_for(sequence.num_tokens) - len(shared)
        reserve = self._watermark if self.running else 0
        if num_blocks + self.kv.num_idle(shared) + reserve > self.kv.num_free:
            return False
        # Shared first: allocating may evict what is idle.
        for block in shared:
            self.kv.share(block)
        sequence.block_table = shared + self.kv.allocate(num_blocks)
        sequence.num_computed = len(shared) * self.kv.block_size
        if prefixes is not None and hit is not None:
            prefixes.begin(sequence, hit)
        self._start(sequence, now)
        return True

    def num_to_compute(self, sequence: Sequence) -> int:
        """Tokens that a waiting request would have to compute if it were admitted now."""
        if self.prefixes is None:
            return sequence.num_tokens
        return sequence.num_tokens - self.prefixes.hit(sequence).depth * self.kv.block_size

    def chunk(self, sequence: Sequence, num_tokens: int) -> Slice:
        """Plan the next tokens of a prompt that has begun; the chunk that ends it samples."""
        ends = num_tokens == sequence.num_uncomputed
        if ends:
            del self.partial[sequence.id]
        return Slice(sequence, sequence.num_computed, num_tokens, sample=ends)

    def decode(self, plan: StepPlan, now: float) -> StepPlan:
        """Add a token of every decoding sequence to the plan, preempting the newest if blocks run out.

        With a speculator, those that have drafts leave the group for this step and are verified as slices.
        """
        table_full, prefixes = self.kv.blocks_for, self.prefixes
        for sequence in self.decodes.crossing():
            if prefixes is not None:
                prefixes.extend(sequence)
            if sequence.row < 0 or len(sequence.block_table) > table_full(
                self.decodes.num_computed(sequence)
            ):
                continue
            while self.kv.num_free == 0 and sequence.row >= 0:
                self._preempt(next(reversed(self.running.values())), now)
                plan.num_preempted += 1
            if sequence.row >= 0:
                sequence.block_table += self.kv.allocate(1)
                plan.grown.append(sequence)
        if (speculator := self._speculator) is not None and self.decodes:
            for sequence, drafts in drafted(plan, self.decodes, self.kv, speculator):
                self._leave_decodes(sequence)
                plan.slices.append(speculator.verification(sequence, drafts))
        # A later preemption may have hit a sequence that had just grown, and drafts are no decodes.
        plan.grown = list(dict.fromkeys(sequence for sequence in plan.grown if sequence.row >= 0))
        if self.decodes:
            plan.decodes = self.decodes
        return plan

    def sort_waiting(self, key: Callable[[Sequence], tuple[int, ...]]) -> None:
        """Reorder the queue; for offline work, where no order was promised."""
        for sequence in sorted(self.waiting.values(), key=key):
            self.waiting.move_to_end(sequence.id)

    # What the engine calls

    def needs_tokens(self) -> bool:
        """The next plan may hang on the tokens of a step in flight, so that they must be collected first.

        It will preempt, which takes sequences whose every token is known, as they are computed again. Or a
        batch is over and its slots are released, which is when their last sequences have ended.
        """
        if self.slots.holds and not self.running:
            return True
        return len(self.decodes.crossing()) > self.kv.num_free

    def retire(self, sequence: Sequence) -> None:
        """Take a running sequence out of the batch for good; its blocks return, and its slot if none is held.

        They may be given away while a step is in flight that computes a token of the sequence: the device
        computes in order, so a step that is planned later writes later, and reads only what it or others
        have written since or what was full before. The slot's stay is noted when the request ends.
        """
        self._stop_running(sequence)
        self.slots.retire(sequence)

    def finish(self, sequence: Sequence, reason: EndReason, now: float) -> None:
        """End a request in any state; its blocks return in this step, and what is in flight of it is lost."""
        if sequence.id in self.running:
            self.retire(sequence)
        if sequence.slot < 0:
            self.waiting.pop(sequence.id, None)
        elif not self.slots.holds:
            self.slots.leave(sequence, now, now)
        self._end(sequence, reason, now)

    def check_integrity(self) -> None:
        """Assert what must hold between any two steps; for tests."""
        self.kv.check_integrity()
        self.slots.check_integrity(list(self.running.values()))
        if self.prefixes is not None:
            self.prefixes.check_integrity(self.running.values())
        owners: dict[int, int] = {}
        for sequence in self.running.values():
            for block in sequence.block_table:
                owners[block] = owners.get(block, 0) + 1
        for block in range(self.kv.num_blocks):
            assert self.kv.num_owners(block) == owners.get(block, 0), f"block {block} leaked or stolen"
        for sequence in self.waiting.values():
            assert not sequence.block_table
            assert sequence.num_output == len(sequence.record.token_times_s), "waits for its own token"
        members = self.decodes.members
        assert [member.row for member in members] == list(range(len(members)))
        assert self.decodes.context_sum == sum(self.decodes.num_computed(m) + 1 for m in members)
        for member in members:
            assert member.id in self.running
            assert len(member.block_table) >= self.kv.blocks_for(self.decodes.num_computed(member))
        # A sequence either decodes or has a prompt to compute, with blocks for all of it.
        decoding = {member.id for member in members}
        assert list(self.partial) == [i for i in self.running if i not in decoding]
        for sequence in self.partial.values():
            assert 0 < sequence.num_computed < sequence.num_tokens
            assert len(sequence.block_table) == self.kv.blocks_for(sequence.num_tokens)

    # Inside

    def _leave_decodes(self, sequence: Sequence) -> None:
        """Out of the group, with the tokens that were collected; one in flight does not count."""
        self.decodes.leave(sequence)
        record = sequence.record
        record.token_times_s += self.decode_end_s[sequence.joined_step : self.decodes.step]
        sequence.num_output = len(record.token_times_s)

    def _start(self, sequence: Sequence, now: float) -> None:
        del self.waiting[sequence.id]
        self.running[sequence.id] = sequence
        self.partial[sequence.id] = sequence
        self.slots.enter(sequence, now)
        sequence.status = Status.PREFILL
        # What a preempted sequence finds again it had computed itself; that saved nobody anything.
        if not sequence.record.num_preemptions:
            sequence.record.num_cached_tokens = sequence.num_computed

    def _preempt(self, sequence: Sequence, now: float) -> None:
        """Take everything from a sequence; what it had is computed again when it returns."""
        self._stop_running(sequence)
        self.slots.evict(sequence, now)
        record = sequence.record
        if sequence.num_lost:
            record.recomputed_at_s.append(now)
        record.preempted_at_s.append(now)
        sequence.num_lost = max(sequence.num_lost, sequence.num_computed)
        sequence.num_computed = 0
        record.num_preemptions += 1
        sequence.status = Status.WAITING
        self.waiting[sequence.id] = sequence
        self.waiting.move_to_end(sequence.id, last=False)

    def _stop_running(self, sequence: Sequence) -> None:
        if sequence.row >= 0:
            self._leave_decodes(sequence)
        self.partial.pop(sequence.id, None)
        if self.prefixes is not None:
            self.prefixes.leave(sequence)
        self.kv.release(sequence.block_table)
        sequence.block_table = []
        del self.running[sequence.id]

    def _end(self, sequence: Sequence, reason: EndReason, now: float) -> None:
        del self._live[sequence.id]
        sequence.status = Status.FINISHED
        sequence.num_output = len(sequence.record.token_times_s)
        sequence.record.end_reason = reason
        sequence.record.end_s = now
        self.ended.append(sequence)


def _at_most(num_tokens: int, chunk_size: int | None) -> int:
    return num_tokens if chunk_size is None else min(num_tokens, chunk_size)
