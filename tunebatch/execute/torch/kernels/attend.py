"""Attention over the pages of the KV cache: prompts, chunks, drafts and single tokens in one kernel.

A program takes a *tile*: some tokens of one sequence, each with all query heads of one KV head (GQA), packed
into the rows of a matrix, so that keys and values are read once for all of them. It walks the sequence's
block table with the running softmax of FlashAttention (Dao et al., 2022), over one of several parts of the
context where tiles alone would not fill the GPU (flash-decoding, Dao et al., 2023); `merge` joins the parts.

Sequences, lengths and block tables are read on the device, and programs beyond what is there end at once: a
captured launch replays for any batch of at most as many sequences and tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


# Of what is not specialised, alignment and values change from step to step: each would compile it anew.
@triton.jit(
    do_not_specialize=[
        "block_tables",
        "context_lens",
        "query_start",
        "table_stride",
        "num_sequences",
        "window",
    ]
)
def attend_kernel(
    out,
    part_out,
    part_lse,
    query,
    keys,
    values,
    sinks,
    block_tables,
    context_lens,
    query_start,
    table_stride,
    num_sequences,
    window,
    scale,
    softcap,
    query_token_stride,
    query_head_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    VALUE_DIM_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    ONE_TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    SKIP_MASKS: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid ``(tiles, KV_HEADS, parts)``.

    Args:
        out: ``[tokens, heads, VALUE_DIM]``; written unless ``SPLIT``.
        part_out: ``[tokens, heads, parts, VALUE_DIM]`` float32, of a part's own softmax; if ``SPLIT``. Its
            first token is that of ``query_start``.
        part_lse: ``[tokens, heads, parts]`` float32, its logarithm to base 2 of the sum of exponentials;
            -inf where a part has no key for a row, whose ``part_out`` is then not written.
        query: ``[tokens, heads, DIM]``.
        keys: ``[slots, KV_HEADS, DIM]``; ``values`` likewise.
        sinks: ``[heads]``, if ``SINKS``.
        block_tables: ``[sequences, table_stride]``.
        query_start: ``[sequences + 1]`` first token of each sequence, ascending.
        GROUP: Query heads of a KV head.
        ROWS: Of a tile: ``ROWS // GROUP`` tokens of ``GROUP`` heads each; the rest is padding.
        KEYS: Read at a time.
        ONE_TILE: No sequence has more tokens than a tile; tiles are numbered like sequences.
        SKIP_MASKS: Keys that all rows see are not masked, in a loop of their own.
    """
    TOKENS: tl.constexpr = ROWS // GROUP
    # The last tile of a prompt sees most: it begins first, lest the others wait for it.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    num_parts = tl.num_programs(2)

    if ONE_TILE:
        sequence = tile
        first_token = 0
    else:
        sequence = sequence_of_tile(tile, query_start, num_sequences, TOKENS)
        first_token = (tile - first_tile(sequence, query_start, TOKENS)) * TOKENS
    begin = tl.load(query_start + sequence).to(tl.int32)
    num_tokens = tl.load(query_start + sequence + 1).to(tl.int32) - begin
    if first_token >= num_tokens:
        return

    row = tl.arange(0, ROWS)
    token = first_token + row // GROUP
    head = kv_head * GROUP + row % GROUP
    row_there = (row < TOKENS * GROUP) & (token < num_tokens)
    # 64 bits wherever a row or a slot is multiplied by what it is wide: 2^31 elements are a small cache.
    out_row = (begin + token).to(tl.int64) * (KV_HEADS * GROUP) + head
    dim = tl.arange(0, DIM_PADDED)
    value_dim = tl.arange(0, VALUE_DIM_PADDED)
    q = tl.load(
        query
        + (begin + token).to(tl.int64)[:, None] * query_token_stride
        + head[:, None] * query_head_stride
        + dim[None, :],
        mask=row_there[:, None] & (dim < DIM)[None, :],
        other=0.0,
    )

    context_len = tl.load(context_lens + sequence).to(tl.int32)
    position = context_len - num_tokens + token
    first_position = context_len - num_tokens + first_token
    last_position = context_len - num_tokens + tl.minimum(first_token + TOKENS, num_tokens) - 1
    # Keys that any row sees, shared out among the parts in whole steps of the loop. A padding sequence,
    # whose context is shorter than its tokens, has none.
    low = 0
    if WINDOWED:
        low = tl.maximum(first_position - window + 1, 0) // KEYS * KEYS
    high = tl.maximum(last_position + 1, low)
    if SPLIT:
        steps = tl.cdiv(tl.cdiv(high - low, KEYS), num_parts)
        low += part * steps * KEYS
        high = tl.minimum(low + steps * KEYS, high)

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if SINKS:
        sink = tl.load(sinks + head, mask=row_there, other=0.0).to(tl.float32) * LOG2_E
        if SPLIT:  # it takes part once
            sink = tl.where(part == 0, sink, float("-inf"))
        top = sink
        total = tl.where(sink > float("-inf"), 1.0, 0.0)
    acc = tl.zeros([ROWS, VALUE_DIM_PADDED], tl.float32)

    table = block_tables + sequence.to(tl.int64) * table_stride
    head_keys = keys + kv_head * DIM
    head_values = values + kv_head * VALUE_DIM
    # Masks matter where the context ends and where the window begins; in between all rows see all keys.
    all_from, all_to = low, low
    if SKIP_MASKS:
        if WINDOWED:
            all_from = tl.cdiv(tl.maximum(last_position - window + 1, low), KEYS) * KEYS
            all_from = tl.minimum(all_from, high)
        all_to = all_from + tl.maximum(tl.minimum(high, first_position + 1) - all_from, 0) // KEYS * KEYS
        if WINDOWED:
            acc, top, total = attend_keys(
                acc, top, total, q, position, head_keys, head_values, table, low, all_from,
                window, scale, softcap, True, KV_HEADS, DIM, VALUE_DIM, DIM_PADDED, VALUE_DIM_PADDED,
                BLOCK_SIZE, KEYS, WINDOWED, CAPPED, PRECISION,
            )  # fmt: skip
        acc, top, total = attend_keys(
            acc, top, total, q, position, head_keys, head_values, table, all_from, all_to,
            window, scale, softcap, False, KV_HEADS, DIM, VALUE_DIM, DIM_PADDED, VALUE_DIM_PADDED,
            BLOCK_SIZE, KEYS, WINDOWED, CAPPED, PRECISION,
        )  # fmt: skip
    acc, top, total = attend_keys(
        acc, top, total, q, position, head_keys, head_values, table, all_to, high,
        window, scale, softcap, True, KV_HEADS, DIM, VALUE_DIM, DIM_PADDED, VALUE_DIM_PADDED,
        BLOCK_SIZE, KEYS, WINDOWED, CAPPED, PRECISION,
    )  # fmt: skip

    any_key = total > 0
    acc = acc / tl.where(any_key, total, 1.0)[:, None]
    inside = row_there[:, None] & (value_dim < VALUE_DIM)[None, :]
    if SPLIT:
        part_row = (begin - tl.load(query_start).to(tl.int32) + token).to(tl.int64) * (
            KV_HEADS * GROUP
        ) + head
        place = part_row * num_parts + part
        lse = tl.where(any_key, top + tl.log2(tl.where(any_key, total, 1.0)), float("-inf"))
        tl.store(part_lse + place, lse, mask=row_there)
        tl.store(
            part_out + place[:, None] * VALUE_DIM + value_dim[None, :],
            acc,
            mask=inside & any_key[:, None],
        )
    else:
        tl.store(
            out + out_row[:, None] * VALUE_DIM + value_dim[None, :],
            acc.to(out.dtype.element_ty),
            mask=inside,
        )


