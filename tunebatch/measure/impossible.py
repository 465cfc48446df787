"""What no run can have measured, in a result that was read: a hand edited it, or another program wrote it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["impossible_metric", "not_finite"]

_OF_EITHER_SIGN = {"ttft_growth_s"}
_SHARES = {"bubble", "mean_kv_use", "peak_kv_use", "acceptance", "hit_rate"}
_ROUNDING = 1e-6


def not_finite(data: object) -> str:
    """The first number in JSON values that is not finite, by its key, in words; empty if there is none."""
    for key, value in _numbers(data):
        if isinstance(value, float) and not math.isfinite(value):
            return f"{key}: {json.dumps(value)} is not a finite number"
    return ""


def impossible_metric(metrics: Mapping[str, Any]) -> str:
    """The first metric that is negative, or a share above 1, by its key, in words; empty if there is none.

    Args:
        metrics: Those of ``Metrics``, or of ``to_vllm_keys``; JSON values.
    """
    for key, value in _numbers(metrics):
        name = key.rpartition(".")[2]
        most = 1.0 if name in _SHARES else math.inf
        if name not in _OF_EITHER_SIGN and not -_ROUNDING <= value <= most + _ROUNDING:
            nearest = 0 if value < 0.0 else 1
            return f"{key}: {json.dumps(value)} is impossible; the nearest possible value is {nearest}"
    return ""


def _numbers(data: object, key: str = "") -> Iterator[tuple[str, float]]:
    """With their keys, joined by dots."""
    if isinstance(data, float | int) and not isinstance(data, bool):
        yield key, data
    inner = data if isinstance(data, dict) else dict(enumerate(data)) if isinstance(data, list) else {}
    for name, value in inner.items():
        yield from _numbers(value, f"{key}.{name}" if key else str(name))
