"""What graphs read: buffers that are made once, and filled for every step in one copy."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch
from torch import Tensor

from tunebatch.execute.torch.attention.base import KvCache, StepContext
from tunebatch.execute.torch.graphs.buckets import Bucket, Buckets
from tunebatch.execute.torch.graphs.pad import Layout, Step, lay_out
from tunebatch.execute.torch.staging import Ints, Staging

Packed = tuple[Tensor, Tensor, StepContext]


class StaticInputs:
    """The buffers of all buckets, of which one step at a time makes use.

    Block tables arrive as wide as their step needs them, and are spread on the device to rows as wide as the
    longest context needs: the width is the same in all launches, and no column travels for nothing.

    Args:
        cache: Whose blocks the tables name.
        max_context: Most tokens a sequence may have.
    """

    def __init__(self, buckets: Buckets, cache: KvCache, max_context: int, device: torch.device) -> None:
        self.layout = Layout.of(buckets, -(-max_context // cache.block_size))
        self._cache = cache
        self._max_context = max_context
        self._landed = torch.zeros(self.layout.size, dtype=torch.int64, device=device)
        self._tables = self._landed.new_zeros(self.layout.sequences, self.layout.columns)
        self._counting = torch.arange(self.layout.sequences + 1, device=device)
        self._staging = Staging(self.layout.size, device)

    def of(self, bucket: Bucket) -> Packed:
        """The step that a graph of the bucket is of: views of the buffers, with host values as large as any
        step's of the bucket."""
        full, at = bucket.shape, self.layout.starts
        lengths = (full.tokens, full.tokens, full.tokens, full.sampled, full.sequences + 1, full.sequences)
        parts = [self._landed[begin : begin + length] for begin, length in zip(at, lengths, strict=False)]
        tokens, positions, cache_slots, sampled_at, query_start, context_lens = parts
        step = StepContext(
            cache=self._cache,
            positions=positions,
            query_start=query_start,
            context_lens=context_lens,
            block_tables=self._tables[: full.sequences],
            cache_slots=cache_slots,
            slices=[(0, full.most_tokens, 0)] * full.slices,
            num_slice_tokens=full.slice_tokens,
            max_context_len=self._max_context,
            context_sum=self._max_context * full.sequences,
        )
        return tokens, sampled_at, step

    def fill(self, bucket: Bucket, step: Step, beside: SequenceOf[Ints] = ()) -> SequenceOf[Tensor]:
        """Lay a step out, padded, and take it to the device; waits for nothing but the copy before last.

        Args:
            beside: What travels with it, at most ``layout.beside`` numbers.

        Returns:
            That, on the device, until the next step is laid out.
        """
        out = self._staging.to_write(self.layout.size)
        rows = lay_out(out, self.layout, bucket, step)
        width, begin = step.tables.shape[1], self.layout.starts[-1]
        end = begin + rows * width
        sizes = [len(part) for part in beside]
        if beside:
            np.concatenate(beside, out=out[end : end + sum(sizes)])
        self._staging.send_to(self._landed, end + sum(sizes))
        self._tables[:rows, :width].copy_(self._landed[begin:end].view(rows, width))
        return self._landed[end : end + sum(sizes)].split(sizes)

    def take_over(self, step: StepContext, packed: Packed) -> None:
        """Copy a step of decodes, all of them sampled, from elsewhere on the device to what `of` gave; ids
        apart."""
        count, (_, sampled_at, own) = len(step.context_lens), packed
        own.query_start.copy_(self._counting[: len(own.query_start)])
        sampled_at.copy_(self._counting[: len(sampled_at)])
        own.positions[:count].copy_(step.positions)
        own.cache_slots[:count].copy_(step.cache_slots)
        own.cache_slots[count:].fill_(-1)
        own.context_lens[:count].copy_(step.context_lens)
        own.context_lens[count:].fill_(0)
        if step.block_tables.data_ptr() != own.block_tables.data_ptr():
            own.block_tables[:count, : step.block_tables.shape[1]].copy_(step.block_tables)
