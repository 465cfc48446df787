"""Who waits, who runs and who owns which blocks: the mechanics that all policies share.

A policy decides; everything that must be done alike under every policy (allocating blocks,
preempting, ending a request, accounting for slots) is here, once.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable

from tunebatch.engine.blocks import BlockPool
from tunebatch.engine.group import DecodeGroup
from tunebatch.engine.plan import Slice, StepPlan
from tunebatch.engine.prefix_cache import CachedBlock, Computing, PrefixCache
from tunebatch.engine.records import EndReason, RequestRecord
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence, Status
from tunebatch.engine.speculation.speculator import Speculator

# Part of the pool that admission leaves free for the sequences that already run, so that a new
# prompt is not admitted only to be preempted by the next block that they need (vLLM's watermark).
ADMISSION_WATERMARK = 0.01
# A request waits for blocks that another prompt is just computing, if there are so many that it shares.
LEAST_AWAITED_BLOCKS = 2


class Queues:
    """The state that a policy plans from.

    Args:
        num_blocks: KV blocks in the pool.
        block_size: Tokens per block.
        num_slots: Batch slots, the most sequences that may run at once.
        max_context: Most tokens a sequence may have.
        holds_slots: A finished sequence keeps its slot until `release_held` (static batching).
        prefix_caching: Full blocks keep their content, and prompts that begin with it share them.
        speculator: Drafts tokens for sequences that decode.

    Attributes:
        waiting: Requests not admitted, oldest first; a preempted one is first.
        running: Admitted sequences in order of admission, the newest last.
        partial: Those of them whose prompt is not wholly computed or planned, in the same order.
        prefixes: The blocks that prompts to come may share; None without prefix caching.
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
        self.prefixes = PrefixCache(self.kv) if prefix_caching else None
        self._computing = Computing()
        self.decodes = DecodeGroup(block_size)
        self.waiting: OrderedDict[int, Sequence] = OrderedDict()
        self.running: OrderedDict[int, Sequence] = OrderedDict()
        self.partial: dict[int, Sequence] = {}
        self.arrivals_open = True
        self.records: list[RequestRecord] = []
        self.decode_end_s: list[float] = []
        self.occupancy: list[tuple[int, int, float, float, float]] = []
        self.ended: list[Sequence] = []
        self._max_context = max_context
        self._watermark = int(num_blocks * ADMISSION_WATERMARK)
        self.num_slots = num_slots
        self._free_slots = list(range(num_slots))
        self._holds_slots = holds_slots
        self._held: list[Sequence] = []
        self._admitted: list[Sequence] = []
        self._cancellations: list[tuple[float, int]] = []
        self._live: dict[int, Sequence] = {}
        self._speculator = speculator

    @property
    def num_held(self) -> int:
        """Slots that a sequence occupies or occupied until its batch ends."""
        return len(self.running) + len(self._held)

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
        self, now: float, limit: int, token_budget: int, chunk_size: int | None = None
    ) -> list[Slice]:
        """Chunks of the prompts that have begun, and of waiting requests, admitted in order.

        Stops at ``limit`` requests, at the first that has no slot or no blocks, or before the one
        whose chunk would exceed ``token_budget``; a single chunk larger than the budget goes alone.
        Every prompt that has begun gets a chunk: none of its chunks is larger than the one before, so
        those that fitted into a step still do.

        Args:
            chunk_size: Most tokens of a prompt; by default all of it.
        """
        slices: list[Slice] = []
        for sequence in list(self.partial.values()):
            num_tokens = _at_most(sequence.num_uncomputed, chunk_size)
            slices.append(self.chunk(sequence, num_tokens))
            token_budget -= num_tokens
        while len(slices) < limit and (oldest := self.oldest_waiting) is not None:
            if slices and _at_most(self.num_to_compute(oldest), chunk_size) > token_budget:
                break
            if not self.admit(now):
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
        if sequence is None or not self._free_slots:
            return False
        hit = self._hit(sequence)
        if hit is not None and self._is_computed(sequence, hit):
            return False
        shared = [] if hit is None else hit.path()
        num_blocks = self.kv.blocks_for(sequence.num_tokens) - len(shared)
        reserve = self._watermark if self.running else 0
        if num_blocks + self.kv.num_idle(shared) + reserve > self.kv.num_free:
            return False
        # Shared first: allocating may evict what is idle.
        for block in shared:
            self.kv.share(block)
        sequence.block_table = shared + self.kv.allocate(num_blocks)
        sequence.cached = hit
        sequence.num_computed = len(shared) * self.kv.block_size
        self._start(sequence, now)
        return True

    def num_to_compute(self, sequence: Sequence) -> int:
        """Tokens that a waiting request would have to compute if it were admitted now."""
        hit = self._hit(sequence)
        return sequence.num_tokens - (0 if hit is None else hit.depth * self.kv.block_size)

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
        table_full = self.kv.blocks_for
        for sequence in self.decodes.crossing():
            self.cache_blocks(sequence)
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
        if self._speculator is not None and self.decodes:
            self._draft(plan, self._speculator)
        # A later preemption may have hit a sequence that had just grown, and drafts are no decodes.
        plan.grown = list(dict.fromkeys(sequence for sequence in plan.grown if sequence.row >= 0))
        if self.decodes:
            plan.decodes = self.decodes
        return plan

    def release_held(self, now: float) -> None:
        """The batch is over: free the slots that its finished sequences kept."""
        for sequence in self._held:
            heapq.heappush(self._free_slots, sequence.slot)
            self._leave_slot(sequence, sequence.record.end_s, now)
        self._held.clear()

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
        if self._holds_slots and not self.running:
            return True
        return len(self.decodes.crossing()) > self.kv.num_free

    def begin(self, start_s: float) -> None:
        """The step that was planned last begins; those that it admits hold their slots from now on."""
        for sequence in self._admitted:
            sequence.slot_since_s = start_s
            if sequence.record.first_scheduled_s is None:
                sequence.record.first_scheduled_s = start_s
        self._admitted.clear()

    def retire(self, sequence: Sequence) -> None:
        """Take a running sequence out of the batch for good; its blocks return, and its slot if none is held.

        They may be given away while a step is in flight that computes a token of the sequence: the device
        computes in order, so a step that is planned later writes later, and reads only what it or others
        have written since or what was full before. The slot's stay is noted when the request ends.
        """
        self._stop_running(sequence)
        if self._holds_slots:
            self._held.append(sequence)
        else:
            heapq.heappush(self._free_slots, sequence.slot)

    def finish(self, sequence: Sequence, reason: EndReason, now: float) -> None:
        """End a request in any state; its blocks return in this step, and what is in flight of it is lost."""
        if sequence.id in self.running:
            self.retire(sequence)
        if sequence.slot < 0:
            self.waiting.pop(sequence.id, None)
        elif not self._holds_slots:
            self._leave_slot(sequence, now, now)
        self._end(sequence, reason, now)

    def cache_blocks(self, sequence: Sequence) -> None:
        """Let prompts to come share the blocks that a running sequence has filled."""
        if self.prefixes is None or sequence.cached is None:
            return
        tokens, count = self._filled(sequence)
        sequence.cached = self.prefixes.extend(sequence.cached, tokens, count, sequence.block_table)
        if sequence.id in self._computing:
            if sequence.num_uncomputed:
                self._computing.announce(sequence.id, sequence.cached, tokens)
            else:
                self._computing.forget(sequence.id)

    def check_integrity(self) -> None:
        """Assert what must hold between any two steps; for tests."""
        self.kv.check_integrity()
        if self.prefixes is not None:
            self.prefixes.check_integrity()
        owners: dict[int, int] = {}
        for sequence in self.running.values():
            for block in sequence.block_table:
                owners[block] = owners.get(block, 0) + 1
            if sequence.cached is not None:
                assert sequence.cached.path() == sequence.block_table[: sequence.cached.depth]
        for block in range(self.kv.num_blocks):
            assert self.kv.num_owners(block) == owners.get(block, 0), f"block {block} leaked or stolen"
        for sequence in self.waiting.values():
            assert not sequence.block_table
            assert sequence.num_output == len(sequence.record.token_times_s), "waits for its own token"
        slots = [s.slot for s in self.running.values()] + [s.slot for s in self._held]
        assert len(set(slots)) == len(slots) and not set(slots) & set(self._free_slots)
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

    def _draft(self, plan: StepPlan, speculator: Speculator) -> None:
        """Add verifications of those members that have drafts."""
        depth = speculator.depth(len(self.decodes))
        if depth == 0:
            return
        members = self.decodes.members
        wanted = [(member, count) for member in members if (count := self._room(plan, member, depth)) > 0]
        proposed = speculator.propose(wanted, self.kv.generation)
        for (sequence, _), drafts in zip(wanted, proposed, strict=True):
            if drafts:
                self._leave_decodes(sequence)
                plan.slices.append(speculator.verification(sequence, tuple(drafts)))

    def _room(self, plan: StepPlan, member: Sequence, depth: int) -> int:
        """How many drafts a member can use, with blocks for them where no other will soon want these."""
        computed = self.decodes.num_computed(member)
        made = computed - member.num_computed
        count = min(depth, member.request.max_tokens - member.num_output - made - 1)
        table = member.block_table
        missing = self.kv.blocks_for(computed + 1 + count) - len(table)
        if missing <= 0:
            return count
        if missing + len(self.decodes) > self.kv.num_free:
            return len(table) * self.kv.block_size - computed - 1
        table += self.kv.allocate(missing)
        plan.grown.append(member)
        return count

    def _leave_decodes(self, sequence: Sequence) -> None:
        """Out of the group, with the tokens that were collected; one in flight does not count."""
        self.decodes.leave(sequence)
        record = sequence.record
        record.token_times_s += self.decode_end_s[sequence.joined_step : self.decodes.step]
        sequence.num_output = len(record.token_times_s)

    def _hit(self, sequence: Sequence) -> CachedBlock | None:
        """The end of what is cached of a sequence's tokens; None without prefix caching.

        The last token is never a hit, since what follows it is sampled from its logits. Its whole block is
        computed again then, in a block of its own: a shared one is never written.
        """
        if self.prefixes is None:
            return None
        count = (sequence.num_tokens - 1) // self.kv.block_size
        return self.prefixes.lookup(sequence.block_tokens(count, self.kv.block_size), count)

    def _is_computed(self, sequence: Sequence, hit: CachedBlock) -> bool:
        """Another prompt computes much of what comes after the hit."""
        count = (sequence.num_tokens - 1) // self.kv.block_size
        blocks = sequence.block_tokens(count, self.kv.block_size)
        return self._computing.num_alike(hit, blocks, count) >= LEAST_AWAITED_BLOCKS

    def _filled(self, sequence: Sequence) -> tuple[list[bytes], int]:
        """Tokens of a sequence's blocks, and how many of those blocks are computed to their end."""
        computed = self.decodes.num_computed(sequence) if sequence.row >= 0 else sequence.num_computed
        count = computed // self.kv.block_size
        tokens = sequence.block_tokens(count, self.kv.block_size)
        return tokens, min(count, len(tokens))

    def _start(self, sequence: Sequence, now: float) -> None:
        del self.waiting[sequence.id]
        self.running[sequence.id] = sequence
        self.partial[sequence.id] = sequence
        sequence.slot = heapq.heappop(self._free_slots)
        sequence.slot_since_s = now
        self._admitted.append(sequence)
        sequence.status = Status.PREFILL
        if sequence.cached is not None:
            blocks = sequence.block_tokens(sequence.num_tokens // self.kv.block_size, self.kv.block_size)
            self._computing.announce(sequence.id, sequence.cached, blocks)
        # What a preempted sequence finds again it had computed itself; that saved nobody anything.
        if not sequence.record.num_preemptions:
            sequence.record.num_cached_tokens = sequence.num_computed

    def _preempt(self, sequence: Sequence, now: float) -> None:
        """Take everything from a sequence; what it had is computed again when it returns."""
        self._stop_running(sequence)
        heapq.heappush(self._free_slots, sequence.slot)
        self._leave_slot(sequence, now, now)
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
        self._computing.forget(sequence.id)
        if self.prefixes is not None and sequence.cached is not None:
            tokens, count = self._filled(sequence)
            self.prefixes.settle(sequence.cached, tokens, count, sequence.block_table)
            sequence.cached = None
        self.kv.release(sequence.block_table)
        sequence.block_table = []
        del self.running[sequence.id]

    def _leave_slot(self, sequence: Sequence, end_s: float, held_until_s: float) -> None:
        self.occupancy.append((sequence.slot, sequence.id, sequence.slot_since_s, end_s, held_until_s))
        sequence.slot = -1

    def _end(self, sequence: Sequence, reason: EndReason, now: float) -> None:
        del self._live[sequence.id]
        sequence.status = Status.FINISHED
        sequence.num_output = len(sequence.record.token_times_s)
        sequence.record.end_reason = reason
        sequence.record.end_s = now
        self.ended.append(sequence)


def _at_most(num_tokens: int, chunk_size: int | None) -> int:
    return num_tokens if chunk_size is None else min(num_tokens, chunk_size)


def why_never_fits(request: Request, num_blocks: int, block_size: int, max_context: int) -> str | None:
    """Say why a request could not be served even alone, or None if it can."""
    total = len(request.prompt) + request.max_tokens
    if total > max_context:
        return (
            f"request {request.id}: {len(request.prompt)} prompt + {request.max_tokens} output tokens "
            f"exceed the context of {max_context}"
        )
    # The last token is only returned, so its keys and values are never stored.
    if -(-(total - 1) // block_size) > num_blocks:
        return (
            f"request {request.id}: {total} tokens do not fit into a KV cache of "
            f"{num_blocks} blocks of {block_size}"
        )
    return None
