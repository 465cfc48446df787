"""The host's side of a step: block tables by batch slot, and the one copy that takes a step to the device."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch
from torch import Tensor

from tunebatch.execute.torch.attention.base import KvCache, StepContext
from tunebatch.execute.torch.graphs.buckets import Shape
from tunebatch.execute.torch.graphs.graphs import Graphs
from tunebatch.execute.torch.graphs.pad import Step
from tunebatch.execute.torch.staging import Ints, Staging

Packed = tuple[Tensor, Tensor, StepContext]


class Slots:
    """One row of block table per batch slot, so that a step gathers rows instead of visiting sequences.

    Args:
        cache: Whose blocks the tables name.
        max_context: Most tokens a sequence may have.

    Attributes:
        graphs: Of the steps that are laid out where a graph reads them.
    """

    def __init__(self, cache: KvCache, max_slots: int, max_context: int, device: torch.device) -> None:
        self._cache = cache
        self._block_size = cache.block_size
        self.tables: Ints = np.zeros((max_slots, -(-max_context // cache.block_size)), np.int64)
        self._taken: list[tuple[list[int], int]] = [([], 0)] * max_slots
        self._counting: Ints = np.arange(max(max_slots, 1024) + 1)
        self._staging = Staging(1 << 14, device)
        self.graphs: Graphs | None = None

    def reset(self) -> None:
        """Forget all tables."""
        self._taken = [([], 0)] * len(self._taken)

    def take(self, slot: int, block_table: list[int]) -> bool:
        """Note the block table of the sequence in a slot; whether it is another one than before.

        A table only grows while its sequence runs, so of one that is known only the end is new.
        """
        known, count = self._taken[slot]
        same = known is block_table and count <= len(block_table)
        if not same:
            count = 0
        if count < len(block_table):
            self.tables[slot, count : len(block_table)] = block_table[count:]
            self._taken[slot] = (block_table, len(block_table))
        return not same

    def pack_decodes(
        self, slots: Ints, tokens: Ints, positions: Ints, beside: SequenceOf[Ints] = ()
    ) -> tuple[Packed, SequenceOf[Tensor]]:
        """Lay out one token of each slot; ``beside`` as of `pack`."""
        count = len(slots)
        lens = positions + 1
        longest = int(lens.max())
        tables = self.tables[slots, : -(-longest // self._block_size)]
        counting = self._up_to(count)
        blocks = tables[counting[:-1], positions // self._block_size]
        parts = (
            tokens,
            positions,
            blocks * self._block_size + positions % self._block_size,
            counting[:-1],
            counting,
            lens,
            tables.ravel(),
        )
        return self._packed(parts, lens, [], beside)

    def pack(
        self,
        slots: Ints,
        starts: Ints,
        counts: Ints,
        tokens: Ints,
        sampled_at: Ints,
        num_slices: int,
        steps_after: int = 0,
        beside: SequenceOf[Ints] = (),
    ) -> tuple[Packed, SequenceOf[Tensor]]:
        """Lay out ``counts[i]`` tokens of ``slots[i]`` from ``starts[i]`` on; slices first, then decodes.

        Args:
            tokens: All token ids, one sequence after the other.
            sampled_at: Rows of these whose logits are wanted.
            steps_after: Steps of one token of each slot that follow this one.
            beside: What travels in the same copy.

        Returns:
            The step, and what was ``beside`` it, on the device until the next step is laid out; of
            ``steps_after``, if there are any, last their positions, cache slots and context lengths,
            ``[steps_after, 3, rows]`` in one row.
        """
        ends = np.cumsum(counts)
        first = ends - counts
        total = int(ends[-1])
        lens = starts + counts
        longest = int(lens.max())
        tables = self.tables[slots, : -(-(longest + steps_after) // self._block_size)]
        positions = np.arange(total) + np.repeat(starts - first, counts)
        owner = np.repeat(np.arange(len(slots)), counts)
        blocks = tables[owner, positions // self._block_size]
        parts = (
            tokens,
            positions,
            blocks * self._block_size + positions % self._block_size,
            sampled_at,
            np.concatenate([np.zeros(1, np.int64), ends]),
            lens,
            tables.ravel(),
        )
        slices = [(int(first[i]), int(counts[i]), int(starts[i])) for i in range(num_slices)]
        if steps_after:
            then = lens + np.arange(steps_after)[:, None]
            blocks = tables[np.arange(len(slots)), then // self._block_size]
            cache_slots = blocks * self._block_size + then % self._block_size
            beside = [*beside, np.stack([then, cache_slots, then + 1], 1).ravel()]
        return self._packed(parts, lens, slices, beside)

    def _packed(
        self,
        parts: SequenceOf[Ints],
        context_lens: Ints,
        slices: list[tuple[int, int, int]],
        beside: SequenceOf[Ints],
    ) -> tuple[Packed, SequenceOf[Tensor]]:
        if self.graphs is not None and (staged := self.graphs.stage(_step(parts, slices), beside)):
            return staged
        copied = self._copied([*parts, *beside])
        tokens, positions, cache_slots, sampled_at, query_start, lens, tables = copied[:7]
        step = StepContext(
            cache=self._cache,
            positions=positions,
            query_start=query_start,
            context_lens=lens,
            block_tables=tables.view(len(context_lens), -1),
            cache_slots=cache_slots,
            slices=slices,
            num_slice_tokens=sum(count for _, count, _ in slices),
            max_context_len=int(context_lens.max()),
            context_sum=int(context_lens.sum()),
            host_lens=context_lens,
        )
        return (tokens, sampled_at, step), copied[7:]

    def _copied(self, parts: SequenceOf[Ints]) -> SequenceOf[Tensor]:
        """On the device, in one copy."""
        sizes = [len(part) for part in parts]
        total = sum(sizes)
        np.concatenate(parts, out=self._staging.to_write(total))
        return self._staging.send(total).split(sizes)

    def _up_to(self, count: int) -> Ints:
        """``0, 1, ..., count``."""
        return self._counting[: count + 1]


def _step(parts: SequenceOf[Ints], slices: list[tuple[int, int, int]]) -> Step:
    tokens, positions, cache_slots, sampled_at, query_start, context_lens, tables = parts
    shape = Shape(
        slices=len(slices),
        slice_tokens=sum(count for _, count, _ in slices),
        most_tokens=max((count for _, count, _ in slices), default=0),
        decodes=len(context_lens) - len(slices),
        sampled=len(sampled_at),
    )
    tables = tables.reshape(len(context_lens), -1)
    return Step(shape, tokens, positions, cache_slots, sampled_at, query_start, context_lens, tables)
