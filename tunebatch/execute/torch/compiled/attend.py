"""Attention over the pages of the KV cache: prompts, parts of prompts and single tokens in one kernel.

A page holds one KV head of a block: keys transposed ``[dim, block_size]``, so that the scores of its
tokens are one vector, and behind them the values ``[block_size, value_dim]``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit

from tunebatch.execute.torch.compiled import arguments as args
from tunebatch.execute.torch.compiled.pointers import (
    CACHE_LINE,
    ELEMENTS,
    FAST,
    Element,
    exp,
    float32s,
    float_of,
    int64s,
    prefetch,
)
from tunebatch.execute.torch.compiled.rotary import prepared, written
from tunebatch.execute.torch.compiled.threads import Kernel
from tunebatch.execute.torch.compiled.tile import LANES, exponentials, largest, product

_NOTHING = np.float32(-1e30)
_ROWS = 8  # queries that read a page together
_TOKENS = 256  # whose scores are kept at a time
_STARTING = 32  # what a tile costs beside the tokens that it sees, in such tokens


def tile_tokens(group: int) -> int:
    """Consecutive tokens of a prompt that read each page together, with ``group`` query heads each."""
    return max(1, _ROWS // group)


def scratch_floats(dim: int, value_dim: int, group: int, block_size: int) -> int:
    """Float32 numbers that each thread of `attend_kernel` works in."""
    return tile_tokens(group) * group * (dim + value_dim + _kept(block_size) + 2) + dim


@cache
def attend_kernel(dtype: torch.dtype, dim: int, value_dim: int, group: int, block_size: int) -> Kernel:
    """Each token of a step attends to its sequence, causally, through the block table.

    Of sequences with more tokens than a tile keys and values must be in the cache; those of the others are
    put there first, by the thread that reads them. Work is shared out by tile of queries and KV head, evenly
    by the tokens that these see.
    """
    element = ELEMENTS[dtype]
    tile = tile_tokens(group)
    attend_tile = _attend(element, dim, value_dim, group, block_size, tile)
    # A second copy of the same would take as long to compile as the first.
    attend_one = attend_tile if tile == 1 else _attend(element, dim, value_dim, group, block_size, 1)
    write = written(element, dim, value_dim, block_size)
    scratch_bytes = 4 * scratch_floats(dim, value_dim, group, block_size)
    few = max(tile // 2, 1)  # a tile computes as many as it can hold

    @njit(**FAST)
    def body(a: Any, thread: int, num_threads: int) -> None:
        lens, starts = int64s(a[args.CONTEXT_LENS]), int64s(a[args.QUERY_START])
        num_sequences = a[args.NUM_SEQUENCES]
        kv_heads, window = a[args.KV_HEADS], a[args.WINDOW]
        scratch = a[args.SCRATCH] + thread * scratch_bytes
        work = 0
        for i in range(num_sequences):
            count = starts[i + 1] - starts[i]
            for token in range(0, count, tile):
                work += _seen(lens[i] - count + token, min(tile, count - token), window) * kv_heads
        begin, end = work * thread // num_threads, work * (thread + 1) // num_threads
        done = 0
        for i in range(num_sequences):
            first, count = starts[i], starts[i + 1] - starts[i]
            table = a[args.TABLES] + 8 * i * a[args.TABLE_WIDTH]
            for token in range(0, count, tile):
                together = min(tile, count - token)
                position = lens[i] - count + token
                seen = _seen(position, together, window)
                for head in range(kv_heads):
                    if begin <= done < end:
                        if count <= tile:
                            for row in range(first, first + count):
                                at = lens[i] - starts[i + 1] + row
                                block = int64s(table)[at // block_size]
                                write(a, row, at, block, at % block_size, head, scratch)
                        if together <= few:
                            for row in range(first + token, first + token + together):
                                at = lens[i] - starts[i + 1] + row
                                attend_one(a, table, row, 1, at, head, scratch)
                        else:
                            attend_tile(a, table, first + token, together, position, head, scratch)
                    done += seen

    return Kernel(body, args.NUM_ARGUMENTS)


@njit(inline="always", **FAST)
def _seen(position: Any, count: Any, window: Any) -> Any:
    """What ``count`` tokens from ``position`` on cost: the cached tokens that they see, and a start."""
    visible = position + count
    if window > 0:
        visible = min(visible, window + count - 1)
    return visible + _STARTING


def _attend(element: Element, dim: int, value_dim: int, group: int, block_size: int, tokens: int) -> Any:
    """A compiled function: at most ``tokens`` tokens attend with the query heads of one KV head.

    Milakov and Gimelshein's online softmax over the pages of vLLM's PagedAttention, some pages at a time.
    Where there are fewer tokens, the last is computed again in place of the missing ones, and dropped.
    """
    at, load, store = element.at, element.load, element.store
    prepare = prepared(load, dim)
    rows, kept, pages_kept = tokens * group, _kept(block_size), _pages_kept(block_size)
    score = product(element, rows, dim, block_size, dim, block_size, kept)
    gather = product(element, rows, block_size, value_dim, kept, value_dim, value_dim)
    key_bytes = dim * block_size * element.size
    page_bytes = key_bytes + value_dim * block_size * element.size

    @njit(**FAST)
    def attend(a: Any, table: int, first: int, count: int, position: int, head: int, scratch: int) -> None:
        query, out, pages, tables = at(a[args.QUERY]), at(a[args.OUT]), a[args.PAGES], int64s(table)
        kv_heads = a[args.KV_HEADS]
        cos, sin, half = a[args.COS], a[args.SIN], a[args.HALF]
        norm, eps = a[args.QUERY_NORM], a[args.EPS]
        scale, softcap = float_of(np.int32(a[args.SCALE])), float_of(np.int32(a[args.SOFTCAP]))
        window, sinks = a[args.WINDOW], a[args.SINKS]
        totals_at = scratch + 4 * rows * dim
        scores_at = totals_at + 4 * rows * value_dim
        totals, scores = float32s(totals_at), float32s(scores_at)
        highest_of = float32s(scores_at + 4 * rows * kept)
        weight = float32s(scores_at + 4 * rows * (kept + 1))
        for row in range(rows):
            token = min(row // group, count - 1)
            source = (first + token) * a[args.QUERY_TOKEN_STRIDE]
            source += (head * group + row % group) * a[args.QUERY_HEAD_STRIDE]
            to = float32s(scratch + 4 * row * dim)
            prepare(query, source, to, scale, position + token, cos, sin, half, norm, eps)
            highest_of[row], weight[row] = _NOTHING, np.float32(0.0)
        for i in range(rows * value_dim):
            totals[i] = np.float32(0.0)
        lowest = max(position + 1 - window, 0) if window > 0 else 0
        last = (position + count + block_size - 1) // block_size
        for page in range(lowest // block_size, last, pages_kept):
            until = min(page + pages_kept, last)
            num_scores = (until - page) * block_size
            for row in range(rows):
                for t in range(row * kept, row * kept + num_scores):
                    scores[t] = np.float32(0.0)
            for index in range(page, until):
                keys = pages + (tables[index] * kv_heads + head) * page_bytes
                if index + 1 < until:
                    _fetch(pages + (tables[index + 1] * kv_heads + head) * page_bytes, key_bytes)
                else:
                    first_values = pages + (tables[page] * kv_heads + head) * page_bytes + key_bytes
                    _fetch(first_values, page_bytes - key_bytes)
                score(scratch, keys, scores_at + 4 * (index - page) * block_size)
            for row in range(rows):
                own = position + min(row // group, count - 1) - page * block_size
                oldest = own + 1 - window if window > 0 else 0
                of_row = scores_at + 4 * row * kept
                highest, added = _soften(of_row, num_scores, own, oldest, softcap, highest_of[row])
                shrink = exp(highest_of[row] - highest)
                for j in range(row * value_dim, (row + 1) * value_dim):
                    totals[j] *= shrink
                highest_of[row], weight[row] = highest, weight[row] * shrink + added
            for index in range(page, until):
                values = pages + (tables[index] * kv_heads + head) * page_bytes + key_bytes
                if index + 1 < last:
                    following = pages + (tables[index + 1] * kv_heads + head) * page_bytes
                    _fetch(following + key_bytes, page_bytes - key_bytes)
                gather(scores_at + 4 * (index - page) * block_size, values, totals_at)
        for row in range(count * group):
            query_head = head * group + row % group
            share = np.float32(1.0) / weight[row]
            if sinks != 0:
                sink = float32s(sinks)[query_head]
                highest = max(sink, highest_of[row])
                shrink = exp(highest_of[row] - highest)
                share = shrink / (weight[row] * shrink + exp(sink - highest))
            to = ((first + row // group) * kv_heads * group + query_head) * value_dim
            for j in range(value_dim):
                store(out, to + j, totals[row * value_dim + j] * share)

    return attend


@njit(**FAST)
def _soften(row: int, num_scores: int, own: int, oldest: int, softcap: Any, before: Any) -> Any:
    """Turns one query's scores into weights; gives the highest score so far and the sum of the weights.

    Tokens after ``own`` and before ``oldest`` are not seen. Rounded up to whole vectors.
    """
    scores = float32s(row)
    padded = (num_scores + LANES - 1) // LANES * LANES
    if softcap > 0:
        for t in range(num_scores):
            scores[t] = softcap * np.float32(np.tanh(scores[t] / softcap))
    for t in range(min(max(own + 1, 0), num_scores), padded):
        scores[t] = _NOTHING
    for t in range(min(oldest, num_scores)):
        scores[t] = _NOTHING
    highest = largest(row, padded, before)
    return highest, exponentials(row, padded, highest)


@njit(inline="always", **FAST)
def _fetch(address: Any, num_bytes: Any) -> None:
    """Pages lie scattered: without a hint each would begin with a wait for memory."""
    for line in range(0, num_bytes, CACHE_LINE):
        prefetch(address + line)


def _pages_kept(block_size: int) -> int:
    return max(1, _TOKENS // block_size)


def _kept(block_size: int) -> int:
    """Scores of a query that are kept at a time: of whole pages, in whole vectors."""
    return -(-_pages_kept(block_size) * block_size // LANES) * LANES
