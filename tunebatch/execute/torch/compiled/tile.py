"""A small matrix product in vector registers, written in LLVM's own terms.

LLVM vectorises plain loops over pointers only behind run-time checks for overlap, and keeps sums in
memory: for products as small as a page of the KV cache that takes ten times as long as the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tunebatch.execute.torch.compiled.pointers import EXP2, FAST, LEAST_EXPONENT, LOG2_E, Element

LANES = 16  # float32 numbers of a vector: one AVX-512 register, two of AVX2
# Sums that are kept in registers at a time, which are also additions under way, to hide how long one takes.
# More than the registers hold would go by way of memory: AVX-512 has 32, AVX2 16 of half the size.
ROWS = 8 if binding.get_host_cpu_features().get("avx512f") else 4
_DEPTH = 32  # unrolled at most

_FLOAT, _INT16, _INT32, _INT64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_VECTOR, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT32, LANES)


def product(
    element: Element, rows: int, depth: int, width: int, a_stride: int, b_stride: int, out_stride: int
) -> Any:
    """A compiled ``f(a, b, out)`` on addresses: ``out[rows, width] += a[rows, depth] @ b[depth, width]``.

    ``a`` and ``out`` are float32, ``b`` is of the element's type; strides are between rows, in elements.
    """
    lanes, piece = _divisor(width, LANES), _largest_divisor(depth, _DEPTH)
    whole, rest = rows - rows % ROWS, rows % ROWS
    size = element.size
    many = micro(element, ROWS if whole else 1, piece, lanes, b_stride, out_stride)
    few = micro(element, max(rest, 1), piece, lanes, b_stride, out_stride)

    @njit(**FAST)
    def multiply_add(a: int, b: int, out: int) -> None:
        for column in range(0, width, lanes):
            for at in range(0, depth, piece):
                there = b + size * (at * b_stride + column)
                for row in range(0, whole, ROWS):
                    many(
                        a + 4 * (row * a_stride + at), a_stride, there, out + 4 * (row * out_stride + column)
                    )
                if rest:
                    few(
                        a + 4 * (whole * a_stride + at),
                        a_stride,
                        there,
                        out + 4 * (whole * out_stride + column),
                    )

    return multiply_add


@intrinsic
def largest(typing_context: Any, address: Any, count: Any, least: Any) -> Any:
    """The largest of ``count`` float32 numbers, a multiple of `LANES`, and of ``least``.

    LLVM finds it one by one in a loop, which takes as long as the products.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def larger(one: Any, other: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", one, other, flags=("fast",)), one, other)

        address, count, least = arguments
        found = cgutils.alloca_once_value(builder, _splat(builder, least))
        for where in _vectors(builder, address, count):
            builder.store(larger(builder.load(where, align=4), builder.load(found)), found)
        return _folded(builder, builder.load(found), larger)

    return types.float32(types.int64, types.int64, types.float32), generate


@intrinsic
def exponentials(typing_context: Any, address: Any, count: Any, highest: Any) -> Any:
    """``x = exp(x - highest)`` of ``count`` float32 numbers, a multiple of `LANES`; returns their sum.

    `pointers.exp`, on whole registers: LLVM takes half of one by itself.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def all_of(number: float) -> Any:
            return ir.Constant(_VECTOR, [number] * LANES)

        def add(one: Any, other: Any) -> Any:
            return builder.fadd(one, other, flags=("fast",))

        def mul(one: Any, other: Any) -> Any:
            return builder.fmul(one, other, flags=("fast",))

        address, count, highest = arguments
        highest = _splat(builder, highest)
        total = cgutils.alloca_once_value(builder, all_of(0.0))
        for where in _vectors(builder, address, count):
            x = builder.fsub(builder.load(where, align=4), highest, flags=("fast",))
            y = mul(x, all_of(LOG2_E))
            least = all_of(LEAST_EXPONENT)
            y = builder.select(builder.fcmp_ordered(">", y, least, flags=("fast",)), y, least)
            n = builder.fptosi(add(y, all_of(-0.5)), _INTS)
            f = builder.fsub(y, builder.sitofp(n, _VECTOR), flags=("fast",))
            p = all_of(EXP2[0])
            for coefficient in EXP2[1:]:
                p = add(mul(p, f), all_of(coefficient))
            exponent = builder.shl(n, ir.Constant(_INTS, [23] * LANES))
            power = builder.bitcast(builder.add(builder.bitcast(p, _INTS), exponent), _VECTOR)
            builder.store(power, where, align=4)
            builder.store(add(builder.load(total), power), total)
        return _folded(builder, builder.load(total), add)

    return types.float32(types.int64, types.int64, types.float32), generate


def _vectors(builder: Any, address: Any, count: Any) -> Iterator[Any]:
    """Emits a loop over vectors: what is emitted inside a ``for`` over this is its body."""
    zero, step = ir.Constant(_INT64, 0), ir.Constant(_INT64, LANES)
    with cgutils.for_range_slice(builder, zero, count, step, _INT64) as (index, _):
        where = builder.add(address, builder.mul(index, ir.Constant(_INT64, 4)))
        yield builder.inttoptr(where, _VECTOR.as_pointer())


def _splat(builder: Any, number: Any) -> Any:
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(_INTS, [0] * LANES))


def _folded(builder: Any, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """One number of a vector's, halving it again and again."""
    width = LANES
    while width > 1:
        width //= 2
        order = ir.Constant(_INTS, [(lane + width) % LANES for lane in range(LANES)])
        vector = combine(vector, builder.shuffle_vector(vector, vector, order))
    return builder.extract_element(vector, ir.Constant(_INT32, 0))


def _divisor(number: int, most: int) -> int:
    """The largest power of two, at most ``most``, that divides a number."""
    return min(number & -number, most)


def _largest_divisor(number: int, most: int) -> int:
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)


