"""Gather and attend, one sequence at a time: slow, obviously right."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tunebatch.execute.torch.attention.base import Pools, StepContext, Variant, pools_by_token, write


class Reference:
    """Works on any device and honours every `Variant`; what the other backends are tested against.

    Of tokens that only pad, see `base.StepContext`, nothing is written, and they are given zeros.
    """

    name = "reference"

    def new_pools(self, key: Tensor, value: Tensor, num_blocks: int, block_size: int) -> Pools:
        return pools_by_token(key, value, num_blocks, block_size)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, variant: Variant, step: StepContext
    ) -> Tensor:
        there = step.cache_slots >= 0
        real = replace(step, cache_slots=step.cache_slots[there])
        keys, values = write(key[there], value[there], layer, real)
        starts = step.query_start.tolist()
        out = query.new_zeros(query.shape[0], query.shape[1], value.shape[-1])
        for i, context_len in enumerate(step.context_lens.tolist()):
            if not context_len:
                continue
            rows = slice(starts[i], starts[i + 1])
            blocks = step.block_tables[i, : -(-context_len // step.cache.block_size)]
            k, v = (pool[blocks].flatten(0, 1)[:context_len] for pool in (keys, values))
            out[rows] = attend_one(query[rows], k, v, variant)
        return out


def attend_one(query: Tensor, key: Tensor, value: Tensor, variant: Variant) -> Tensor:
    """The last ``len(query)`` tokens of a sequence attend to all of it, causally.

    ``query [queries, heads, dim]``, ``key``, ``value [context, kv_heads, dim]``; softmax in float32.
    """
    num_queries, num_heads, _ = query.shape
    context_len, kv_heads, _ = key.shape
    grouped = query.transpose(0, 1).reshape(kv_heads, -1, query.shape[-1])
    scores = (grouped @ key.permute(1, 2, 0)).view(num_heads, num_queries, context_len) * variant.scale
    if variant.softcap is not None:
        scores = variant.softcap * torch.tanh(scores / variant.softcap)
    scores = scores.float().masked_fill(
        ~visible(num_queries, context_len, variant.window, scores.device), -torch.inf
    )
    if variant.sinks is not None:
        column = variant.sinks.float().view(-1, 1, 1).expand(-1, num_queries, 1)
        weights = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    weights = weights.to(value.dtype).view(kv_heads, -1, context_len)
    return (weights @ value.transpose(0, 1)).view(num_heads, num_queries, -1).transpose(0, 1)


def visible(num_queries: int, context_len: int, window: int | None, device: torch.device) -> Tensor:
    """``[queries, context]``: which keys the last ``num_queries`` tokens see."""
    q = torch.arange(context_len - num_queries, context_len, device=device)[:, None]
    k = torch.arange(context_len, device=device)[None, :]
    mask = k <= q
    return mask if window is None else mask & (k > q - window)
