"""The host's side of a step: block tables by batch slot, and the one copy that takes a step to the device."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunebatch.execute.torch.attention.base import KvCache, StepContext

Ints = NDArray[np.int64]
Packed = tuple[Tensor, Tensor, StepContext]


class Slots:
    """One row of block table per batch slot, so that a step gathers rows instead of visiting sequences.

    Args:
        cache: Whose blocks the tables name.
        max_context: Most tokens a sequence may have.
    """

    def __init__(self, cache: KvCache, max_slots: int, max_context: int, device: torch.device) -> None:
        self._cache = cache
        self._block_size = cache.block_size
        self._device = device
        self.tables: Ints = np.zeros((max_slots, -(-max_context // cache.block_size)), np.int64)
        self._taken: list[tuple[list[int], int]] = [([], 0)] * max_slots
        self._counting: Ints = np.arange(max(max_slots, 1024) + 1)
        self._staging = self._new_staging(1 << 14)

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

    def pack_decodes(self, slots: Ints, tokens: Ints, positions: Ints, context_sum: int) -> Packed:
        """Lay out one token of each slot."""
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
        return self._packed(parts, count, [], longest, context_sum)

    def pack(
        self,
        slots: Ints,
        starts: Ints,
        counts: Ints,
        tokens: Ints,
        sampled_at: Ints,
        num_slices: int,
        context_sum: int,
        room: int = 0,
    ) -> Packed:
        """Lay out ``counts[i]`` tokens of ``slots[i]`` from ``starts[i]`` on; slices first, then decodes.

        Args:
            tokens: All token ids, one sequence after the other.
            sampled_at: Rows of these whose logits are wanted.
            context_sum: KV tokens that the decodes attend to.
            room: Tokens beyond these that the block tables reach.
        """
        ends = np.cumsum(counts)
        first = ends - counts
        total = int(ends[-1])
        lens = starts + counts
        longest = int(lens.max())
        tables = self.tables[slots, : -(-(longest + room) // self._block_size)]
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
        return self._packed(parts, len(slots), slices, longest, context_sum)

    def _packed(
        self,
        parts: SequenceOf[Ints],
        rows: int,
        slices: list[tuple[int, int, int]],
        longest: int,
        context_sum: int,
    ) -> Packed:
        sizes = [len(part) for part in parts]
        total = sum(sizes)
        if total > len(self._staging):
            self._staging = self._new_staging(2 * total)
        np.concatenate(parts, out=self._staging.numpy()[:total])
        copied = self._staging[:total].to(self._device, non_blocking=True).split(sizes)
        tokens, positions, cache_slots, sampled_at, query_start, lens, tables = copied
        step = StepContext(
            cache=self._cache,
            positions=positions,
            query_start=query_start,
            context_lens=lens,
            block_tables=tables.view(rows, -1),
            cache_slots=cache_slots,
            slices=slices,
            num_slice_tokens=sum(count for _, count, _ in slices),
            max_context_len=longest,
            decode_context_sum=context_sum,
        )
        return tokens, sampled_at, step

    def _up_to(self, count: int) -> Ints:
        """``0, 1, ..., count``."""
        return self._counting[: count + 1]

    def _new_staging(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int64, pin_memory=self._device.type == "cuda")
