"""The device's measured rates, as far as they can be told without knowing the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tunebatch.execute.torch import ceilings


def test_rates_are_work_over_the_shortest_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ceilings._WIDTHS, "cpu", (4, 8))
    monkeypatch.setitem(ceilings._COPY_BYTES, "cpu", 1000)
    took = iter([9.0, 2.0, 1.0, 4.0, 9.0, 2.0, 3.0, 2.0, 9.0, 0.5, 0.25, 4.0])

    def timed_s(call: Any, device: Any) -> float:
        call()
        return next(took)

    monkeypatch.setattr(ceilings, "_timed_s", timed_s)
    found = ceilings.measure_ceilings("cpu", torch.bfloat16, budget_s=0.0)
    assert found.flops_per_s == max(2 * 4**3 / 1.0, 2 * 8**3 / 2.0)
    assert found.bytes_per_s == 2 * 1000 / 0.25
    assert found.source == "measured here: bfloat16 matrix products and copies"
    assert next(took, None) is None


def test_a_copy_takes_as_much_room_as_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ones, sizes = torch.ones, []

    def within_4_mib(size: int, **how: Any) -> torch.Tensor:
        sizes.append(size)
        if size > 2**22:
            raise torch.OutOfMemoryError("too large")
        return ones(size, **how)

    monkeypatch.setattr(torch, "ones", within_4_mib)
    monkeypatch.setitem(ceilings._COPY_BYTES, "cpu", 2**24)
    monkeypatch.setattr(ceilings, "_best_s", lambda *_: 0.5)
    assert ceilings._copy_bytes_per_s(torch.device("cpu"), 0.0) == 2 * 2**22 / 0.5
    assert sizes == [2**24, 2**23, 2**22]


def test_a_real_measurement_is_a_rate() -> None:
    small = ceilings._matmul_flops_per_s(torch.device("cpu"), torch.float32, 64, 0.0)
    assert 1e6 < small < 1e15