def micro(element: Element, rows: int, depth: int, lanes: int, b_stride: int, out_stride: int) -> Any:
    """A compiled ``f(a, a_stride, b, out)``: the product with one vector a row, unrolled, its sums in
    registers from beginning to end."""
    vector = ir.VectorType(_FLOAT, lanes)
    first_lane = ir.Constant(ir.VectorType(_INT32, lanes), [0] * lanes)
    chains = max(1, ROWS // rows)

    @intrinsic
    def multiply_add(typing_context: Any, a: Any, a_stride: Any, b: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a, a_stride, b, out = arguments
            row_bytes = builder.mul(a_stride, ir.Constant(_INT64, 4))
            a_rows = [builder.add(a, builder.mul(row_bytes, ir.Constant(_INT64, row))) for row in range(rows)]

            def pointer(base: Any, offset: int, kind: Any) -> Any:
                return builder.inttoptr(builder.add(base, ir.Constant(_INT64, offset)), kind.as_pointer())

            def splat(row: int, k: int) -> Any:
                number = builder.load(pointer(a_rows[row], 4 * k, _FLOAT), align=4)
                undefined = ir.Constant(vector, ir.Undefined)
                one = builder.insert_element(undefined, number, ir.Constant(_INT32, 0))
                return builder.shuffle_vector(one, undefined, first_lane)

            def load_b(k: int) -> Any:
                offset = element.size * k * b_stride
                if element.size == 4:
                    return builder.load(pointer(b, offset, vector), align=4)
                bits = builder.load(pointer(b, offset, ir.VectorType(_INT16, lanes)), align=2)
                wide = builder.zext(bits, ir.VectorType(_INT32, lanes))
                sixteen = ir.Constant(ir.VectorType(_INT32, lanes), [16] * lanes)
                return builder.bitcast(builder.shl(wide, sixteen), vector)

            sums: list[list[Any]] = [[] for _ in range(rows)]
            for k in range(depth):
                values = load_b(k)
                for row in range(rows):
                    term = builder.fmul(splat(row, k), values, flags=("fast",))
                    if len(sums[row]) < chains:
                        sums[row].append(term)
                    else:
                        chain = k % chains
                        sums[row][chain] = builder.fadd(sums[row][chain], term, flags=("fast",))
            for row in range(rows):
                target = pointer(out, 4 * row * out_stride, vector)
                total = builder.load(target, align=4)
                for chain in sums[row]:
                    total = builder.fadd(total, chain, flags=("fast",))
                builder.store(total, target, align=4)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64), generate

    return multiply_add
