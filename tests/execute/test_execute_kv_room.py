"""What an executor takes for its KV cache, before it takes it."""

from __future__ import annotations

from tunebatch.measure.kv_room import CPU_KV_BYTES, blocks_of_slots, cpu_kv_bytes

GIB = 2**30


def test_on_a_cpu_a_small_share_of_what_is_free() -> None:
    assert cpu_kv_bytes(64 * GIB, 1) == CPU_KV_BYTES
    assert cpu_kv_bytes(64 * GIB, GIB) == 4 * GIB
    assert cpu_kv_bytes(8 * GIB, GIB) == 2 * GIB
    assert cpu_kv_bytes(GIB, 1) == GIB // 4
    assert cpu_kv_bytes(-GIB, GIB) == 0


def test_slots_fill_whole_blocks() -> None:
    assert blocks_of_slots(3, 33, 16) == 9
