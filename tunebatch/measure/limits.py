"""A latency SLO as the user writes it: ``p99_ttft<=500ms``."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

MetricName = Literal["ttft", "tpot", "itl", "e2e"]
StatisticName = Literal["p50", "p90", "p95", "p99", "mean", "max"]

METRICS: tuple[MetricName, ...] = get_args(MetricName)
STATISTICS: tuple[StatisticName, ...] = get_args(StatisticName)
QUANTILES: dict[StatisticName, float] = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}

# Parts of a second as divisors, so that 100ms is the float nearest to 0.1.
_DIVISORS = {"s": 1.0, "ms": 1e3, "us": 1e6, "min": 1.0 / 60.0}
_DURATION = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([^\W\d]*)\s*")


class SloError(ValueError):
    """An SLO that cannot be understood; the message is one line and names the nearest valid value."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One promise: ``statistic`` of ``metric`` is at most ``limit_s`` seconds."""

    metric: MetricName
    statistic: StatisticName
    limit_s: float

    @property
    def name(self) -> str:
        """As it is written: ``p99_ttft``."""
        return f"{self.statistic}_{self.metric}"

    def __str__(self) -> str:
        return f"{self.name}<={format_duration(self.limit_s)}"


@dataclass(frozen=True, slots=True)
class Slo:
    """All limits that a configuration has to keep at once.

    Raises:
        SloError: The same statistic of the same metric is limited twice.
    """

    limits: tuple[Limit, ...]

    def __post_init__(self) -> None:
        first: dict[str, Limit] = {}
        for limit in self.limits:
            if (other := first.setdefault(limit.name, limit)) is not limit:
                both = f"keep one of {format_duration(other.limit_s)} and {format_duration(limit.limit_s)}"
                alike = other.limit_s == limit.limit_s
                raise SloError(f"SLO {limit.name} is given twice; {'leave one out' if alike else both}")

    def __iter__(self) -> Iterator[Limit]:
        return iter(self.limits)

    def __len__(self) -> int:
        return len(self.limits)

    def texts(self) -> list[str]:
        """The limits as text that ``parse_slo`` reads back to the same numbers."""
        return [str(limit) for limit in self.limits]


def parse_slo(limits: Iterable[str] | Mapping[str, str]) -> Slo:
    """An SLO from ``["p99_ttft<=2s", ...]`` or from ``{"p99_ttft": "2s", ...}``.

    Raises:
        SloError: See ``parse_limit``.
    """
    if isinstance(limits, Mapping):
        return Slo(tuple(parse_limit(name, value) for name, value in limits.items()))
    return Slo(tuple(parse_limit(text) for text in limits))


def parse_limit(text: str, value: str | None = None) -> Limit:
    """One limit from ``"p99_ttft<=2s"``, or from ``"p99_ttft"`` and ``"2s"``.

    Raises:
        SloError: Unknown statistic or metric, no or an unknown unit, or a limit that is not above 0.
    """
    name = text
    if value is None:
        name, found, value = text.partition("<=")
        if not found:
            raise SloError(f"SLO {text!r} has no '<='; write it like p99_ttft<=500ms")
    name = name.strip()
    statistic, metric = _split_name(name)
    return Limit(metric, statistic, parse_duration(f"SLO {name}", value))


def _split_name(name: str) -> tuple[StatisticName, MetricName]:
    statistic, _, metric = name.lower().partition("_")
    if statistic in STATISTICS and metric in METRICS:
        return statistic, metric
    valid = [f"{s}_{m}" for m in METRICS for s in STATISTICS]
    nearest = difflib.get_close_matches(name.lower(), valid, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise SloError(
        f"unknown SLO {name!r}; {hint}(statistic: {', '.join(STATISTICS)}; metric: {', '.join(METRICS)})"
    )


def parse_duration(name: str, text: str) -> float:
    """Seconds from ``500ms``, ``80us``, ``2s`` or ``1min``.

    Args:
        name: What it is of, for the message.

    Raises:
        SloError: No duration, no or an unknown unit, or not above 0.
    """
    found = _DURATION.fullmatch(str(text))
    if found is None:
        raise SloError(f"{name}: {text!r} is not a duration; write it like 500ms or 2s")
    number, unit = found.groups()
    if unit not in _DIVISORS:
        near = difflib.get_close_matches(unit.lower(), _DIVISORS, n=1, cutoff=0.1)
        problem = f"unknown unit {unit!r}" if unit else f"{number} has no unit"
        raise SloError(
            f"{name}: {problem}; did you mean {number}{near[0] if near else 'ms'}? (us, ms, s, min)"
        )
    seconds = float(number) / _DIVISORS[unit]
    if not (seconds > 0.0 and math.isfinite(seconds)):
        raise SloError(
            f"{name}: the limit is {number}{unit}, must be above 0; the smallest useful one is 1us"
        )
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest of ``2s``, ``500ms``, ``80us`` that reads back as the same float."""
    unit = "s" if seconds >= 1.0 else "ms" if seconds >= 1e-3 else "us"
    number = f"{seconds * _DIVISORS[unit]:.12g}"
    return f"{number}{unit}" if float(number) / _DIVISORS[unit] == seconds else f"{seconds!r}s"
