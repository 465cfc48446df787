"""The norm of RMSNorm (Zhang and Sennrich, NeurIPS 2019) in one launch."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(
    out,
    x,
    weight,
    eps,
    inner,
    outer_stride,
    inner_stride,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
    PLUS_ONE: tl.constexpr,
):
    """Grid ``(rows,)``.

    Args:
        out: ``[rows, WIDTH]``.
        x: ``[rows // inner, inner, WIDTH]``, whose rows may lie apart.
        weight: ``[WIDTH]``.
        ROUND_FIRST: To the dtype of ``out``, and then multiply; else the product alone is rounded.
        PLUS_ONE: Weights are what is added to 1.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH_PADDED)
    there = column < WIDTH
    place = row // inner * outer_stride + row % inner * inner_stride
    numbers = tl.load(x + place + column, mask=there, other=0.0).to(tl.float32)
    normed = numbers * tl.rsqrt(tl.sum(numbers * numbers, 0) / WIDTH + eps)
    if ROUND_FIRST:
        normed = normed.to(out.dtype.element_ty).to(tl.float32)
    factor = tl.load(weight + column, mask=there, other=0.0).to(tl.float32)
    if PLUS_ONE:
        factor += 1.0
    tl.store(out + row * WIDTH + column, (normed * factor).to(out.dtype.element_ty), mask=there)
