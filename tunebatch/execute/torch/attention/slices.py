"""A prompt, or a chunk of one, attends to its own sequence: torch's fused attention where it can."""

from __future__ import annotations

import dataclasses

import torch.nn.functional as F
from torch import Tensor

from tunebatch.execute.torch.attention.base import Variant
from tunebatch.execute.torch.attention.reference import attend_one, visible


def attend_slice(query: Tensor, key: Tensor, value: Tensor, variant: Variant) -> Tensor:
    """The last ``len(query)`` tokens of a sequence attend to all of it, causally.

    ``query [queries, heads, dim]``, ``key``, ``value [context, kv_heads, dim]``; returns
    ``[queries, heads, value_dim]``.
    """
    if variant.window is not None and variant.window >= len(key):
        variant = dataclasses.replace(variant, window=None)
    if variant.sinks is not None or variant.softcap is not None:
        return attend_one(query, key, value, variant)
    whole = variant.window is None and len(query) == len(key)
    mask = None if whole else visible(len(query), len(key), variant.window, query.device)
    q, k, v = (part.transpose(0, 1)[None] for part in (query, key, value))
    attended = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=whole, scale=variant.scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return attended[0].transpose(0, 1)
