"""The batch at which compute takes over from memory traffic, and the published peaks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tunebatch.measure.decode_balance import (
    DecodeWork,
    Peaks,
    balance_of_weights,
    compute_bound_batch,
    measured_compute_bound,
    memory_bound_from,
)
from tunebatch.measure.gpus import GPUS, gpu_of_driver
from tunebatch.measure.kv_memory import KvLayout
from tunebatch.models.architecture import Latent

H100 = Peaks(989e12, 3350e9, "")
# A million weights of two bytes; two layers of 4 query heads and one KV head.
WORK = DecodeWork(2e6, 2e6, 4, KvLayout(1, 8, (None, None), 2))


def step_s(batch: float, context: float, work: DecodeWork = WORK) -> tuple[float, float]:
    """What a step computes, and what it reads, at the peaks; written out anew."""
    layers, heads, kv_heads, width = 2, 4, 1, 8
    flops = batch * (2 * 1e6 + layers * heads * context * (2 * width + 2 * width))
    bytes_read = 2e6 + batch * layers * context * 2 * kv_heads * width * 2
    return flops / H100.flops_per_s, bytes_read / H100.bytes_per_s


def test_by_the_weights_alone_it_is_the_balance_of_the_device() -> None:
    assert balance_of_weights(WORK, H100) == pytest.approx(989e12 / 3350e9)  # two bytes, two operations
    assert balance_of_weights(replace(WORK, weight_bytes=1e6), H100) == pytest.approx(989e12 / 3350e9 / 2)


@pytest.mark.parametrize("context", [0, 10, 80])
def test_there_arithmetic_takes_as_long_as_reading(context: int) -> None:
    batch = compute_bound_batch(WORK, H100, context)
    assert batch is not None
    computing_s, reading_s = step_s(batch, context)
    assert computing_s == pytest.approx(reading_s)
    more_computing_s, more_reading_s = step_s(2 * batch, context)
    assert more_computing_s > more_reading_s


def test_reading_keys_and_values_can_bind_every_batch() -> None:
    first = memory_bound_from(WORK, H100, 100_000)
    assert first is not None
    assert (
        compute_bound_batch(WORK, H100, first) is None
        and compute_bound_batch(WORK, H100, first - 1) is not None
    )
    computing_s, reading_s = step_s(1e9, first)
    assert computing_s < reading_s
    assert memory_bound_from(WORK, H100, first - 1) is None


def test_a_window_bounds_what_is_read() -> None:
    windowed = replace(WORK, layout=KvLayout(1, 8, (16, 16), 2))
    assert memory_bound_from(windowed, H100, 100_000) is None
    assert compute_bound_batch(windowed, H100, 90_000) == compute_bound_batch(windowed, H100, 16)


def test_published_peaks_are_plausible() -> None:
    for gpu in GPUS.values():
        assert 0.9 < gpu.memory_mib / 1024 / round(gpu.memory_mib / 1024) < 1.1
        assert 30 < 1e3 * gpu.tflops_16 / gpu.bandwidth_gb_per_s < 600
        assert gpu.tflops_32 < gpu.tflops_16 and gpu.source and gpu.driver_names
    names = [name for gpu in GPUS.values() for name in gpu.driver_names]
    assert len(set(names)) == len(names)
    assert gpu_of_driver("NVIDIA H100 80GB HBM3") is GPUS["h100"]
    assert gpu_of_driver("NVIDIA H100") is None


def test_measured_steps_tell_where_compute_takes_over() -> None:
    # A step reads 800 bytes, and 100 a sequence, at one byte a second; arithmetic takes 200 s a sequence.
    steps = {batch: max(800.0 + 100 * batch, 200.0 * batch) for batch in (1, 2, 4, 8, 16, 32)}
    assert measured_compute_bound(steps, 800, 100) == 16
    assert measured_compute_bound({b: s for b, s in steps.items() if b <= 8}, 800, 100) is None
    # The same times are more than the weights alone explain.
    assert measured_compute_bound(steps, 900, 0) == 4
    assert measured_compute_bound({1: 1.0, 2: 1.24, 4: 1.26}, 1, 0) == 4


def test_heads_work_on_a_latent_itself() -> None:
    latent = KvLayout(4, 24, (None, None, None), 2, 16, Latent(rank=12, rope=4))
    work = DecodeWork(weight_bytes=0.0, weight_flops=1000.0, heads=4, layout=latent)
    # Each of 4 heads in 3 layers: 16 products with the latent, and 12 for the weighted sum of its first 12.
    assert work.token_flops(10) == 1000 + 2 * 4 * 3 * (16 + 12) * 10
    assert latent.bytes_read(10) == 3 * 16 * 2 * 10
