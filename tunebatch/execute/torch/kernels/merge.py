"""The parts of a context that `attend` split become one: the second half of flash-decoding."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_parts"])
def merge_kernel(
    out,
    part_out,
    part_lse,
    num_parts,
    VALUE_DIM: tl.constexpr,
    VALUE_DIM_PADDED: tl.constexpr,
    MOST_PARTS: tl.constexpr,
):
    """Grid ``(tokens, heads)``; shapes are those of `attend.attend_kernel`.

    Needs no lengths: a part that had no key for a row says so by a sum of zero (-inf), and its output, which
    nobody wrote, is not read. A row without any part, of a padding sequence, becomes zeros.
    """
    row = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    part = tl.arange(0, MOST_PARTS)
    value_dim = tl.arange(0, VALUE_DIM_PADDED)
    lse = tl.load(part_lse + row * num_parts + part, mask=part < num_parts, other=float("-inf"))
    there = lse > float("-inf")
    top = tl.max(lse, 0)
    weights = tl.exp2(lse - tl.where(top > float("-inf"), top, 0.0))
    total = tl.sum(weights, 0)
    parts = tl.load(
        part_out + (row * num_parts + part)[:, None] * VALUE_DIM + value_dim[None, :],
        mask=there[:, None] & (value_dim < VALUE_DIM)[None, :],
        other=0.0,
    )
    merged = tl.sum(parts * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(
        out + row * VALUE_DIM + value_dim,
        merged.to(out.dtype.element_ty),
        mask=value_dim < VALUE_DIM,
    )
