"""KV bytes, and how many sequences they leave room for."""

from __future__ import annotations

import numpy as np
import pytest

from tunebatch.measure.kv_memory import (
    Batches,
    KvLayout,
    SequenceLengths,
    batches,
    fits,
    head_counts,
    rounded_down,
)

MIB = 2**20


def layout(windows: tuple[int | None, ...] = (None, None), **changes: int) -> KvLayout:
    return KvLayout(**{"kv_heads": 2, "head_dim": 8, "element_bytes": 2, **changes}, windows=windows)


def test_two_times_layers_heads_width_and_bytes() -> None:
    assert layout().bytes_per_token == 2 * 2 * 2 * 8 * 2
    assert layout(element_bytes=4).bytes_per_token == 2 * layout().bytes_per_token
    llama_3_8b = KvLayout(8, 128, (None,) * 32, 2)
    assert llama_3_8b.bytes_per_token == 128 * 1024  # 128 KiB, as is often told of it
    assert llama_3_8b.with_heads(32).bytes_per_token == 4 * llama_3_8b.bytes_per_token


def test_a_sequence_takes_whole_blocks() -> None:
    tokens = np.array([1, 16, 17, 40])
    assert (layout().bytes_of(tokens) == np.array([16, 16, 32, 48]) * layout().bytes_per_token).all()


def test_a_window_bounds_what_its_layers_keep() -> None:
    one = layout((32, None))
    half = one.bytes_per_token // 2
    assert one.bytes_of(np.array([16, 32, 160])).tolist() == [32 * half, 64 * half, (32 + 160) * half]
    assert one.keeping_all().bytes_of(np.array([160]))[0] == 320 * half
    assert one.bytes_read(100) == 132 * half and one.visible(10) == 20


def lengths(*tokens: int) -> SequenceLengths:
    return SequenceLengths("these", np.array(tokens), 1.0)


def test_mean_and_safe_batches() -> None:
    mix = lengths(*[16] * 90, *[160] * 10)  # mean 30.4 tokens, p95 160
    room = 1600 * layout().bytes_per_token
    assert batches(room, layout(), mix) == Batches(mean=1600 * 10 // 304, p95=10)
    assert batches(room - 1, layout(), mix).p95 == 9
    assert batches(-1, layout(), mix) == Batches(0, 0)


def test_a_prefix_is_stored_by_each_or_once() -> None:
    room = 1600 * layout().bytes_per_token
    assert batches(room, layout(), lengths(64), 336).p95 == 4
    shared = batches(room, layout(), lengths(64), 336, shared=True)
    assert shared.p95 == (1600 - 336) // 64
    # Of 340 tokens only 336 are whole blocks; the other 4 make each sequence a block longer.
    assert batches(room, layout(), lengths(64), 340, shared=True).p95 == (1600 - 336) // 80
    assert batches(100, layout(), lengths(64), 336, shared=True).p95 == 0


def test_percentiles_are_rounded_up() -> None:
    assert lengths(10, 11).percentile(50) == 11 and lengths(10, 11).mean == 10.5


@pytest.mark.parametrize(
    ("count", "rounded"), [(0.9, 0), (1, 1), (7.9, 7), (9, 8), (45, 40), (100, 96), (511, 448)]
)
def test_batch_sizes_look_chosen(count: float, rounded: int) -> None:
    assert rounded_down(count) == rounded


def test_the_three_forms_of_attention() -> None:
    assert head_counts(32, 8) == [("MHA", 32), ("GQA", 8), ("MQA", 1)]
    assert head_counts(32, 32) == [("MHA", 32), ("MQA", 1)]
    assert head_counts(4, 1) == [("MHA", 4), ("MQA", 1)]
    assert head_counts(1, 1) == [("MHA", 1)]


def test_what_fits_and_the_batch_to_begin_with() -> None:
    room = 1600 * layout().bytes_per_token
    held = fits(room, layout(), lengths(64), 336, None)
    assert (held.safe, held.max_batch_size, held.bound) == (4, 4, "memory")
    assert held.shared is not None and held.shared.p95 == 19 and held.max_batch_size_shared == 16
    assert held.keeping_all is None
    assert fits(room, layout(), lengths(64), 0, None).max_batch_size_shared is None
    by_compute = fits(room, layout(), lengths(64), 336, 2.5)
    assert (by_compute.max_batch_size, by_compute.max_batch_size_shared, by_compute.bound) == (
        2,
        2,
        "compute",
    )
    assert fits(room, layout(), lengths(64), 336, 0.2).max_batch_size == 1


def test_a_window_bounds_sequences_that_are_longer_even_where_none_fits() -> None:
    windowed = layout((32, None))
    for room in (0, 10**9):
        assert fits(room, windowed, lengths(16, 33), 0, None).keeping_all is not None
        assert fits(room, windowed, lengths(16, 32), 0, None).keeping_all is None
        assert fits(room, windowed, lengths(16), 20, None).keeping_all is not None
