"""A request being served."""

from __future__ import annotations

import struct
from enum import Enum

from tunebatch.engine.prefix_cache import CachedBlock
from tunebatch.engine.records import RequestRecord
from tunebatch.engine.request import Request


class Status(Enum):
    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


class Sequence:
    """The state of one request between arrival and end.

    There is no phase in the arithmetic: a step computes some tokens from ``num_computed`` on.
    While the sequence is in the `DecodeGroup` its counters advance with the group, and
    ``num_computed`` and ``num_output`` hold the values at the time it joined.

    Attributes:
        num_computed: Tokens whose keys and values are in the KV cache.
        num_lost: Tokens that preemption took and that are not computed again yet; 0 when none are missing.
        num_output: Tokens generated so far.
        block_table: Pool indices of the blocks that hold tokens ``0, 1, 2, ...``.
        cached: The last of its leading blocks that others can share, while it runs with prefix caching.
        slot: Batch slot, or -1 while it has none.
        row: Place in the decode group, or -1 outside it.
        joined_step: Decode step of the group at which it joined.
        text: Prompt and output as characters, where a drafter searches them.
    """

    __slots__ = (
        "_block_tokens",
        "block_table",
        "cached",
        "joined_step",
        "num_computed",
        "num_lost",
        "num_output",
        "output",
        "record",
        "request",
        "row",
        "slot",
        "slot_since_s",
        "status",
        "text",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.status = Status.WAITING
        self.num_computed = 0
        self.num_lost = 0
        self.num_output = 0
        self.block_table: list[int] = []
        self.cached: CachedBlock | None = None
        self._block_tokens: list[bytes] = []
        self.slot = -1
        self.slot_since_s = 0.0
        self.row = -1
        self.joined_step = 0
        self.text: str | None = None
        self.record = RequestRecord(
            id=request.id,
            arrival_s=request.arrival_s,
            num_prompt_tokens=len(request.prompt),
            max_tokens=request.max_tokens,
        )
        self.output: list[int] = self.record.output

    @property
    def id(self) -> int:
        return self.request.id

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.request.prompt) + self.num_output

    @property
    def num_uncomputed(self) -> int:
        return self.num_tokens - self.num_computed

    def token_ids(self, start: int, count: int) -> list[int]:
        """Tokens ``start .. start + count`` of prompt and output together."""
        prompt = self.request.prompt
        end = start + count
        if end <= len(prompt):
            return list(prompt[start:end])
        if start >= len(prompt):
            return self.output[start - len(prompt) : end - len(prompt)]
        return [*prompt[start:], *self.output[max(0, start - len(prompt)) : end - len(prompt)]]

    def block_tokens(self, count: int, block_size: int) -> list[bytes]:
        """Tokens of the leading blocks, packed, a block an entry: at least the first ``count``, or as many
        as are full of known tokens. Made once; the caller must not change it."""
        made = self._block_tokens
        if not made:
            made += _blocks(self.request.packed, block_size)
        if len(made) < count:
            # An executor that computes no tokens leaves the output behind its count.
            known = len(self.request.prompt)
            if len(self.output) >= self.num_output:
                known += len(self.output)
            first = len(made) * block_size
            tokens = self.token_ids(first, min(count * block_size, known) - first)
            made += _blocks(struct.pack(f"<{len(tokens)}I", *tokens), block_size)
        return made

    def __repr__(self) -> str:
        return f"Sequence({self.id}, {self.status.value}, computed={self.num_computed}/{self.num_tokens})"


def _blocks(packed: bytes, block_size: int) -> tuple[bytes, ...]:
    """The full blocks of packed tokens: in C throughout, as a request's first lookup pays for it."""
    size = 4 * block_size
    return struct.unpack_from(f"{size}s" * (len(packed) // size), packed)
