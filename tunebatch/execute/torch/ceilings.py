"""What the device reaches at most, measured here: with large matrix products, and with copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from tunebatch.measure.decode_balance import Peaks

# Large enough that launches and edges are nothing, and copies larger than any cache.
_WIDTHS = {"cuda": (4096, 8192), "cpu": (512, 1024)}
_COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}
_LEAST_REPEATS = 3


def measure_ceilings(device: Any, dtype: Any, budget_s: float = 2.0) -> Peaks:
    """The best of many repeats within the time; a copy reads and writes each byte.

    Raises:
        torch.OutOfMemoryError: The device has no room for two small matrices and their product.
    """
    device = torch.device(device)
    widths = _WIDTHS["cuda" if device.type == "cuda" else "cpu"]
    each_s = budget_s / (len(widths) + 1)
    flops_per_s = max(_matmul_flops_per_s(device, dtype, width, each_s) for width in widths)
    return Peaks(
        flops_per_s=flops_per_s,
        bytes_per_s=_copy_bytes_per_s(device, each_s),
        source=f"measured here: {str(dtype).removeprefix('torch.')} matrix products and copies",
    )


def _matmul_flops_per_s(device: Any, dtype: Any, width: int, budget_s: float) -> float:
    left, right = (torch.randn(width, width, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    best_s = _best_s(lambda: torch.matmul(left, right, out=out), device, budget_s)
    return 2.0 * width**3 / best_s


def _copy_bytes_per_s(device: Any, budget_s: float) -> float:
    """Of as large a piece as there is room for, twice."""
    size = _COPY_BYTES["cuda" if device.type == "cuda" else "cpu"]
    while True:
        try:
            source = torch.ones(size, device=device, dtype=torch.uint8)
            target = torch.empty_like(source)
            break
        except torch.OutOfMemoryError:
            if size < 2**20:
                raise
            size //= 2
    return 2.0 * size / _best_s(lambda: target.copy_(source), device, budget_s)


def _best_s(call: Callable[[], object], device: Any, budget_s: float) -> float:
    """The shortest repeat; the first one, which finds caches cold and clocks low, does not count."""
    _timed_s(call, device)
    ends_s = time.perf_counter() + budget_s
    best_s, repeats = float("inf"), 0
    while repeats < _LEAST_REPEATS or time.perf_counter() < ends_s:
        best_s = min(best_s, _timed_s(call, device))
        repeats += 1
    return best_s


def _timed_s(call: Callable[[], object], device: Any) -> float:
    if device.type != "cuda":
        began_s = time.perf_counter()
        call()
        return time.perf_counter() - began_s
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return max(float(begin.elapsed_time(end)) * 1e-3, 1e-9)
