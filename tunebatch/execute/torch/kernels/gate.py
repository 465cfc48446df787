"""What a gate lets through, by the SiLU of Hendrycks and Gimpel (2016), in one launch."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gate_kernel(out, gate, up, width, gate_stride, up_stride, BLOCK: tl.constexpr):
    """Grid ``(rows, blocks of the width)``.

    Args:
        out: ``[rows, width]``.
        gate: The same, whose rows may lie apart, and ``up`` alike.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < width
    numbers = tl.load(gate + row * gate_stride + column, mask=there, other=0.0).to(tl.float32)
    # As torch: an exact quotient, and rounded before it is multiplied.
    opened = tl.div_rn(numbers, 1.0 + tl.exp(-numbers)).to(out.dtype.element_ty).to(tl.float32)
    let_in = tl.load(up + row * up_stride + column, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, (opened * let_in).to(out.dtype.element_ty), mask=there)
