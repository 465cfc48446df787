"""Kernels over rows of hidden states: residual add with RMS norm, and the gate of an MLP."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tunebatch.execute.torch.compiled.pointers import (
    ELEMENTS,
    FAST,
    Element,
    as_bits,
    exp,
    float32s,
    float_of,
)
from tunebatch.execute.torch.compiled.threads import Kernel


def add_rms_norm(hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float, out: Tensor) -> None:
    """``hidden += delta``, then ``out = hidden / rms(hidden) * weight``; all ``[rows, size]``, in one pass.

    ``weight`` is float32; the mean of squares is taken in float32 whatever the dtype.
    """
    rows, size = hidden.shape
    _add_rms_norm(hidden.dtype)(
        rows * size,
        hidden.data_ptr(),
        0 if delta is None else delta.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        rows,
        size,
        as_bits(eps),
    )


def silu_mul(gate_up: Tensor, out: Tensor) -> None:
    """``out = silu(gate) * up`` of ``gate_up [rows, 2 * size]``, the gate first."""
    rows, size = out.shape
    _silu_mul(out.dtype)(4 * rows * size, gate_up.data_ptr(), out.data_ptr(), rows, size)


@cache
def _add_rms_norm(dtype: torch.dtype) -> Kernel:
    element: Element = ELEMENTS[dtype]
    at, load, store = element.at, element.load, element.store

    @njit(**FAST)
    def body(arguments: Any, thread: int, num_threads: int) -> None:
        hidden, out = at(arguments[0]), at(arguments[3])
        weight = float32s(arguments[2])
        rows, size, eps = arguments[4], arguments[5], float_of(np.int32(arguments[6]))
        for row in range(rows * thread // num_threads, rows * (thread + 1) // num_threads):
            first = row * size
            total = np.float32(0.0)
            if arguments[1] != 0:
                delta = at(arguments[1])
                for i in range(first, first + size):
                    value = load(hidden, i) + load(delta, i)
                    store(hidden, i, value)
                    total += value * value
            else:
                for i in range(first, first + size):
                    value = load(hidden, i)
                    total += value * value
            factor = np.float32(1.0) / np.float32(np.sqrt(total / np.float32(size) + eps))
            for i in range(size):
                store(out, first + i, load(hidden, first + i) * factor * weight[i])

    return Kernel(body, 7)


@cache
def _silu_mul(dtype: torch.dtype) -> Kernel:
    element: Element = ELEMENTS[dtype]
    at, load, store = element.at, element.load, element.store

    @njit(**FAST)
    def body(arguments: Any, thread: int, num_threads: int) -> None:
        gate_up, out = at(arguments[0]), at(arguments[1])
        rows, size = arguments[2], arguments[3]
        one = np.float32(1.0)
        for row in range(rows * thread // num_threads, rows * (thread + 1) // num_threads):
            gate, up, to = row * 2 * size, row * 2 * size + size, row * size
            for i in range(size):
                g = load(gate_up, gate + i)
                # exp takes what is not positive; sigmoid(g) = 1 - sigmoid(-g).
                e = exp(-abs(g))
                sigmoid = (one if g >= 0 else e) / (one + e)
                store(out, to + i, g * sigmoid * load(gate_up, up + i))

    return Kernel(body, 4)
