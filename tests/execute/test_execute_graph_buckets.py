"""Which graph serves a step, how it is padded for it, and that the key holds all that a launch bakes in."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebatch.execute.torch.attention.base import KvCache, StepContext
from tunebatch.execute.torch.attention.launch import Kind, launches
from tunebatch.execute.torch.attention.reference import Reference
from tunebatch.execute.torch.graphs.buckets import Bucket, Buckets, Shape, buckets_for
from tunebatch.execute.torch.graphs.inputs import StaticInputs
from tunebatch.execute.torch.graphs.pad import Layout, Step, empty_step, lay_out

SLOTS = (1, 3, 8, 20, 64, 100)
# Slices, decodes and a seed: what a step computes, which is never nothing.
COUNTS = st.tuples(
    st.lists(st.integers(1, 40), max_size=12), st.integers(0, 70), st.integers(0, 2**20)
).filter(lambda drawn: drawn[0] or drawn[1])


def shape_of(counts: list[int], decodes: int, sampled: int | None = None) -> Shape:
    everything = sum(counts) + decodes
    return Shape(
        len(counts), sum(counts), max(counts, default=0), decodes, everything if sampled is None else sampled
    )


def serves(bucket: Bucket, step: Shape) -> bool:
    """As the documentation has it, at length."""
    full = bucket.shape
    if full.decodes == 0 and step.decodes:
        most = max(step.most_tokens, 1)
        step = Shape(step.slices + step.decodes, step.slice_tokens + step.decodes, most, 0, step.sampled)
    room = full.slices - step.slices > 0 or full.slice_tokens == step.slice_tokens
    pairs = (
        (step.slices, full.slices),
        (step.slice_tokens, full.slice_tokens),
        (step.most_tokens, full.most_tokens),
        (step.decodes, full.decodes),
        (step.sampled, full.sampled),
    )
    return room and all(has <= may for has, may in pairs)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SLOTS), COUNTS)
def test_a_step_has_the_smallest_bucket_that_fits_or_none(
    slots: int, drawn: tuple[list[int], int, int]
) -> None:
    counts, decodes, seed = drawn
    step = shape_of(counts, decodes)
    step = shape_of(counts, decodes, random.Random(seed).randint(0, step.tokens))
    fitting = [one for one in buckets_for(slots) if serves(one, step)]
    got = Buckets(buckets_for(slots)).smallest(step)
    if got is None:
        assert not fitting
    else:
        assert got in fitting
        assert got.shape.tokens == min(one.shape.tokens for one in fitting)


@pytest.mark.parametrize("slots", SLOTS)
def test_all_decodes_and_all_short_verifications_have_a_bucket(slots: int) -> None:
    buckets = Buckets(buckets_for(slots))
    for sequences in range(1, slots + 1):
        bucket = buckets.smallest(shape_of([], sequences))
        assert bucket is not None and bucket.shape.slices == 0
        assert bucket.shape.tokens <= max(sequences + 16, 1.25 * sequences)
        for drafts in (1, 2, 4, 8):
            full = [1 + drafts] * sequences
            if sum(full) > 320:
                continue
            bucket = buckets.smallest(shape_of(full, 0))
            assert bucket is not None and bucket.shape.decodes == 0
            # Half of them found nothing to draft, and decode beside the others.
            half = sequences // 2
            bucket = buckets.smallest(shape_of(full[half:], half))
            assert bucket is not None and bucket.shape.decodes == 0


def test_small_mixed_steps_have_a_bucket_and_large_ones_none() -> None:
    buckets = Buckets(buckets_for(64))
    for decodes in (0, 1, 30, 64):
        for chunks in ([20], [100, 28], [512 - 64], [30, 40, 50]):
            bucket = buckets.smallest(shape_of(chunks, decodes, len(chunks) + decodes))
            assert bucket is not None and bucket.shape.decodes >= decodes
            assert bucket.shape.tokens <= 2.5 * (sum(chunks) + decodes) + 32
    assert buckets.smallest(shape_of([2048], 10, 11)) is None
    assert buckets.smallest(shape_of([600], 10, 11)) is None
    assert buckets.smallest(shape_of([], 65)) is None
    # A table beside the list of buckets knows decodes: not those of which other rows are wanted.
    assert buckets.smallest(shape_of([], 3, 2)) == buckets.smallest(shape_of([], 3, 3))
    assert Buckets([]).smallest(shape_of([], 1)) is None


@pytest.mark.parametrize("slots", [64, 256, 512])
def test_a_minute_is_enough_to_capture_them(slots: int) -> None:
    assert len(buckets_for(slots)) <= 90
    assert max(one.shape.tokens for one in buckets_for(slots)) <= max(640, slots)


def random_step(shape: Shape, seed: int) -> tuple[Step, list[int]]:
    """Slices of random lengths, the longest as long as the shape says; no two numbers alike."""
    draw = random.Random(seed)
    longest = min(shape.most_tokens, shape.slice_tokens - shape.slices + 1)
    counts = [longest] * bool(shape.slices) + [1] * (shape.slices - 1)
    while sum(counts) < shape.slice_tokens:
        counts[draw.choice([i for i, count in enumerate(counts) if count < shape.most_tokens])] += 1
    draw.shuffle(counts)
    counts += [1] * shape.decodes
    tokens = sum(counts)
    number = iter(range(1000, 10**6))

    def numbers(*size: int) -> np.ndarray:
        return np.array([next(number) for _ in range(int(np.prod(size)))], np.int64).reshape(size)

    step = Step(
        shape=shape,
        tokens=numbers(tokens),
        positions=numbers(tokens),
        cache_slots=numbers(tokens),
        sampled_at=np.array(sorted(draw.sample(range(tokens), shape.sampled)), np.int64),
        query_start=np.cumsum([0, *counts]),
        context_lens=numbers(len(counts)),
        tables=numbers(len(counts), 1 + seed % 3),
    )
    return step, counts


@settings(max_examples=200, deadline=None)
@given(COUNTS)
def test_a_padded_step_is_the_step_and_padding(drawn: tuple[list[int], int, int]) -> None:
    counts, decodes, seed = drawn
    whole = shape_of(counts, decodes)
    step, counts = random_step(shape_of(counts, decodes, random.Random(seed).randint(0, whole.tokens)), seed)
    buckets = Buckets(buckets_for(64))
    bucket = buckets.smallest(step.shape)
    if bucket is None:
        return
    layout, full = Layout.of(buckets, 8), bucket.shape
    # What was there before must not matter.
    out = np.full(layout.size, -77, np.int64)
    rows = lay_out(out, layout, bucket, step)
    at, width = layout.starts, step.tables.shape[1]
    ids, positions, slots = (out[begin : begin + full.tokens] for begin in at[:3])
    sampled = out[at[3] : at[3] + full.sampled]
    begins = out[at[4] : at[4] + full.sequences + 1]
    lens = out[at[5] : at[5] + full.sequences]
    tables = out[at[6] : at[6] + rows * width].reshape(rows, width)
    assert begins[0] == 0 and begins[-1] == full.tokens and (np.diff(begins) >= 0).all()
    assert (np.diff(begins[full.slices :]) == 1).all()
    found = []
    for i, length in enumerate(lens):
        own = slice(begins[i], begins[i + 1])
        if length:
            assert i < full.slices or own.stop - own.start == 1
            found.append((ids[own], positions[own], slots[own], length, tables[i]))
        else:
            assert (slots[own] == -1).all() and (ids[own] == 0).all() and (positions[own] == 0).all()
    firsts = step.query_start
    assert len(found) == len(counts) == len(step.context_lens)
    for i, (own_ids, own_positions, own_slots, length, table) in enumerate(found):
        own = slice(firsts[i], firsts[i + 1])
        assert (own_ids == step.tokens[own]).all() and (own_positions == step.positions[own]).all()
        assert (own_slots == step.cache_slots[own]).all() and (table == step.tables[i]).all()
        assert length == step.context_lens[i]
    count = step.shape.sampled
    assert (ids[sampled[:count]] == step.tokens[step.sampled_at]).all()
    assert (sampled[count:] == 0).all()


def context(step: Step, counts: list[int], seed: int) -> StepContext:
    """The step as it would run eagerly, with starts and contexts of its own."""
    draw, slices = random.Random(seed), step.shape.slices
    starts = [draw.randint(0, 5000) for _ in counts]
    first = step.query_start.tolist()
    lens = [start + count for start, count in zip(starts, counts, strict=True)]
    return StepContext(
        cache=KvCache(9, 16, Reference().new_pools),
        positions=torch.tensor(step.positions),
        query_start=torch.tensor(step.query_start),
        context_lens=torch.tensor(lens),
        block_tables=torch.zeros(len(counts), 400, dtype=torch.int64),
        cache_slots=torch.tensor(step.cache_slots),
        slices=[(first[i], counts[i], starts[i]) for i in range(slices)],
        num_slice_tokens=step.shape.slice_tokens,
        max_context_len=max(lens),
        context_sum=sum(lens),
    )


KINDS = st.builds(
    Kind,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    kv_heads=st.sampled_from([1, 2, 8]),
    group=st.sampled_from([1, 2, 4, 7, 16]),
    dim=st.sampled_from([64, 128, 256]),
    value_dim=st.sampled_from([64, 128]),
    block_size=st.sampled_from([16, 64]),
    windowed=st.booleans(),
    capped=st.just(False),
    sinks=st.just(False),
)


@settings(max_examples=150, deadline=None)
@given(COUNTS, KINDS, st.sampled_from([4, 132]))
def test_steps_of_one_key_are_launched_alike(
    drawn: tuple[list[int], int, int], kind: Kind, processors: int
) -> None:
    """Whatever the device holds, and however long the contexts are; and as the captured step is."""
    counts, decodes, seed = drawn
    key = shape_of(counts, decodes)
    one, another = (context(*random_step(key, s), s) for s in (seed, seed + 1))
    bucket = Bucket(key)
    captured = StaticInputs(Buckets([bucket]), one.cache, 6400, torch.device("cpu")).of(bucket)[2]
    wanted = launches(captured, key.tokens, kind, processors)
    assert launches(one, key.tokens, kind, processors) == wanted
    assert launches(another, key.tokens, kind, processors) == wanted
    assert captured.block_tables.stride() == one.block_tables.stride()


@settings(max_examples=150, deadline=None)
@given(COUNTS, KINDS, st.sampled_from([4, 132]))
def test_a_launch_has_tiles_for_every_step_of_its_bucket(
    drawn: tuple[list[int], int, int], kind: Kind, processors: int
) -> None:
    counts, decodes, seed = drawn
    step, counts = random_step(shape_of(counts, decodes), seed)
    buckets = Buckets(buckets_for(64))
    bucket = buckets.smallest(step.shape)
    if bucket is None:
        return
    inputs = StaticInputs(Buckets([bucket]), KvCache(9, 16, Reference().new_pools), 6400, torch.device("cpu"))
    inputs.fill(bucket, step)
    _, _, static = inputs.of(bucket)
    begins, lens = static.query_start.tolist(), static.context_lens.tolist()
    for launch in launches(static, bucket.shape.tokens, kind, processors):
        tokens_of_a_tile = launch.tiling.rows // kind.group
        assert launch.first_token == begins[launch.first_sequence]
        for i in range(launch.first_sequence, launch.first_sequence + launch.num_sequences):
            own, tile = begins[i + 1] - begins[i], i - launch.first_sequence
            if launch.tiling.one_tile:
                assert tile < launch.grid[0] and (own <= tokens_of_a_tile or lens[i] == 0)
            else:
                first = (begins[i] - launch.first_token) // tokens_of_a_tile + tile
                assert first - (-own // tokens_of_a_tile) <= launch.grid[0]


def test_the_buffers_are_made_once_and_the_copies_take_no_more_than_the_step() -> None:
    cache = KvCache(9, 16, Reference().new_pools)
    buckets = Buckets(buckets_for(8))
    inputs = StaticInputs(buckets, cache, 16 * 50, torch.device("cpu"))
    places = {bucket: [part.data_ptr() for part in parts(inputs, bucket)] for bucket in buckets}
    for seed, bucket in enumerate(buckets):
        step, _ = random_step(bucket.shape, seed)
        inputs.fill(bucket, step)
        _, _, static = inputs.of(bucket)
        width = step.tables.shape[1]
        assert torch.equal(static.block_tables[:, :width], torch.tensor(step.tables))
        assert torch.equal(static.context_lens, torch.tensor(step.context_lens))
        assert [part.data_ptr() for part in parts(inputs, bucket)] == places[bucket]
    inputs.fill(next(iter(buckets)), empty_step())
    tokens, _, static = inputs.of(next(iter(buckets)))
    assert (
        static.cache_slots.tolist() == [-1] and static.context_lens.tolist() == [0] and tokens.tolist() == [0]
    )


def parts(inputs: StaticInputs, bucket: Bucket) -> list[torch.Tensor]:
    tokens, sampled_at, step = inputs.of(bucket)
    return [tokens, sampled_at, step.positions, step.cache_slots, step.query_start, step.block_tables]
