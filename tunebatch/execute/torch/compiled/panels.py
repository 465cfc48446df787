"""A matrix product on the threads of the other kernels, whose sums stay in registers.

With few rows a library takes longer to call than to multiply; with more, our own is level with it on
AMD's processors, where torch's does not use what they can do.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from tunebatch.execute.torch.compiled.pointers import CACHE_LINE, ELEMENTS, FAST, float32s, int64s, prefetch
from tunebatch.execute.torch.compiled.threads import Kernel
from tunebatch.execute.torch.compiled.tile import LANES, ROWS, largest, micro

MOST_ROWS = 64  # that are multiplied with a panel while it is in the processor's nearest cache
_DEPTH = 32
_LEAST = np.float32(np.finfo(np.float32).min)
_AHEAD = 2  # pieces of a panel that are on their way from memory


class Panels:
    """``x @ weight.T + bias`` for ``x [rows, in]``; ``weight [out, in]``.

    The weight is kept in panels of 16 outputs, each read from beginning to end, once for `MOST_ROWS` rows.
    """

    __slots__ = ("_bias", "_depth", "_found", "_panels", "_scratch", "_search", "_store", "_width")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        width, depth = weight.shape
        padded = F.pad(weight, (0, -depth % _DEPTH, 0, -width % LANES))
        self._panels = padded.unflatten(0, (-1, LANES)).transpose(1, 2).contiguous()
        self._bias = None if bias is None else bias.float()
        self._width, self._depth = width, depth
        self._store, self._search = _product(weight.dtype), _highest(weight.dtype)
        num_threads = torch.get_num_threads()
        self._scratch = _scratch(padded.shape[1], num_threads)
        self._found = _found(num_threads)

    def __call__(self, x: Tensor) -> Tensor:
        out = x.new_empty(x.shape[0], self._width)
        self._run(self._store, x, out.data_ptr())
        return out

    def highest(self, x: Tensor) -> Tensor:
        """The output ``[rows]`` that is largest in each row, of equals the first; none of them is stored.

        Each thread finds the largest of its panels. Of a vocabulary, outputs that another core wrote take
        longer to read than to compute.
        """
        values, outputs = self._found
        self._run(self._search, x, values.data_ptr(), outputs.data_ptr(), len(values))
        return outputs.gather(0, values.argmax(0, keepdim=True))[0, : x.shape[0]]

    def _run(self, kernel: Kernel, x: Tensor, *results: int) -> None:
        kernel(
            self._panels.numel(),
            x.data_ptr(),
            self._panels.data_ptr(),
            0 if self._bias is None else self._bias.data_ptr(),
            x.shape[0],
            self._depth,
            self._width,
            self._scratch.data_ptr(),
            *results,
        )


@cache
def _scratch(depth: int, num_threads: int) -> Tensor:
    """For each thread the rows as float32 numbers, and a tile of results."""
    return torch.zeros(num_threads, depth * MOST_ROWS + MOST_ROWS * LANES)


@cache
def _found(num_threads: int) -> tuple[Tensor, Tensor]:
    """For each thread the largest value of each row, and which output it is."""
    return torch.zeros(num_threads, MOST_ROWS), torch.zeros(num_threads, MOST_ROWS, dtype=torch.int64)


@cache
def _product(dtype: torch.dtype) -> Kernel:
    element = ELEMENTS[dtype]
    at, store = element.at, element.store
    rows_of, multiply = _products(dtype)

    @njit(**FAST)
    def body(a: Any, thread: int, num_threads: int) -> None:
        out, width = at(a[7]), a[5]
        panels = (width + LANES - 1) // LANES
        for begin in range(0, a[3], MOST_ROWS):
            rows = min(a[3] - begin, MOST_ROWS)
            rows_at, tile_at = rows_of(a, thread, begin, rows)
            tile = float32s(tile_at)
            for panel in range(panels * thread // num_threads, panels * (thread + 1) // num_threads):
                multiply(a, panel, rows_at, rows, tile_at)
                first = panel * LANES
                for row in range(rows):
                    for j in range(min(LANES, width - first)):
                        store(out, (begin + row) * width + first + j, tile[row * LANES + j])

    return Kernel(body, 8)


@cache
def _highest(dtype: torch.dtype) -> Kernel:
    rows_of, multiply = _products(dtype)

    @njit(**FAST)
    def body(a: Any, thread: int, num_threads: int) -> None:
        values, outputs, rows, width = float32s(a[7]), int64s(a[8]), a[3], a[5]
        # Threads that do not run, as the work is small, have found nothing.
        for other in range(thread, a[9], num_threads):
            for row in range(rows):
                values[other * MOST_ROWS + row] = _LEAST
                outputs[other * MOST_ROWS + row] = 0
        rows_at, tile_at = rows_of(a, thread, 0, rows)
        tile = float32s(tile_at)
        panels = (width + LANES - 1) // LANES
        for panel in range(panels * thread // num_threads, panels * (thread + 1) // num_threads):
            multiply(a, panel, rows_at, rows, tile_at)
            first = panel * LANES
            lanes = min(LANES, width - first)
            for j in range(lanes, LANES):
                for row in range(rows):
                    tile[row * LANES + j] = _LEAST
            for row in range(rows):
                found = thread * MOST_ROWS + row
                here = tile_at + 4 * row * LANES
                if largest(here, LANES, values[found]) > values[found]:
                    for j in range(lanes):
                        if tile[row * LANES + j] > values[found]:
                            values[found] = tile[row * LANES + j]
                            outputs[found] = first + j

    return Kernel(body, 10)


@cache
def _products(dtype: torch.dtype) -> tuple[Any, Any]:
    """What both kernels do: lay the rows out for a thread, and multiply them with one panel."""
    element = ELEMENTS[dtype]
    at, load, size = element.at, element.load, element.size
    one, two, four, eight = (micro(element, rows, _DEPTH, LANES, LANES, LANES) for rows in (1, 2, 4, 8))
    in_place, together = size == 4, ROWS

    @njit(**FAST)
    def rows_of(a: Any, thread: int, first: int, rows: int) -> Any:
        """Where a thread's rows are, as float32 and padded to whole pieces, and where its tile."""
        x, depth = at(a[0]), a[4]
        padded = (depth + _DEPTH - 1) // _DEPTH * _DEPTH
        rows_at = a[6] + 4 * thread * MOST_ROWS * (padded + LANES)
        tile_at = rows_at + 4 * padded * MOST_ROWS
        if in_place and padded == depth:
            return a[0] + 4 * first * depth, tile_at
        for row in range(rows):
            own = float32s(rows_at + 4 * row * padded)
            for k in range(depth):
                own[k] = load(x, (first + row) * depth + k)
            for k in range(depth, padded):
                own[k] = np.float32(0.0)
        return rows_at, tile_at

    @njit(**FAST)
    def multiply(a: Any, panel: int, rows_at: int, rows: int, tile_at: int) -> None:
        depth, width = a[4], a[5]
        padded = (depth + _DEPTH - 1) // _DEPTH * _DEPTH
        tile = float32s(tile_at)
        for i in range(rows * LANES):
            tile[i] = np.float32(0.0)
        for k in range(0, padded, _DEPTH):
            weights = a[1] + size * LANES * (panel * padded + k)
            for line in range(0, size * LANES * _DEPTH, CACHE_LINE):
                prefetch(weights + _AHEAD * size * LANES * _DEPTH + line)
            row = 0
            while row < rows:
                these, sums = rows_at + 4 * (row * padded + k), tile_at + 4 * row * LANES
                left = rows - row
                if together == 8 and left >= 8:
                    eight(these, padded, weights, sums)
                    row += 8
                elif left >= 4:
                    four(these, padded, weights, sums)
                    row += 4
                elif left >= 2:
                    two(these, padded, weights, sums)
                    row += 2
                else:
                    one(these, padded, weights, sums)
                    row += 1
        if a[2] != 0:
            bias, first = float32s(a[2]), panel * LANES
            for row in range(rows):
                for j in range(min(LANES, width - first)):
                    tile[row * LANES + j] += bias[first + j]

    return rows_of, multiply
