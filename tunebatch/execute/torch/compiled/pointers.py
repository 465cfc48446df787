"""Raw memory for compiled kernels: typed pointers, bfloat16, and an exponential that vectorises.

Kernels work on addresses instead of numpy arrays, because numba's array indexing allows negative
indices, and the branch for them keeps LLVM from vectorising the inner loops.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

FAST = {"fastmath": True, "error_model": "numpy"}
CACHE_LINE = 64
LOG2_E, LEAST_EXPONENT = 1.4426950408889634, -126.0
# Coefficients of 2 ** f for f within half of 0, the highest power first.
EXP2 = (
    1.5403530393381609e-4,
    1.3333558146428443e-3,
    9.6181291076284772e-3,
    5.5504108664821580e-2,
    2.4022650695910071e-1,
    6.9314718055994531e-1,
    1.0,
)


def _pointer_to(element: Any) -> Any:
    @intrinsic
    def pointer(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.int64), generate

    return pointer


int64s = _pointer_to(types.int64)
float32s = _pointer_to(types.float32)
_uint16s = _pointer_to(types.uint16)


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, to be read soon."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        ask = builder.module.declare_intrinsic(
            "llvm.prefetch", (byte,), ir.FunctionType(ir.VoidType(), (byte, number, number, number))
        )
        read, keep, data = (ir.Constant(number, value) for value in (0, 3, 1))
        builder.call(ask, (builder.inttoptr(arguments[0], byte), read, keep, data))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def bits_of(typing_context: Any, value: Any) -> Any:
    """The bits of a float32 as an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def float_of(typing_context: Any, bits: Any) -> Any:
    """The float32 that an int32 holds the bits of."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@cache
def as_bits(value: float) -> int:
    """A float as the integer that kernels take it as; they turn it back with `float_of`."""
    return int(np.float32(value).view(np.int32))


@njit(inline="always", **FAST)
def exp(x: Any) -> Any:
    """``e ** x`` for ``x <= 0``, to 5e-7 near 0 and 1e-5 where it vanishes; from -87 on it is 1e-38.

    Splits ``x / ln 2`` into an integer, which goes into the exponent's bits, and a fraction within
    half, for which a polynomial does. libm's would be a call per element.
    """
    y = max(x * np.float32(LOG2_E), np.float32(LEAST_EXPONENT))
    n = np.int32(y - np.float32(0.5))
    f = y - np.float32(n)
    p = np.float32(EXP2[0])
    p = p * f + np.float32(EXP2[1])
    p = p * f + np.float32(EXP2[2])
    p = p * f + np.float32(EXP2[3])
    p = p * f + np.float32(EXP2[4])
    p = p * f + np.float32(EXP2[5])
    p = p * f + np.float32(EXP2[6])
    return float_of(bits_of(p) + (n << np.int32(23)))


@njit(inline="always", **FAST)
def _load_float32(pointer: Any, index: Any) -> Any:
    return pointer[index]


@njit(inline="always", **FAST)
def _store_float32(pointer: Any, index: Any, value: Any) -> None:
    pointer[index] = value


@njit(inline="always", **FAST)
def _load_bfloat16(pointer: Any, index: Any) -> Any:
    return float_of(np.int32(np.uint32(pointer[index]) << np.uint32(16)))


@njit(inline="always", **FAST)
def _store_bfloat16(pointer: Any, index: Any, value: Any) -> None:
    bits = np.uint32(bits_of(np.float32(value)))
    # To nearest, ties to even, as torch rounds.
    bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    pointer[index] = np.uint16(bits >> np.uint32(16))


@dataclass(frozen=True, slots=True)
class Element:
    """How kernels reach tensors of one dtype; they compute in float32.

    ``at(address)`` gives a pointer, ``load(pointer, index)`` a float32, ``store(pointer, index, value)``
    rounds one.
    """

    name: str
    size: int
    at: Any
    load: Any
    store: Any


ELEMENTS = {
    torch.float32: Element("float32", 4, float32s, _load_float32, _store_float32),
    torch.bfloat16: Element("bfloat16", 2, _uint16s, _load_bfloat16, _store_bfloat16),
}
