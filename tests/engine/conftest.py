"""A fake executor that checks every plan against a model of KV memory, and ways to run it.

The fixture ``kit`` hands these out, so that test files need no import path to this one.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from functools import lru_cache
from types import SimpleNamespace
from zlib import crc32

import pytest

from tunebatch.engine.clock import Clock, VirtualClock
from tunebatch.engine.engine import Engine, RequestSource
from tunebatch.engine.plan import Slice, StepOutput, StepPlan
from tunebatch.engine.policies.base import Policy
from tunebatch.engine.records import RequestRecord, RunRecord
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence

EOS = 0
VOCABULARY = 17
MOST_DRAFTS = 8

Duration = Callable[[StepPlan], float | None]


@lru_cache(maxsize=4096)
def contents(request: Request) -> tuple[list[int], list[int]]:
    """All tokens of prompt and output, and what the KV cache holds at the position of each: a value of
    every token up to there, from which the next token follows, as in a greedy model."""
    told, held, value = list(request.prompt), [], 0
    for position in range(len(request.prompt) + request.max_tokens):
        if position == len(told):
            told.append(value % VOCABULARY)
        value = crc32(f"{value}:{told[position]}".encode())
        held.append(value)
    return told, held


def expected_output(request: Request) -> list[int]:
    """What a request must produce whatever the strategy, preemptions and batches."""
    output = contents(request)[0][len(request.prompt) :]
    if EOS in output and not request.ignore_eos:
        return output[: output.index(EOS) + 1]
    return output


def make_request(
    request_id: int,
    num_prompt: int = 4,
    max_tokens: int = 4,
    arrival_s: float = 0.0,
    cancel_at_s: float | None = None,
    ignore_eos: bool = True,
) -> Request:
    prompt = tuple(100 + request_id * 1000 + i for i in range(num_prompt))
    return Request(request_id, prompt, max_tokens, arrival_s, cancel_at_s, ignore_eos=ignore_eos)


def unit_steps(plan: StepPlan) -> float | None:
    return 1.0


class FakeExecutor:
    """Computes fake tokens, and asserts that a real executor could have computed real ones.

    It writes what `contents` says into a model of KV memory through the block tables and reads every
    context back, so a block that was freed, shared or skipped by mistake is noticed.
    """

    eos_token_ids = frozenset({EOS})

    def __init__(
        self,
        num_blocks: int = 64,
        block_size: int = 4,
        max_slots: int = 64,
        max_context: int = 4096,
        duration: Duration = unit_steps,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_slots = max_slots
        self.max_context = max_context
        self._duration = duration
        self.drafter = FakeDrafter(block_size)
        self.plans: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        self.reset()

    def reset(self) -> None:
        self._memory: dict[tuple[int, int], int] = {}
        self._tables: dict[int, list[int]] = {}
        self._seen: dict[int, Sequence] = {}

    def execute(self, plan: StepPlan) -> StepOutput:
        members = [] if plan.decodes is None else list(plan.decodes.members)
        pieces = [piece.sequence for piece in plan.slices]
        assert members or pieces, "an empty step"
        working = [sequence.id for sequence in [*pieces, *members]]
        assert len(set(working)) == len(working), "a sequence is twice in one step"
        self.plans.append((tuple(s.id for s in pieces), tuple(s.id for s in members)))
        for sequence in [*pieces, *members]:
            self._seen[sequence.id] = sequence
        self._check_ownership()
        slice_tokens = [self._slice(piece) for piece in plan.slices]
        decode_tokens = [self._decode(plan, member) for member in members]
        grown = [s.id for s in members if s.block_table != self._tables[s.id]]
        assert sorted(s.id for s in plan.grown) == sorted(grown), "`grown` is not what grew"
        for sequence in [*pieces, *members]:
            self._tables[sequence.id] = list(sequence.block_table)
        return StepOutput(slice_tokens, decode_tokens if members else None, self._duration(plan))

    def _check_ownership(self) -> None:
        self._seen = {i: sequence for i, sequence in self._seen.items() if sequence.block_table}
        self._owners = Counter(block for s in self._seen.values() for block in s.block_table)
        assert all(0 <= block < self.num_blocks for block in self._owners)
        for sequence in self._seen.values():
            for index, block in enumerate(sequence.block_table):
                if self._owners[block] > 1:
                    self._check_shared(sequence, index, block)
        slots = [s.slot for s in self._seen.values()]
        assert len(set(slots)) == len(slots) and all(0 <= slot < self.max_slots for slot in slots)

    def _check_shared(self, sequence: Sequence, index: int, block: int) -> None:
        """Of what it has in a shared block, every sequence could have computed every token itself."""
        _, held = contents(sequence.request)
        first = index * self.block_size
        for offset, value in enumerate(held[first : first + self.block_size]):
            assert self._memory.get((block, offset)) == value, "shared by sequences that differ"

    def _slice(self, piece: Slice) -> list[int]:
        sequence, start, num_tokens = piece.sequence, piece.start, piece.num_tokens
        assert start == sequence.num_computed, "a slice skips or repeats tokens"
        assert num_tokens >= 1
        if piece.draft_tokens:
            return self._verify(piece)
        assert piece.sample == (start + num_tokens == sequence.num_tokens), "not the last chunk samples"
        told, _ = contents(sequence.request)
        assert sequence.token_ids(start, num_tokens) == told[start : start + num_tokens]
        for position in range(start, start + num_tokens):
            self._write(sequence, position)
        self._read_back(sequence, start + num_tokens)
        return [told[start + num_tokens]] if piece.sample else []

    def _verify(self, piece: Slice) -> list[int]:
        sequence, start, drafts = piece.sequence, piece.start, piece.draft_tokens
        told, held = contents(sequence.request)
        assert piece.sample and piece.num_tokens == 1 + len(drafts)
        assert start + 1 == len(sequence.request.prompt) + len(sequence.output) == sequence.num_tokens
        assert len(sequence.output) + len(drafts) < sequence.request.max_tokens, "drafts that nobody wants"
        self._write(sequence, start)
        value, accepted = held[start], 0
        for position, draft in enumerate(drafts, start + 1):
            value = crc32(f"{value}:{draft}".encode())
            self._write(sequence, position, value)
            accepted += accepted == position - start - 1 and draft == told[position]
        self._read_back(sequence, start + 1 + accepted)
        return told[start + 1 : start + accepted + 2]

    def _decode(self, plan: StepPlan, member: Sequence) -> int:
        assert plan.decodes is not None
        computed = plan.decodes.num_computed(member)
        before = self._tables[member.id]
        assert member.block_table[: len(before)] == before, "a table lost or changed a block"
        assert len(member.block_table) <= len(before) + 1 + MOST_DRAFTS
        assert len(member.output) + self._num_unread(member) + len(member.request.prompt) == computed + 1
        self._write(member, computed)
        self._read_back(member, computed + 1)
        return contents(member.request)[0][computed + 1]

    def _num_unread(self, sequence: Sequence) -> int:
        """Tokens of the sequence that are sampled and not handed out."""
        return 0

    def _write(self, sequence: Sequence, position: int, value: int | None = None) -> None:
        index, offset = divmod(position, self.block_size)
        assert index < len(sequence.block_table), "the block table does not cover the tokens to compute"
        block = sequence.block_table[index]
        assert self._owners[block] == 1, "a shared block is written"
        self._memory[block, offset] = contents(sequence.request)[1][position] if value is None else value

    def _read_back(self, sequence: Sequence, num_tokens: int) -> None:
        for position, value in enumerate(contents(sequence.request)[1][:num_tokens]):
            index, offset = divmod(position, self.block_size)
            held = self._memory.get((sequence.block_table[index], offset))
            assert held == value, f"KV of {sequence.id}@{position} is of other tokens"


class LateExecutor(FakeExecutor):
    """Computes a step when it is submitted, and hands out its tokens when these are collected."""

    overlaps = True

    def reset(self) -> None:
        super().reset()
        self._in_flight: deque[tuple[StepOutput, set[int]]] = deque()

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    def execute(self, plan: StepPlan) -> StepOutput:
        return self.collect(self.submit(plan))

    def submit(self, plan: StepPlan) -> tuple[StepOutput, set[int]]:
        assert self.num_in_flight <= 1, "the tokens of the step before last were not collected"
        sampling = {piece.sequence.id for piece in plan.slices if piece.sample}
        sampling |= set() if plan.decodes is None else {member.id for member in plan.decodes.members}
        step = (super().execute(plan), sampling)
        self._in_flight.append(step)
        return step

    def collect(self, handle: tuple[StepOutput, set[int]]) -> StepOutput:
        assert handle is self._in_flight.popleft(), "not the oldest step was collected"
        return handle[0]

    def _num_unread(self, sequence: Sequence) -> int:
        return sum(sequence.id in sampling for _, sampling in self._in_flight)


class FakeDrafter:
    """Guesses some tokens right and others wrong, and at times none; asserts that a model could draft."""

    num_computed = num_reused = 0

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size

    def reset(self) -> None:
        pass

    def propose(
        self, wanted: SequenceOf[tuple[Sequence, int]], generation: SequenceOf[int]
    ) -> list[list[int]]:
        return [self._guess(sequence, count) for sequence, count in wanted]

    def _guess(self, sequence: Sequence, count: int) -> list[int]:
        told, _ = contents(sequence.request)
        known = len(sequence.request.prompt) + len(sequence.output)
        assert 1 <= count <= MOST_DRAFTS and sequence.slot >= 0
        assert (known + count) <= len(sequence.block_table) * self._block_size, "no blocks for the drafts"
        luck = crc32(f"{sequence.id}:{known}".encode())
        wrong = {known + place for place in (luck % 3, luck % 5, luck % 11)}
        ahead = range(known, known + luck % (count + 1))
        return [told[position] + (position in wrong) for position in ahead]


class ListSource:
    """Requests that arrive when they say, whatever becomes of the others."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = sorted(requests, key=lambda request: (request.arrival_s, request.id))
        self._next = 0
        self.ended: list[int] = []

    def add(self, request: Request) -> None:
        """One that arrives no sooner than all others."""
        self._requests.append(request)

    def next_arrival_s(self) -> float | None:
        return self._requests[self._next].arrival_s if self._next < len(self._requests) else None

    def take(self, now_s: float) -> list[Request]:
        first = self._next
        while self._next < len(self._requests) and self._requests[self._next].arrival_s <= now_s:
            self._next += 1
        return self._requests[first : self._next]

    def finished(self, record: RequestRecord, now_s: float) -> None:
        self.ended.append(record.id)


def make_engine(
    policy: Policy,
    requests: Iterable[Request] | RequestSource,
    executor: FakeExecutor | None = None,
    clock: Clock | None = None,
    prefix_caching: bool = False,
) -> Engine:
    source = requests if hasattr(requests, "next_arrival_s") else ListSource(requests)
    return Engine(
        executor or FakeExecutor(), policy, source, clock or VirtualClock(), prefix_caching=prefix_caching
    )


def serve(
    policy: Policy,
    requests: Iterable[Request] | RequestSource,
    executor: FakeExecutor | None = None,
    clock: Clock | None = None,
    prefix_caching: bool = False,
) -> RunRecord:
    return make_engine(policy, requests, executor, clock, prefix_caching).run()


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    return SimpleNamespace(
        EOS=EOS,
        Executor=FakeExecutor,
        LateExecutor=LateExecutor,
        Source=ListSource,
        engine=make_engine,
        expected_output=expected_output,
        request=make_request,
        serve=serve,
    )
