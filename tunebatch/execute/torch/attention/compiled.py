"""The fast backend on a CPU: compiled kernels that walk the block tables; nothing is gathered or padded."""

from __future__ import annotations

import torch
from torch import Tensor

from tunebatch.execute.torch.attention.base import Pools, StepContext, Variant
from tunebatch.execute.torch.attention.slices import attend_slice
from tunebatch.execute.torch.compiled.decode import decode_kernel, scratch_floats
from tunebatch.execute.torch.compiled.pointers import ELEMENTS, as_bits
from tunebatch.execute.torch.compiled.rotary import UNROTATED, Rotation, store_kernel

# The kernels' inner loops take four numbers at a time.
STRIDE = 4


class Compiled:
    """Decodes go through one kernel; the slices of prompts through torch's fused attention, one by one."""

    name = "compiled"

    def __init__(self) -> None:
        self._scratch = torch.empty(0)
        self._sinks: dict[int, Tensor] = {}

    def new_pools(self, key: Tensor, value: Tensor, num_blocks: int, block_size: int) -> Pools:
        """Keys ``[blocks, kv_heads, dim, block_size]``, values ``[blocks, kv_heads, block_size, dim]``."""
        kv_heads, dim = key.shape[1:]
        return (
            key.new_zeros(num_blocks, kv_heads, dim, block_size),
            value.new_zeros(num_blocks, kv_heads, block_size, value.shape[-1]),
        )

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        variant: Variant,
        step: StepContext,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """See `AttentionBackend`; with a rotation, queries and keys are those before it."""
        query, key, value = (
            part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value)
        )
        pools = step.cache.layer(layer, key, value)
        out = query.new_empty(query.shape[0], query.shape[1], value.shape[-1])
        if step.slices:
            self._slices(query, key, value, variant, step, pools, rotation, out)
        if step.num_slice_tokens < query.shape[0]:
            self._decodes(query, key, value, variant, step, pools, rotation, out)
        return out

    def _slices(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        variant: Variant,
        step: StepContext,
        pools: Pools,
        rotation: Rotation | None,
        out: Tensor,
    ) -> None:
        count, heads, dim = step.num_slice_tokens, query.shape[1], query.shape[2]
        kv_heads, value_dim = value.shape[1:]
        store_kernel(query.dtype, dim, value_dim, step.cache.block_size)(
            count * kv_heads * dim,
            *_addresses(query, key, value, first=0),
            *(pool.data_ptr() for pool in pools),
            step.cache_slots.data_ptr(),
            step.positions.data_ptr(),
            count,
            heads,
            kv_heads,
            self._scratch_of(dim),
            *(UNROTATED if rotation is None else rotation.arguments),
        )
        for index, (first, tokens, start) in enumerate(step.slices):
            rows = slice(first, first + tokens)
            k, v = key[rows], value[rows]
            if start:
                blocks = step.block_tables[index, : -(-(start + tokens) // step.cache.block_size)]
                k = pools[0][blocks].permute(0, 3, 1, 2).flatten(0, 1)[: start + tokens]
                v = pools[1][blocks].transpose(1, 2).flatten(0, 1)[: start + tokens]
            out[rows] = attend_slice(query[rows], k, v, variant)

    def _decodes(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        variant: Variant,
        step: StepContext,
        pools: Pools,
        rotation: Rotation | None,
        out: Tensor,
    ) -> None:
        first = step.num_slice_tokens
        heads, dim = query.shape[1:]
        kv_heads, value_dim = value.shape[1:]
        group, block_size, width = heads // kv_heads, step.cache.block_size, step.block_tables.shape[1]
        size = step.block_tables.element_size()
        decode_kernel(query.dtype, dim, value_dim, group, block_size)(
            step.decode_context_sum * heads * dim,
            *_addresses(query, key, value, first),
            out.data_ptr() + first * heads * value_dim * out.element_size(),
            *(pool.data_ptr() for pool in pools),
            step.block_tables.data_ptr() + step.num_slices * width * size,
            width,
            step.context_lens.data_ptr() + step.num_slices * size,
            query.shape[0] - first,
            kv_heads,
            self._scratch_of(scratch_floats(dim, value_dim, group, block_size)),
            *(UNROTATED if rotation is None else rotation.arguments),
            as_bits(variant.scale),
            variant.window or 0,
            as_bits(variant.softcap or 0.0),
            0 if variant.sinks is None else self._sinks_of(variant.sinks),
        )

    def _scratch_of(self, floats: int) -> int:
        """The address of so many float32 numbers for each thread."""
        needed = floats * torch.get_num_threads()
        if len(self._scratch) < needed:
            self._scratch = torch.empty(needed)
        return self._scratch.data_ptr()

    def _sinks_of(self, sinks: Tensor) -> int:
        kept = self._sinks.get(sinks.data_ptr())
        if kept is None:
            kept = self._sinks[sinks.data_ptr()] = sinks.detach().float().contiguous()
        return kept.data_ptr()


def refusal(dtype: torch.dtype, head_dim: int, block_size: int) -> str | None:
    """Why the kernels cannot serve such a model, or None."""
    if dtype not in ELEMENTS:
        return f"{str(dtype).removeprefix('torch.')} is not supported"
    for what, number in (("head size", head_dim), ("block size", block_size)):
        if number % STRIDE:
            return f"{what} {number} is no multiple of {STRIDE}"
    return None


def _addresses(query: Tensor, key: Tensor, value: Tensor, first: int) -> tuple[int, ...]:
    """Where token ``first`` of each begins, then strides between tokens and between heads, in elements."""
    parts = (query, key, value)
    starts = (part.data_ptr() + first * part.stride(0) * part.element_size() for part in parts)
    return (*starts, *(stride for part in parts for stride in part.stride()[:2]))
