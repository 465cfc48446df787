"""A matrix product of at most sixteen rows, where calling a library takes longer than multiplying."""

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
from tunebatch.execute.torch.compiled.tile import LANES, largest, micro

MOST_ROWS = 16
_TILE = 8  # rows whose sums are kept in registers
_DEPTH = 32
_LEAST = np.float32(np.finfo(np.float32).min)
_AHEAD = 2  # pieces of a panel that are on their way from memory


class FewRows:
    """``x @ weight.T + bias`` for ``x [rows, in]`` of at most `MOST_ROWS` rows; ``weight [out, in]``.

    The weight is kept in panels of 16 outputs, each read from beginning to end.
    """

    __slots__ = ("_bias", "_depth", "_found", "_panels", "_scratch", "_search", "_store", "_width")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        width, depth = weight.shape
        padded = F.pad(weight, (0, -depth % _DEPTH, 0, -width % LANES))
        self._panels = padded.unflatten(0, (-1, LANES)).transpose(1, 2).contiguous()
        self._bias = None if bias is None else bias.float()
        self._width, self._depth = width, depth
        self._store, self._search = _few_rows(weight.dtype), _highest(weight.dtype)
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
    """For each thread the rows as columns of float32 numbers, and a tile of results."""
    return torch.zeros(num_threads, depth * MOST_ROWS + MOST_ROWS * LANES)


@cache
def _found(num_threads: int) -> tuple[Tensor, Tensor]:
    """For each thread the largest value of each row, and which output it is."""
    return torch.zeros(num_threads, MOST_ROWS), torch.zeros(num_threads, MOST_ROWS, dtype=torch.int64)


@cache
def _few_rows(dtype: torch.dtype) -> Kernel:
    element = ELEMENTS[dtype]
    at, store = element.at, element.store
    columns_of, multiply = _products(dtype)

    @njit(**FAST)
    def body(a: Any, thread: int, num_threads: int) -> None:
        out, rows, width = at(a[7]), a[3], a[5]
        columns_at, tile_at = columns_of(a, thread)
        tile = float32s(tile_at)
        panels = (width + LANES - 1) // LANES
        for panel in range(panels * thread // num_threads, panels * (thread + 1) // num_threads):
            multiply(a, panel, columns_at, tile_at)
            first = panel * LANES
            for row in range(rows):
                for j in range(min(LANES, width - first)):
                    store(out, row * width + first + j, tile[row * LANES + j])

    return Kernel(body, 8)


@cache
def _highest(dtype: torch.dtype) -> Kernel:
    columns_of, multiply = _products(dtype)

    @njit(**FAST)
    def body(a: Any, thread: int, num_threads: int) -> None:
        values, outputs, rows, width = float32s(a[7]), int64s(a[8]), a[3], a[5]
        # Threads that do not run, as the work is small, have found nothing.
        for other in range(thread, a[9], num_threads):
            for row in range(rows):
                values[other * MOST_ROWS + row] = _LEAST
                outputs[other * MOST_ROWS + row] = 0
        columns_at, tile_at = columns_of(a, thread)
        tile = float32s(tile_at)
        panels = (width + LANES - 1) // LANES
        for panel in range(panels * thread // num_threads, panels * (thread + 1) // num_threads):
            multiply(a, panel, columns_at, tile_at)
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
    """What both kernels do: lay the rows out as a thread's columns, and multiply them with one panel."""
    element = ELEMENTS[dtype]
    at, load, size = element.at, element.load, element.size
    strides = ((1, MOST_ROWS), LANES, LANES)
    one, two, four, eight = (micro(element, rows, _DEPTH, LANES, *strides) for rows in (1, 2, 4, _TILE))

    @njit(**FAST)
    def columns_of(a: Any, thread: int) -> Any:
        x, rows, depth = at(a[0]), a[3], a[4]
        padded = (depth + _DEPTH - 1) // _DEPTH * _DEPTH
        columns_at = a[6] + 4 * thread * (padded * MOST_ROWS + MOST_ROWS * LANES)
        columns = float32s(columns_at)
        for row in range(rows):
            for k in range(depth):
                columns[k * MOST_ROWS + row] = load(x, row * depth + k)
        for k in range(depth, padded):
            for row in range(rows):
                columns[k * MOST_ROWS + row] = np.float32(0.0)
        return columns_at, columns_at + 4 * padded * MOST_ROWS

    @njit(**FAST)
    def multiply(a: Any, panel: int, columns_at: int, tile_at: int) -> None:
        rows, depth, width = a[3], a[4], a[5]
        padded = (depth + _DEPTH - 1) // _DEPTH * _DEPTH
        tile = float32s(tile_at)
        for i in range((rows + _TILE - 1) // _TILE * _TILE * LANES):
            tile[i] = np.float32(0.0)
        for k in range(0, padded, _DEPTH):
            weights = a[1] + size * LANES * (panel * padded + k)
            for line in range(0, size * LANES * _DEPTH, CACHE_LINE):
                prefetch(weights + _AHEAD * size * LANES * _DEPTH + line)
            for row in range(0, rows, _TILE):
                these, sums = columns_at + 4 * (k * MOST_ROWS + row), tile_at + 4 * row * LANES
                if rows - row == 1:
                    one(these, weights, sums)
                elif rows - row == 2:
                    two(these, weights, sums)
                elif rows - row <= 4:
                    four(these, weights, sums)
                else:
                    eight(these, weights, sums)
        if a[2] != 0:
            bias, first = float32s(a[2]), panel * LANES
            for row in range(rows):
                for j in range(min(LANES, width - first)):
                    tile[row * LANES + j] += bias[first + j]

    return columns_of, multiply
