"""The fast backend where there is no kernel of our own: SDPA on gathered blocks, heads packed into rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tunebatch.execute.torch.attention.base import Pools, StepContext, Variant, pools_by_token, write
from tunebatch.execute.torch.attention.reference import Reference
from tunebatch.execute.torch.attention.slices import attend_slice


class Packed:
    """Decodes are one padded batch over gathered blocks; a prompt is one SDPA of its own."""

    name = "packed"

    def new_pools(self, key: Tensor, value: Tensor, num_blocks: int, block_size: int) -> Pools:
        return pools_by_token(key, value, num_blocks, block_size)

    def __init__(self) -> None:
        self._reference = Reference()

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, variant: Variant, step: StepContext
    ) -> Tensor:
        if variant.sinks is not None or variant.softcap is not None:
            return self._reference.attend(query, key, value, layer, variant, step)
        out = query.new_empty(query.shape[0], query.shape[1], value.shape[-1])
        pools = write(key, value, layer, step)
        for index, (first, count, start) in enumerate(step.slices):
            rows = slice(first, first + count)
            k, v = key[rows], value[rows]
            if start:
                blocks = step.block_tables[index, : -(-(start + count) // step.cache.block_size)]
                k, v = (pool[blocks].flatten(0, 1)[: start + count] for pool in pools)
            out[rows] = attend_slice(query[rows], k, v, variant)
        if step.num_slice_tokens < len(query):
            rows = slice(step.num_slice_tokens, None)
            out[rows] = _padded_decode(query[rows], pools, step, variant)
        return out


def _padded_decode(
    query: Tensor, pools: tuple[Tensor, Tensor], step: StepContext, variant: Variant
) -> Tensor:
    """All decodes as one batch padded to the longest, query heads packed into rows (GQA)."""
    tables = step.block_tables[step.num_slices :]
    tables = tables[:, : -(-step.max_context_len // step.cache.block_size)]
    k, v = (pool[tables].flatten(1, 2).transpose(1, 2) for pool in pools)
    mask = step.masks.get(variant.window)
    if mask is None:
        lens = step.context_lens[step.num_slices :, None]
        position = torch.arange(k.shape[2], device=query.device)[None, :]
        mask = position < lens
        if variant.window is not None:
            mask &= position >= lens - variant.window
        mask = step.masks.setdefault(variant.window, mask[:, None, None, :])
    q = query.view(len(query), k.shape[1], -1, query.shape[-1])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=variant.scale).flatten(1, 2)
