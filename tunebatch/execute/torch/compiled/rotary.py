"""What happens to a head before attention: optional RMS norm, rotary embedding; then the KV cache."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tunebatch.execute.torch.compiled import arguments as args
from tunebatch.execute.torch.compiled.pointers import (
    ELEMENTS,
    FAST,
    Element,
    as_bits,
    float32s,
    float_of,
    int64s,
)
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


def written(element: Element, dim: int, value_dim: int, block_size: int) -> Any:
    """A compiled function that puts one token's key, prepared, and value of one head into the cache.

    Takes the kernel's arguments, the token's row in the step, its position, block and offset in it, the KV
    head, and the address of scratch for ``dim`` float32 numbers.
    """
    at, load, store = element.at, element.load, element.store
    prepare = prepared(load, dim)
    page_size = (dim + value_dim) * block_size

    @njit(**FAST)
    def write(a: Any, row: int, position: int, block: int, offset: int, head: int, scratch: int) -> None:
        key, value, pages = at(a[args.KEY]), at(a[args.VALUE]), at(a[args.PAGES])
        page = (block * a[args.KV_HEADS] + head) * page_size
        prepared_key = float32s(scratch)
        first = row * a[args.KEY_TOKEN_STRIDE] + head * a[args.KEY_HEAD_STRIDE]
        one = np.float32(1.0)
        prepare(
            key,
            first,
            prepared_key,
            one,
            position,
            a[args.COS],
            a[args.SIN],
            a[args.HALF],
            a[args.KEY_NORM],
            a[args.EPS],
        )
        for i in range(dim):
            store(pages, page + i * block_size + offset, prepared_key[i])
        to = page + dim * block_size + offset * value_dim
        first = row * a[args.VALUE_TOKEN_STRIDE] + head * a[args.VALUE_HEAD_STRIDE]
        for i in range(value_dim):
            pages[to + i] = value[first + i]

    return write


@cache
def write_kernel(dtype: torch.dtype, dim: int, value_dim: int, block_size: int, more_than: int) -> Kernel:
    """Puts the keys and values of slices of more than so many tokens into the cache."""
    write = written(ELEMENTS[dtype], dim, value_dim, block_size)

    @njit(**FAST)
    def body(a: Any, thread: int, num_threads: int) -> None:
        tables, width, lens, starts = (
            a[args.TABLES],
            a[args.TABLE_WIDTH],
            int64s(a[args.CONTEXT_LENS]),
            int64s(a[args.QUERY_START]),
        )
        num_slices, kv_heads = a[args.NUM_SLICES], a[args.KV_HEADS]
        scratch = a[args.SCRATCH] + thread * dim * 4
        num_tokens = starts[num_slices]
        begin, end = num_tokens * thread // num_threads, num_tokens * (thread + 1) // num_threads
        for i in range(num_slices):
            if starts[i + 1] - starts[i] <= more_than:
                continue
            table = int64s(tables + 8 * i * width)
            for row in range(max(begin, starts[i]), min(end, starts[i + 1])):
                position = lens[i] - starts[i + 1] + row
                for head in range(kv_heads):
                    block, offset = table[position // block_size], position % block_size
                    write(a, row, position, block, offset, head, scratch)

    return Kernel(body, args.NUM_ARGUMENTS)