@triton.jit
def first_tile(sequence, query_start, TOKENS: tl.constexpr):
    """The number of a sequence's first tile.

    Each has as many as it needs or one more, so that ``tokens // TOKENS + sequences`` are enough whatever the
    lengths are (vLLM's unified attention).
    """
    before = tl.load(query_start + sequence) - tl.load(query_start)
    return before.to(tl.int32) // TOKENS + sequence


@triton.jit
def sequence_of_tile(tile, query_start, num_sequences, TOKENS: tl.constexpr):
    """Which sequence a tile belongs to: the last whose first tile is not beyond it."""
    low = 0
    high = num_sequences
    while low < high:
        middle = (low + high) // 2
        if first_tile(middle, query_start, TOKENS) <= tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def attend_keys(
    acc,
    top,
    total,
    q,
    position,
    head_keys,
    head_values,
    table,
    low,
    high,
    window,
    scale,
    softcap,
    MASKED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    VALUE_DIM_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows ``q`` at ``position`` meet keys ``low`` (a multiple of ``KEYS``) to ``high``, which may be none.

    Returns what they were given and adds to: the largest score ``top``, to base 2, and relative to it the
    weighted sum of values ``acc`` and the sum of weights ``total``.
    """
    dim = tl.arange(0, DIM_PADDED)
    value_dim = tl.arange(0, VALUE_DIM_PADDED)
    dims_there = (dim < DIM)[None, :]
    value_dims_there = (value_dim < VALUE_DIM)[None, :]
    for start in range(low, high, KEYS):
        key_position = start + tl.arange(0, KEYS)
        there = key_position < high
        if BLOCK_SIZE % KEYS == 0:  # all in one block: a single number to look up
            block = tl.load(table + start // BLOCK_SIZE).to(tl.int64)
            slot = block * BLOCK_SIZE + start % BLOCK_SIZE + tl.arange(0, KEYS)
        else:
            if MASKED:
                block = tl.load(table + key_position // BLOCK_SIZE, mask=there, other=0).to(tl.int64)
            else:
                block = tl.load(table + key_position // BLOCK_SIZE).to(tl.int64)
            slot = block * BLOCK_SIZE + key_position % BLOCK_SIZE
        key_place = head_keys + slot[:, None] * (KV_HEADS * DIM) + dim[None, :]
        value_place = head_values + slot[:, None] * (KV_HEADS * VALUE_DIM) + value_dim[None, :]
        # Zeros beyond the end: what lies there may be NaN, and a weight of zero would not hide it.
        if MASKED:
            k = tl.load(key_place, mask=there[:, None] & dims_there, other=0.0)
            v = tl.load(value_place, mask=there[:, None] & value_dims_there, other=0.0)
        else:
            k = tl.load(key_place, mask=dims_there, other=0.0)
            v = tl.load(value_place, mask=value_dims_there, other=0.0)

        # Without "ieee", float32 would be multiplied as tf32, of 10 bits; for 16-bit types it says nothing.
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        if CAPPED:
            # tanh, which is no primitive; where exp2 overflows it is 1, as it should be.
            scores = softcap * (1.0 - 2.0 / (tl.exp2(scores / softcap * (2.0 * LOG2_E)) + 1.0))
        scores *= LOG2_E
        if MASKED:
            seen = there[None, :] & (key_position[None, :] <= position[:, None])
            if WINDOWED:
                seen = seen & (key_position[None, :] > position[:, None] - window)
            scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        # A row that has seen no key yet: -inf minus -inf is NaN, and minus 0 is right.
        finite_top = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
        weights = tl.exp2(scores - finite_top[:, None])
        shrink = tl.exp2(top - finite_top)
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        top = new_top
    return acc, top, total
