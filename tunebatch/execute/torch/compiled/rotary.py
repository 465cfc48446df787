"""What happens to a head before attention: optional RMS norm, rotary embedding; then the KV cache.

The cache of the compiled kernels keeps keys transposed, ``[blocks, kv_heads, dim, block_size]``, so that
the scores of a block's tokens are one vector, and values ``[blocks, kv_heads, block_size, dim]``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tunebatch.execute.torch.compiled.pointers import ELEMENTS, FAST, as_bits, float32s, float_of, int64s
from tunebatch.execute.torch.compiled.threads import Kernel


class Rotation:
    """How queries and keys are prepared; tensors are float32 and live as long as this does.

    Args:
        cos: ``[positions, rotated / 2]``, as ``sin``; the first ``rotated`` numbers of a head turn in
            pairs ``(i, i + rotated / 2)`` (RoFormer, in the half-split order of Llama).
        query_norm: ``[dim]`` weight of an RMS norm before the rotation, or None; as ``key_norm``.

    Attributes:
        arguments: As the kernels take it: cos, sin, half, query norm, key norm, eps.
    """

    __slots__ = ("_keep", "arguments")

    def __init__(
        self, cos: Tensor, sin: Tensor, query_norm: Tensor | None, key_norm: Tensor | None, eps: float
    ) -> None:
        self._keep = (cos, sin, query_norm, key_norm)
        norms = (0 if norm is None else norm.data_ptr() for norm in (query_norm, key_norm))
        self.arguments = (cos.data_ptr(), sin.data_ptr(), cos.shape[1], *norms, as_bits(eps))


UNROTATED = (0, 0, 0, 0, 0, 0)


@cache
def prepared(load: Any, dim: int) -> Any:
    """A compiled function that loads a head into float32 scratch, normed, rotated and scaled."""

    @njit(**FAST)
    def prepare(
        source: Any,
        first: int,
        to: Any,
        scale: Any,
        position: int,
        cos: int,
        sin: int,
        half: int,
        norm: int,
        eps: int,
    ) -> None:
        factor = scale
        if norm != 0:
            total = np.float32(0.0)
            for i in range(dim):
                value = load(source, first + i)
                total += value * value
            factor *= np.float32(1.0) / np.float32(np.sqrt(total / np.float32(dim) + float_of(np.int32(eps))))
            weight = float32s(norm)
            for i in range(dim):
                to[i] = load(source, first + i) * factor * weight[i]
        else:
            for i in range(dim):
                to[i] = load(source, first + i) * factor
        c, s = float32s(cos), float32s(sin)
        row = position * half
        for i in range(half):
            x, y = to[i], to[i + half]
            to[i] = x * c[row + i] - y * s[row + i]
            to[i + half] = y * c[row + i] + x * s[row + i]

    return prepare


@cache
def store_kernel(dtype: torch.dtype, dim: int, value_dim: int, block_size: int) -> Kernel:
    """Prepares the queries and keys of some tokens in place, and puts keys and values into the cache."""
    element = ELEMENTS[dtype]
    at, load, store = element.at, element.load, element.store
    prepare = prepared(load, dim)

    @njit(**FAST)
    def body(a: Any, thread: int, num_threads: int) -> None:
        query, key, value = at(a[0]), at(a[1]), at(a[2])
        key_cache, value_cache = at(a[9]), at(a[10])
        cache_slots, positions = int64s(a[11]), int64s(a[12])
        num_tokens, heads, kv_heads = a[13], a[14], a[15]
        scratch = float32s(a[16] + thread * dim * 4)
        cos, sin, half, query_norm, key_norm, eps = a[17], a[18], a[19], a[20], a[21], a[22]
        one = np.float32(1.0)
        for token in range(num_tokens * thread // num_threads, num_tokens * (thread + 1) // num_threads):
            if cos != 0:
                for head in range(heads):
                    first = token * a[3] + head * a[4]
                    prepare(query, first, scratch, one, positions[token], cos, sin, half, query_norm, eps)
                    for i in range(dim):
                        store(query, first + i, scratch[i])
            block, offset = cache_slots[token] // block_size, cache_slots[token] % block_size
            for head in range(kv_heads):
                first = token * a[5] + head * a[6]
                if cos != 0:
                    prepare(key, first, scratch, one, positions[token], cos, sin, half, key_norm, eps)
                    for i in range(dim):
                        store(key, first + i, scratch[i])
                to = (block * kv_heads + head) * dim * block_size + offset
                for i in range(dim):
                    key_cache[to + i * block_size] = key[first + i]
                to = ((block * kv_heads + head) * block_size + offset) * value_dim
                first = token * a[7] + head * a[8]
                for i in range(value_dim):
                    value_cache[to + i] = value[first + i]

    return Kernel(body, 23)
