"""What flashinfer and flash-attn 3 offer, computed by the reference from what they are called with.

Signatures and meanings are those that the libraries document; whatever would be undefined there fails here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunebatch.execute.torch.attention.base import Variant
from tunebatch.execute.torch.attention.reference import attend_one


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    cache_seqlens: Tensor,
    page_table: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    softmax_scale: float,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> Tensor:
    """``q [tokens, heads, dim]``, caches ``[pages, page_size, kv_heads, dim]``."""
    assert causal and k is None and v is None and q.stride(-1) == k_cache.stride(-1) == 1
    assert {one.dtype for one in (cache_seqlens, page_table, cu_seqlens_q)} == {torch.int32}
    counts = cu_seqlens_q.diff().tolist()
    assert max_seqlen_q == max(counts) and window_size[1] in (-1, 0)
    left = window_size[0]
    variant = Variant(softmax_scale, left + 1 if left >= 0 else None, softcap or None)
    out = torch.empty_like(q)
    first = 0
    for row, count in enumerate(counts):
        length = int(cache_seqlens[row])
        pages = page_table[row, : -(-length // k_cache.shape[1])].long()
        keys, values = (cache[pages].flatten(0, 1)[:length] for cache in (k_cache, v_cache))
        out[first : first + count] = attend_one(q[first : first + count], keys, values, variant)
        first += count
    return out


class _Wrapper:
    def __init__(
        self, float_workspace_buffer: Tensor, kv_layout: str = "NHD", use_tensor_cores: bool = False
    ) -> None:
        assert kv_layout == "NHD" and float_workspace_buffer.dtype == torch.uint8
        assert not float_workspace_buffer.any()
        self.num_plans = 0
        self._planned: tuple[Any, ...] | None = None

    def _plan(
        self,
        counts: list[int],
        pages: tuple[Tensor, Tensor, Tensor],
        sizes: tuple[int, int, int, int],
        sm_scale: float,
        window_left: int,
        logits_soft_cap: float,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        indptr, indices, last = pages
        assert {one.dtype for one in pages} == {torch.int32} and len(indptr) == len(last) + 1
        assert int(indptr[-1]) == len(indices) and bool((last >= 1).all())
        assert bool((last <= sizes[3]).all()) and len(counts) == len(last)
        variant = Variant(sm_scale, window_left + 1 if window_left >= 0 else None, logits_soft_cap or None)
        self.num_plans += 1
        self._planned = (counts, pages, sizes, variant, (q_data_type, kv_data_type))

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        assert self._planned is not None, "run before plan"
        counts, (indptr, indices, last), (heads, kv_heads, dim, page), variant, dtypes = self._planned
        assert q.is_contiguous() and q.shape == (sum(counts), heads, dim)
        assert (q.dtype, paged_kv_cache[0].dtype) == dtypes
        assert paged_kv_cache[0].shape[1:] == (page, kv_heads, dim)
        out, first = torch.empty_like(q), 0
        for row, count in enumerate(counts):
            pages = indices[indptr[row] : indptr[row + 1]].long()
            length = (len(pages) - 1) * page + int(last[row])
            keys, values = (cache[pages].flatten(0, 1)[:length] for cache in paged_kv_cache)
            out[first : first + count] = attend_one(q[first : first + count], keys, values, variant)
            first += count
        return out


class BatchPrefillWithPagedKVCacheWrapper(_Wrapper):
    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool = False,
        sm_scale: float,
        window_left: int = -1,
        logits_soft_cap: float = 0.0,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        assert causal and qo_indptr.dtype == torch.int32 and qo_indptr[0] == 0
        self._plan(
            qo_indptr.diff().tolist(),
            (paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len),
            (num_qo_heads, num_kv_heads, head_dim_qk, page_size),
            sm_scale,
            window_left,
            logits_soft_cap,
            q_data_type,
            kv_data_type,
        )


class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
    def plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        sm_scale: float,
        window_left: int = -1,
        logits_soft_cap: float = 0.0,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        self._plan(
            [1] * len(last_page_len),
            (indptr, indices, last_page_len),
            (num_qo_heads, num_kv_heads, head_dim, page_size),
            sm_scale,
            window_left,
            logits_soft_cap,
            q_data_type,
            kv_data_type,
        )
