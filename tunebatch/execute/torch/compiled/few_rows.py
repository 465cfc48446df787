"""A matrix product of at most sixteen rows, where calling a library takes longer than multiplying."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from tunebatch.execute.torch.compiled.pointers import CACHE_LINE, ELEMENTS, FAST, float32s, prefetch
from tunebatch.execute.torch.compiled.threads import Kernel
from tunebatch.execute.torch.compiled.tile import LANES, micro

MOST_ROWS = 16
_TILE = 8  # rows whose sums are kept in registers
_DEPTH = 32
_AHEAD = 2  # pieces of a panel that are on their way from memory


class FewRows:
    """``x @ weight.T + bias`` for ``x [rows, in]`` of at most `MOST_ROWS` rows; ``weight [out, in]``.

    The weight is kept in panels of 16 outputs, each read from beginning to end.
    """

    __slots__ = ("_bias", "_depth", "_kernel", "_panels", "_scratch", "_width")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        width, depth = weight.shape
        padded = F.pad(weight, (0, -depth % _DEPTH, 0, -width % LANES))
        self._panels = padded.unflatten(0, (-1, LANES)).transpose(1, 2).contiguous()
        self._bias = None if bias is None else bias.float()
        self._width, self._depth = width, depth
        self._kernel = _few_rows(weight.dtype)
        self._scratch = _scratch(padded.shape[1], torch.get_num_threads())

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        out = x.new_empty(rows, self._width)
        self._kernel(
            self._panels.numel(),
            x.data_ptr(),
            self._panels.data_ptr(),
            0 if self._bias is None else self._bias.data_ptr(),
            out.data_ptr(),
            rows,
            self._depth,
            self._width,
            self._scratch.data_ptr(),
        )
        return out


@cache
def _scratch(depth: int, num_threads: int) -> Tensor:
    """For each thread the rows as columns of float32 numbers, and a tile of results."""
    return torch.zeros(num_threads, depth * MOST_ROWS + MOST_ROWS * LANES)


@cache
def _few_rows(dtype: torch.dtype) -> Kernel:
    element = ELEMENTS[dtype]
    at, load, store, size = element.at, element.load, element.store, element.size
    strides = ((1, MOST_ROWS), LANES, LANES)
    one, two, four, eight = (micro(element, rows, _DEPTH, LANES, *strides) for rows in (1, 2, 4, _TILE))

    @njit(**FAST)
    def body(a: Any, thread: int, num_threads: int) -> None:
        x, out, rows, depth, width = at(a[0]), at(a[3]), a[4], a[5], a[6]
        padded = (depth + _DEPTH - 1) // _DEPTH * _DEPTH
        columns_at = a[7] + 4 * thread * (padded * MOST_ROWS + MOST_ROWS * LANES)
        tile_at = columns_at + 4 * padded * MOST_ROWS
        columns, tile = float32s(columns_at), float32s(tile_at)
        for row in range(rows):
            for k in range(depth):
                columns[k * MOST_ROWS + row] = load(x, row * depth + k)
        for k in range(depth, padded):
            for row in range(rows):
                columns[k * MOST_ROWS + row] = np.float32(0.0)
        panels = (width + LANES - 1) // LANES
        for panel in range(panels * thread // num_threads, panels * (thread + 1) // num_threads):
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
            first = panel * LANES
            lanes = min(LANES, width - first)
            if a[2] != 0:
                bias = float32s(a[2])
                for row in range(rows):
                    for j in range(lanes):
                        tile[row * LANES + j] += bias[first + j]
            for row in range(rows):
                for j in range(lanes):
                    store(out, row * width + first + j, tile[row * LANES + j])

    return Kernel(body, 8)
