"""FlashAttention-3 on Hopper GPUs, where it is installed: reads the pages through the block tables.

Called as of the interface of flash-attention's ``hopper`` folder (package ``flash_attn_3`` 3.0.0), whose
``flash_attn_with_kvcache`` takes a ``page_table`` with pages of any size and packed queries (Shah et al.,
NeurIPS 2024). Tested against a stand-in of the same signature; how fast it is, is measured where it runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tunebatch.execute.torch.attention.asked import Asked
from tunebatch.execute.torch.attention.base import Pools, StepContext, Variant, pools_by_token, write

_LARGEST_HEAD = 256
# As the wheel has it, and as the folder's own setup does.
_MODULES = ("flash_attn_interface", "flash_attn_3.flash_attn_interface")


class FlashAttention3:
    """One call for prompts, chunks and decodes together.

    Args:
        attend: ``flash_attn_with_kvcache``; by default the one that is installed.
    """

    name = "flash-attn-3"

    def __init__(self, attend: Callable[..., Tensor] | None = None) -> None:
        self._attend = attend or installed()
        self._narrowed: tuple[StepContext, dict[str, Any]] | None = None

    def new_pools(self, key: Tensor, value: Tensor, num_blocks: int, block_size: int) -> Pools:
        return pools_by_token(key, value, num_blocks, block_size)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, variant: Variant, step: StepContext
    ) -> Tensor:
        """See `AttentionBackend`."""
        keys, values = write(key, value, layer, step)
        assert self._attend is not None and variant.sinks is None
        return self._attend(
            query,
            keys,
            values,
            **self._of_step(step),
            softmax_scale=variant.scale,
            causal=True,
            # Theirs do not count the query's own token.
            window_size=(-1, -1) if variant.window is None else (variant.window - 1, 0),
            softcap=variant.softcap or 0.0,
        )

    def _of_step(self, step: StepContext) -> dict[str, Any]:
        """What all layers of a step are called with; they take no integers of 64 bits."""
        if self._narrowed is None or self._narrowed[0] is not step:
            arguments = {
                "cache_seqlens": step.context_lens.int(),
                "page_table": step.block_tables.int(),
                "cu_seqlens_q": step.query_start.int(),
                "max_seqlen_q": max((count for _, count, _ in step.slices), default=1),
            }
            self._narrowed = step, arguments
        return self._narrowed[1]


def installed() -> Callable[..., Tensor] | None:
    """``flash_attn_with_kvcache`` of FlashAttention-3, or None."""
    for name in _MODULES:
        try:
            return importlib.import_module(name).flash_attn_with_kvcache
        except (ImportError, AttributeError, OSError, RuntimeError):  # built for another torch or CUDA
            continue
    return None


def refusal(capability: tuple[int, int]) -> str | None:
    """Why it cannot be used on such a GPU, or None."""
    if capability[0] != 9:
        return f"needs a Hopper GPU (compute capability 9.0), this one has {capability[0]}.{capability[1]}"
    return None if installed() is not None else "not installed (flash_attn_interface cannot be imported)"


def refusal_of(layer: Asked) -> str | None:
    """Why it cannot serve such a layer, or None."""
    if layer.dtype not in (torch.float16, torch.bfloat16):
        return f"{str(layer.dtype).removeprefix('torch.')} is not supported"
    if layer.dim > _LARGEST_HEAD or layer.dim % 8:
        return f"head size {layer.dim} is no multiple of 8 up to {_LARGEST_HEAD}"
    if layer.value_dim != layer.dim:
        return f"values of size {layer.value_dim} beside keys of size {layer.dim} are not supported"
    return "attention sinks are not supported" if layer.sinks else None
