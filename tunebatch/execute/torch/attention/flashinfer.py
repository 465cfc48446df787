"""FlashInfer's paged kernels, where they are installed: planned on the host once a step, run in every layer.

Called as of the API that flashinfer-python documents for 0.2 to 0.6 (``BatchPrefillWithPagedKVCacheWrapper``
and ``BatchDecodeWithPagedKVCacheWrapper``, layout NHD; Ye et al., MLSys 2025). Tested against a stand-in of
the same signatures; how fast it is, is measured where it runs.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunebatch.execute.torch.attention.asked import Asked
from tunebatch.execute.torch.attention.base import Pools, StepContext, Variant, pools_by_token, write

_HEADS = (64, 128, 256)  # sizes that its kernels are made for
_WORKSPACE_BYTES = 128 * 2**20  # as its documentation recommends
Ints = NDArray[np.int64]


class FlashInfer:
    """Prompts and chunks through one wrapper, decodes through another.

    A plan is for a step and for all layers that ask for the same; a wrapper holds one plan, so each kind of
    layer has wrappers of its own. A plan is made of host values, so that no CUDA graph can hold it.

    Args:
        library: The ``flashinfer`` module; by default the one that is installed.
    """

    name = "flashinfer"

    def __init__(self, library: Any = None) -> None:
        self._library = library or installed()
        self._workspace: Tensor | None = None
        self._wrappers: dict[tuple[Any, ...], tuple[Any, Any]] = {}
        self._step: StepContext | None = None
        self._planned: set[tuple[Any, ...]] = set()
        self._copied: Any = None

    def new_pools(self, key: Tensor, value: Tensor, num_blocks: int, block_size: int) -> Pools:
        return pools_by_token(key, value, num_blocks, block_size)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, variant: Variant, step: StepContext
    ) -> Tensor:
        """See `AttentionBackend`."""
        pools = write(key, value, layer, step)
        assert variant.sinks is None
        kind = (*query.shape[1:], key.shape[1], key.dtype, variant)
        if self._step is not step:
            self._step, self._planned = step, set()
        if kind not in self._wrappers:
            self._wrappers[kind] = self._new_wrappers(query.device)
        prefill, decode = self._wrappers[kind]
        if kind not in self._planned:
            self._plan(prefill, decode, query, key, variant, step)
            self._planned.add(kind)
        query, first = query.contiguous(), step.num_slice_tokens
        if first == len(query):
            return prefill.run(query, pools)
        if not first:
            return decode.run(query, pools)
        return torch.cat([prefill.run(query[:first], pools), decode.run(query[first:], pools)])

    def _new_wrappers(self, device: torch.device) -> tuple[Any, Any]:
        if self._workspace is None:
            # Zeros, as its documentation asks for; shared, as layers run one after the other.
            self._workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        prefill = self._library.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD")
        # With tensor cores any number of query heads may share a KV head.
        decode = self._library.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace, "NHD", use_tensor_cores=True
        )
        return prefill, decode

    def _plan(
        self, prefill: Any, decode: Any, query: Tensor, key: Tensor, variant: Variant, step: StepContext
    ) -> None:
        if self._copied is not None:
            # What was planned before travels from a buffer that planning writes anew.
            self._copied.synchronize()
        block_size, slices = step.cache.block_size, step.num_slices
        sizes = (query.shape[1], key.shape[1], key.shape[2], block_size)
        asked = {
            "sm_scale": variant.scale,
            # Theirs does not count the query's own token.
            "window_left": -1 if variant.window is None else variant.window - 1,
            "logits_soft_cap": variant.softcap or 0.0,
            "q_data_type": query.dtype,
            "kv_data_type": key.dtype,
        }
        lens = context_lens_on_host(step)
        if slices:
            pages = _pages(lens, 0, slices, block_size, step.block_tables)
            starts = _indptr(np.array([count for _, count, _ in step.slices]))
            prefill.plan(starts, *pages, *sizes, causal=True, **asked)
        if slices < len(lens):
            pages = _pages(lens, slices, len(lens), block_size, step.block_tables)
            decode.plan(*pages, *sizes, **asked)
        if query.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()


def context_lens_on_host(step: StepContext) -> Ints:
    """Waits for the device only where the host did not lay the step out."""
    return step.context_lens.cpu().numpy() if step.host_lens is None else step.host_lens


def _pages(lens: Ints, first: int, end: int, block_size: int, tables: Tensor) -> tuple[Tensor, ...]:
    """Of some sequences of a step: where each one's pages begin, on the host; the pages, on the device; and
    how full the last ones are, on the host."""
    part = lens[first:end]
    counts = -(-part // block_size)
    starts = _indptr(counts)
    column = np.arange(int(starts[-1])) - np.repeat(starts[:-1].numpy(), counts)
    place = np.repeat(np.arange(first, end), counts) * tables.shape[1] + column
    pages = tables.reshape(-1)[torch.from_numpy(place).to(tables.device)]
    return starts, pages.int(), torch.from_numpy((part - 1) % block_size + 1).int()


def _indptr(counts: Ints) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)])).int()


def installed() -> Any:
    """The ``flashinfer`` module, or None."""
    try:
        library = importlib.import_module("flashinfer")
    except (ImportError, OSError, RuntimeError):  # built for another torch or CUDA
        return None
    return library if hasattr(library, "BatchPrefillWithPagedKVCacheWrapper") else None


def refusal(capability: tuple[int, int]) -> str | None:
    """Why it cannot be used on such a GPU, or None."""
    if capability < (8, 0):
        return f"needs compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    return None if installed() is not None else "not installed (flashinfer cannot be imported)"


def refusal_of(layer: Asked) -> str | None:
    """Why it cannot serve such a layer, or None."""
    if layer.dtype not in (torch.float16, torch.bfloat16):
        return f"{str(layer.dtype).removeprefix('torch.')} is not supported"
    if layer.dim not in _HEADS:
        return f"head size {layer.dim} is none of {', '.join(map(str, _HEADS))}"
    if layer.value_dim != layer.dim:
        return f"values of size {layer.value_dim} beside keys of size {layer.dim} are not supported"
    return "attention sinks are not supported" if layer.sinks else None
