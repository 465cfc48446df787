"""Whether a shape fits is known before it is built."""

from __future__ import annotations

import pytest

from tunebatch.measure.shape_room import Asked, dtype_of, need, why_too_large
from tunebatch.models.named_shape import named_shape

GIB = 2**30


def asked(name: str, dtype: str = "bfloat16") -> Asked:
    shape = named_shape(name)
    assert shape is not None
    return shape.name, shape.sizes, dtype


def test_what_is_needed_is_weights_cache_and_a_step() -> None:
    _, sizes, _ = asked("llama-3.1-8b")
    half, single = need(sizes, "bfloat16"), need(sizes, "float32")
    assert half.weight_bytes == 2 * 8_030_261_248 and single.weight_bytes == 2 * half.weight_bytes
    assert half.kv_bytes_per_token == 128 * 1024 and half.kv_bytes == 2048 * 128 * 1024
    assert need(sizes, "bfloat16", kv_tokens=160).kv_bytes == 160 * 128 * 1024
    assert half.total_bytes == half.weight_bytes + half.kv_bytes + half.step_bytes
    _, small, _ = asked("gpt2")
    assert need(small, "float32").kv_bytes == 1024 * need(small, "float32").kv_bytes_per_token


def test_what_just_fits_fits() -> None:
    one = asked("llama-3.2-1b")
    total = need(one[1], one[2]).total_bytes
    assert why_too_large([one], total) is None
    assert why_too_large([one], total - 1) is not None


def test_what_is_too_large_is_told_with_the_nearest_that_fits() -> None:
    why = why_too_large([asked("llama-3.1-70b")], 40 * GIB)
    assert why is not None
    assert why.startswith("llama-3.1-70b in bfloat16: 13") and "40 GiB free" in why
    assert why.endswith("the nearest that fits is gpt-oss-20b")
    assert "no named shape fits" in str(why_too_large([asked("llama-8m")], 1))


def test_a_draft_counts_and_the_nearest_has_its_vocabulary() -> None:
    pair = [asked("qwen3-8b"), asked("qwen3-0.6b")]
    alone = need(pair[0][1], "bfloat16").total_bytes
    assert why_too_large(pair[:1], alone) is None
    why = why_too_large(pair, alone)
    assert why is not None and "qwen3-8b in bfloat16 and qwen3-0.6b in bfloat16" in why
    assert why.endswith("the nearest that fits is qwen3-4b")


@pytest.mark.parametrize(
    ("dtype", "device", "told"),
    [("auto", "cpu", "float32"), ("auto", "cuda", "float16"), ("bfloat16", "cpu", "bfloat16")],
)
def test_the_dtype(dtype: str, device: str, told: str) -> None:
    assert dtype_of(asked("llama-2-7b")[1], dtype, device) == told
