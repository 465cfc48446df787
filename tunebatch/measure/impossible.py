"""What no run can have measured, in a result that was read: a hand edited it, or another program wrote it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from tunebatch.engine.strategies import StrategyError, canonical, strategy

__all__ = ["impossible_knob", "impossible_metric", "impossible_rate", "not_finite"]

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


def impossible_knob(name: str, knobs: Mapping[str, Any]) -> str:
    """The first knob that a strategy lacks, or whose value it cannot have, in words; empty if there is none.
    The knobs of a strategy that only another version has are not known."""
    try:
        canonical(name)
    except StrategyError:
        return ""
    try:
        strategy(name, knobs)
    except StrategyError as error:
        return f"tunebatch.knobs: {error}"
    return ""


def impossible_rate(workload: Mapping[str, Any]) -> str:
    """That requests cannot have come at the rate that the facts of their workload tell, in words; empty where
    they can."""
    rate = workload.get("rate_per_s")
    is_number = isinstance(rate, float | int) and not isinstance(rate, bool)
    if rate is None or (is_number and rate > 0.0):
        return ""
    return (
        f"tunebatch.workload.rate_per_s: {json.dumps(rate)} is impossible; must be above 0, or null "
        "where requests come without a rate"
    )


def _numbers(data: object, key: str = "") -> Iterator[tuple[str, float]]:
    """With their keys, joined by dots."""
    if isinstance(data, float | int) and not isinstance(data, bool):
        yield key, data
    inner = data if isinstance(data, dict) else dict(enumerate(data)) if isinstance(data, list) else {}
    for name, value in inner.items():
        yield from _numbers(value, f"{key}.{name}" if key else str(name))
