"""New keys and values go to their slots in the pages of the KV cache."""

from __future__ import annotations

import triton
import triton.language as tl


# Slots are a view into the step's one buffer, which begins anywhere: alignment would compile it anew.
@triton.jit(do_not_specialize=["cache_slots"])
def write_kernel(
    keys,
    values,
    key,
    value,
    cache_slots,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    KV_HEADS: tl.constexpr,
    KV_HEADS_PADDED: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    VALUE_DIM_PADDED: tl.constexpr,
):
    """Grid ``(tokens,)``.

    Args:
        keys: ``[slots, KV_HEADS, DIM]``; ``values`` likewise.
        key: ``[tokens, KV_HEADS, DIM]``; ``value`` likewise.
        cache_slots: ``[tokens]``; a padding token's is negative, and it is not written.
    """
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(cache_slots + token).to(tl.int64)
    if slot < 0:
        return
    head = tl.arange(0, KV_HEADS_PADDED)[:, None]
    dim = tl.arange(0, DIM_PADDED)[None, :]
    inside = (head < KV_HEADS) & (dim < DIM)
    new = tl.load(key + token * key_token_stride + head * key_head_stride + dim, mask=inside)
    tl.store(keys + (slot * KV_HEADS + head) * DIM + dim, new, mask=inside)
    dim = tl.arange(0, VALUE_DIM_PADDED)[None, :]
    inside = (head < KV_HEADS) & (dim < VALUE_DIM)
    new = tl.load(value + token * value_token_stride + head * value_head_stride + dim, mask=inside)
    tl.store(values + (slot * KV_HEADS + head) * VALUE_DIM + dim, new, mask=inside)
