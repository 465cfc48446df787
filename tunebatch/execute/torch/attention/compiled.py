"""The fast backend on a CPU: compiled kernels that walk the block tables; nothing is gathered or padded."""

from __future__ import annotations

import torch
from torch import Tensor

from tunebatch.execute.torch.attention.base import Pools, StepContext, Variant
from tunebatch.execute.torch.compiled.attend import attend_kernel, scratch_floats, tile_tokens
from tunebatch.execute.torch.compiled.pointers import ELEMENTS, as_bits
from tunebatch.execute.torch.compiled.rotary import UNROTATED, Rotation, write_kernel

# The kernels' inner loops take four numbers at a time.
STRIDE = 4


class Compiled:
    """Prompts and decodes go through one kernel, which walks the block tables."""

    name = "compiled"

    def __init__(self) -> None:
        self._scratch = torch.empty(0)
        self._sinks: dict[int, Tensor] = {}

    def new_pools(self, key: Tensor, value: Tensor, num_blocks: int, block_size: int) -> Pools:
        """Views of one tensor: keys ``[blocks, kv_heads, dim, block_size]``, behind those of each block and
        head its values ``[blocks, kv_heads, block_size, dim]``."""
        kv_heads, dim = key.shape[1:]
        value_dim = value.shape[-1]
        pages = key.new_zeros(num_blocks, kv_heads, (dim + value_dim) * block_size)
        keys, values = pages.split([dim * block_size, value_dim * block_size], -1)
        return keys.unflatten(-1, (dim, block_size)), values.unflatten(-1, (block_size, value_dim))

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
        pages, _ = step.cache.layer(layer, key, value)
        heads, dim = query.shape[1:]
        kv_heads, value_dim = value.shape[1:]
        group, block_size = heads // kv_heads, step.cache.block_size
        out = query.new_empty(query.shape[0], heads, value_dim)
        arguments = (
            *_addresses(query, key, value),
            out.data_ptr(),
            pages.data_ptr(),
            step.block_tables.data_ptr(),
            step.block_tables.shape[1],
            step.context_lens.data_ptr(),
            step.query_start.data_ptr(),
            len(step.context_lens),
            step.num_slices,
            kv_heads,
            self._scratch_of(scratch_floats(dim, value_dim, group, block_size)),
            *(UNROTATED if rotation is None else rotation.arguments),
            as_bits(variant.scale),
            variant.window or 0,
            as_bits(variant.softcap or 0.0),
            0 if variant.sinks is None else self._sinks_of(variant.sinks),
        )
        tile = tile_tokens(group)
        if any(count > tile for _, count, _ in step.slices):
            work = step.num_slice_tokens * kv_heads * dim
            write_kernel(query.dtype, dim, value_dim, block_size, tile)(work, *arguments)
        work = (step.context_sum + step.num_slice_tokens) * heads * dim
        attend_kernel(query.dtype, dim, value_dim, group, block_size)(work, *arguments)
        return out

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


def _addresses(*parts: Tensor) -> tuple[int, ...]:
    """Where each begins, then strides between tokens and between heads, in elements."""
    return (
        *(part.data_ptr() for part in parts),
        *(stride for part in parts for stride in part.stride()[:2]),
    )
