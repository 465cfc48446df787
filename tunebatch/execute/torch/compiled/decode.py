"""One token of every decoding sequence attends to its pages: the kernel that a decode step waits for."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit

from tunebatch.execute.torch.compiled.pointers import (
    ELEMENTS,
    FAST,
    exp,
    float32s,
    float_of,
    int64s,
    prefetch,
)
from tunebatch.execute.torch.compiled.rotary import prepared
from tunebatch.execute.torch.compiled.threads import Kernel

_NOTHING = np.float32(-1e30)
CACHE_LINE = 64


def scratch_floats(dim: int, value_dim: int, group: int, block_size: int) -> int:
    """Float32 numbers that each thread of `decode_kernel` works in."""
    return group * (dim + value_dim + block_size + 2) + dim


@cache
def decode_kernel(dtype: torch.dtype, dim: int, value_dim: int, group: int, block_size: int) -> Kernel:
    """Writes each sequence's new key and value to the cache, then attends with an online softmax.

    Work is shared out by sequence and KV head, evenly by the tokens attended to; the ``group`` query
    heads of a KV head are served together, so that each key is read once (Milakov and Gimelshein's
    online softmax over the pages of vLLM's PagedAttention).
    """
    element = ELEMENTS[dtype]
    at, load, store = element.at, element.load, element.store
    prepare = prepared(load, dim)
    score, gather = _scores(load, dim, group, block_size), _gather(load, value_dim, group, block_size)
    key_bytes, value_bytes = dim * block_size * element.size, value_dim * block_size * element.size
    scratch_bytes = 4 * scratch_floats(dim, value_dim, group, block_size)

    @njit(**FAST)
    def body(a: Any, thread: int, num_threads: int) -> None:
        query, key, value, out = at(a[0]), at(a[1]), at(a[2]), at(a[9])
        key_cache, value_cache = at(a[10]), at(a[11])
        tables, width, lens = int64s(a[12]), a[13], int64s(a[14])
        num_sequences, kv_heads = a[15], a[16]
        scratch = a[17] + thread * scratch_bytes
        cos, sin, half, query_norm, key_norm, eps = a[18], a[19], a[20], a[21], a[22], a[23]
        scale, window, softcap, sinks = float_of(np.int32(a[24])), a[25], float_of(np.int32(a[26])), a[27]
        queries, total = float32s(scratch), float32s(scratch + 4 * group * dim)
        scores = float32s(scratch + 4 * group * (dim + value_dim))
        largest = float32s(scratch + 4 * group * (dim + value_dim + block_size))
        weight = float32s(scratch + 4 * group * (dim + value_dim + block_size + 1))
        new_key = float32s(scratch + 4 * group * (dim + value_dim + block_size + 2))
        work = 0
        for i in range(num_sequences):
            work += (min(lens[i], window) if window > 0 else lens[i]) * kv_heads
        begin, end = work * thread // num_threads, work * (thread + 1) // num_threads
        done = 0
        for i in range(num_sequences):
            context = lens[i]
            visible = min(context, window) if window > 0 else context
            position = context - 1
            for head in range(kv_heads):
                mine = begin <= done < end
                done += visible
                if not mine:
                    continue
                block = tables[i * width + position // block_size]
                offset = position % block_size
                page = block * kv_heads + head
                first = i * a[5] + head * a[6]
                if cos != 0:
                    one = np.float32(1.0)
                    prepare(key, first, new_key, one, position, cos, sin, half, key_norm, eps)
                    for j in range(dim):
                        store(key_cache, (page * dim + j) * block_size + offset, new_key[j])
                else:
                    for j in range(dim):
                        key_cache[(page * dim + j) * block_size + offset] = key[first + j]
                first = i * a[7] + head * a[8]
                for j in range(value_dim):
                    value_cache[(page * block_size + offset) * value_dim + j] = value[first + j]
                for g in range(group):
                    first = i * a[3] + (head * group + g) * a[4]
                    to = float32s(scratch + 4 * g * dim)
                    prepare(query, first, to, scale, position, cos, sin, half, query_norm, eps)
                    largest[g], weight[g] = _NOTHING, np.float32(0.0)
                    for j in range(value_dim):
                        total[g * value_dim + j] = np.float32(0.0)
                last = (context + block_size - 1) // block_size
                for index in range((context - visible) // block_size, last):
                    page = tables[i * width + index] * kv_heads + head
                    if index + 1 < last:
                        # Pages lie scattered: without a hint each begins with a wait for memory.
                        following = tables[i * width + index + 1] * kv_heads + head
                        for line in range(0, key_bytes, CACHE_LINE):
                            prefetch(a[10] + following * key_bytes + line)
                        for line in range(0, value_bytes, CACHE_LINE):
                            prefetch(a[11] + following * value_bytes + line)
                    score(queries, key_cache, page * dim * block_size, scores)
                    if softcap > 0:
                        for j in range(group * block_size):
                            scores[j] = softcap * np.float32(np.tanh(scores[j] / softcap))
                    unseen = context - visible - index * block_size
                    until = context - index * block_size
                    if unseen > 0 or until < block_size:
                        for g in range(group):
                            for j in range(block_size):
                                if j < unseen or j >= until:
                                    scores[g * block_size + j] = _NOTHING
                    gather(scores, largest, weight, value_cache, page * block_size * value_dim, total)
                for g in range(group):
                    if sinks != 0:
                        sink = float32s(sinks)[head * group + g]
                        highest = max(sink, largest[g])
                        shrink = exp(largest[g] - highest)
                        share = shrink / (weight[g] * shrink + exp(sink - highest))
                    else:
                        share = np.float32(1.0) / weight[g]
                    first = ((i * kv_heads + head) * group + g) * value_dim
                    for j in range(value_dim):
                        store(out, first + j, total[g * value_dim + j] * share)

    return Kernel(body, 28)


def _scores(load: Any, dim: int, group: int, block_size: int) -> Any:
    """``scores[g, t] = queries[g] . keys[:, t]`` for the tokens of one page."""

    @njit(**FAST)
    def score(queries: Any, keys: Any, first: int, scores: Any) -> None:
        for g in range(group):
            row, q = g * block_size, g * dim
            for t in range(block_size):
                scores[row + t] = np.float32(0.0)
            for j in range(0, dim, 4):
                q0, q1, q2, q3 = queries[q + j], queries[q + j + 1], queries[q + j + 2], queries[q + j + 3]
                k0 = first + j * block_size
                k1, k2, k3 = k0 + block_size, k0 + 2 * block_size, k0 + 3 * block_size
                for t in range(block_size):
                    scores[row + t] += (
                        q0 * load(keys, k0 + t)
                        + q1 * load(keys, k1 + t)
                        + q2 * load(keys, k2 + t)
                        + q3 * load(keys, k3 + t)
                    )

    return score


def _gather(load: Any, value_dim: int, group: int, block_size: int) -> Any:
    """Turns one page's scores into weights and adds its values, rescaling what was there."""

    @njit(**FAST)
    def gather(scores: Any, largest: Any, weight: Any, values: Any, first: int, total: Any) -> None:
        for g in range(group):
            row, to = g * block_size, g * value_dim
            highest = largest[g]
            for t in range(block_size):
                highest = max(highest, scores[row + t])
            if highest > largest[g]:
                shrink = exp(largest[g] - highest)
                weight[g] *= shrink
                for j in range(value_dim):
                    total[to + j] *= shrink
                largest[g] = highest
            added = np.float32(0.0)
            for t in range(block_size):
                p = exp(scores[row + t] - highest)
                scores[row + t] = p
                added += p
            weight[g] += added
            for t in range(0, block_size, 4):
                p0, p1, p2, p3 = (
                    scores[row + t],
                    scores[row + t + 1],
                    scores[row + t + 2],
                    scores[row + t + 3],
                )
                v0 = first + t * value_dim
                v1, v2, v3 = v0 + value_dim, v0 + 2 * value_dim, v0 + 3 * value_dim
                for j in range(value_dim):
                    total[to + j] += (
                        p0 * load(values, v0 + j)
                        + p1 * load(values, v1 + j)
                        + p2 * load(values, v2 + j)
                        + p3 * load(values, v3 + j)
                    )

    return gather
