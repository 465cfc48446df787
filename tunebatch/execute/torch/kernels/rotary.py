"""Rotary embedding (Su et al., 2021) of queries and keys in one launch."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotary_kernel(
    out_q,
    out_k,
    q,
    k,
    cos,
    sin,
    q_heads,
    k_heads,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    cos_stride,
    sin_stride,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    REST: tl.constexpr,
    REST_PADDED: tl.constexpr,
    HEADS: tl.constexpr,
    ROUND_PRODUCTS: tl.constexpr,
):
    """Grid ``(tokens, blocks of HEADS query heads, and then of key heads)``.

    Args:
        out_q: ``[tokens, q_heads, 2 * HALF + REST]``, and ``out_k`` alike.
        q: The same with strides of its own, and ``k`` alike.
        cos: ``[tokens, 2 * HALF]``, and ``sin`` alike.
        REST: Of a head, what is not rotated.
        ROUND_PRODUCTS: To the dtype of ``out_q`` before they are added; else their sum alone is rounded.
    """
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    q_blocks = tl.cdiv(q_heads, HEADS)
    row = token * (2 * HALF + REST)
    cos += token * cos_stride
    sin += token * sin_stride
    if block < q_blocks:
        _rotate(
            out_q + row * q_heads,
            q + token * q_token_stride,
            cos,
            sin,
            block * HEADS,
            q_heads,
            q_head_stride,
            HALF,
            HALF_PADDED,
            REST,
            REST_PADDED,
            HEADS,
            ROUND_PRODUCTS,
        )
    else:
        _rotate(
            out_k + row * k_heads,
            k + token * k_token_stride,
            cos,
            sin,
            (block - q_blocks) * HEADS,
            k_heads,
            k_head_stride,
            HALF,
            HALF_PADDED,
            REST,
            REST_PADDED,
            HEADS,
            ROUND_PRODUCTS,
        )


@triton.jit
def _rotate(
    out,
    x,
    cos,
    sin,
    first_head,
    heads,
    head_stride,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    REST: tl.constexpr,
    REST_PADDED: tl.constexpr,
    HEADS: tl.constexpr,
    ROUND_PRODUCTS: tl.constexpr,
):
    head = first_head + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF_PADDED)[None, :]
    there = (head < heads) & (column < HALF)
    place = head * head_stride + column
    out_place = head * (2 * HALF + REST) + column
    left = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
    right = tl.load(x + HALF + place, mask=there, other=0.0).to(tl.float32)
    # By each head anew: what heads share would be exchanged between threads, and they wait for that.
    angle = column + 0 * head
    left_cos = tl.load(cos + angle, mask=there, other=0.0).to(tl.float32)
    right_cos = tl.load(cos + HALF + angle, mask=there, other=0.0).to(tl.float32)
    left_sin = tl.load(sin + angle, mask=there, other=0.0).to(tl.float32)
    right_sin = tl.load(sin + HALF + angle, mask=there, other=0.0).to(tl.float32)
    new_left = _sum(left * left_cos, -right * left_sin, out, ROUND_PRODUCTS)
    new_right = _sum(right * right_cos, left * right_sin, out, ROUND_PRODUCTS)
    tl.store(out + out_place, new_left.to(out.dtype.element_ty), mask=there)
    tl.store(out + HALF + out_place, new_right.to(out.dtype.element_ty), mask=there)
    if REST > 0:
        column = tl.arange(0, REST_PADDED)[None, :]
        there = (head < heads) & (column < REST)
        rest = tl.load(x + 2 * HALF + head * head_stride + column, mask=there, other=0.0)
        out_place = head * (2 * HALF + REST) + column
        tl.store(out + 2 * HALF + out_place, rest.to(out.dtype.element_ty), mask=there)


@triton.jit
def _sum(a, b, out, ROUND_PRODUCTS: tl.constexpr):
    if ROUND_PRODUCTS:
        a = a.to(out.dtype.element_ty).to(tl.float32)
        b = b.to(out.dtype.element_ty).to(tl.float32)
    return a + b
