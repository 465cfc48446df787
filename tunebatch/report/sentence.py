"""The answer in one line."""

from __future__ import annotations

from dataclasses import dataclass

from tunebatch.report.rows import Row, baseline, number, ratio_to

_WORTH = 1.05  # a gain that one seed can tell
_LEVEL = 1.02  # as much as two runs of one and the same differ


@dataclass(frozen=True, slots=True)
class Gain:
    """What tuning brought: the winner's rate over that of the best default.

    Attributes:
        low: Bounds of the interval; None when it was measured too seldom for one.
    """

    ratio: float
    low: float | None = None
    high: float | None = None

    @property
    def certain(self) -> bool:
        """The interval leaves out 1."""
        return self.low is not None and self.high is not None and not self.low <= 1.0 <= self.high


def winner_line(
    winner: Row | None,
    rows: list[Row],
    gain: Gain | None = None,
    inside_slo: bool = True,
    unit: str = "req/s",
    rates_tried: bool = True,
) -> str:
    """``continuous, max_batch_size 48: 14.2 req/s inside the SLO, 3.1x static, ...``

    Args:
        winner: None when nothing kept the SLO.
        rows: What it won against; names the multiple of static batching.
        rates_tried: The search was one of rates.
    """
    if winner is None or winner.rate_per_s is None:
        return "no configuration keeps the SLO" + (" at any rate that was tried" if rates_tried else "")
    named = ", ".join(filter(None, [winner.name, winner.knobs]))
    least = "at least " if winner.at_least else ""
    parts = [f"{least}{number(winner.rate_per_s)} {unit}" + (" inside the SLO" if inside_slo else "")]
    base = baseline(rows)
    ratio = ratio_to(winner, base)
    if ratio is not None and base is not winner and winner.strategy != "static":
        parts.append(f"{ratio:.1f}x static")
    if gain is not None:
        parts.append(f"{number(gain.ratio)}x the best default{_interval(gain)}")
    line = f"{named}: {', '.join(parts)}"
    if gain is not None and gain.low is None and gain.ratio < _WORTH:
        line += "; tuning hardly helped"
    elif gain is not None and gain.low is not None and not gain.certain:
        line += "; tuning did not help: the interval holds 1"
    return line + _level_with(winner, rows)


def _level_with(winner: Row, rows: list[Row]) -> str:
    """Those that serve nearly as much, which are not shown to be worse."""
    level = [
        row.name
        for row in rows
        if row is not winner and (ratio := ratio_to(winner, row)) is not None and ratio < _LEVEL
    ]
    return f"; level with {' and '.join(level)}" if level else ""


def _interval(gain: Gain) -> str:
    if gain.low is None or gain.high is None:
        return ""
    return f" [{number(gain.low)}, {number(gain.high)}]"


def fastest(rows: list[Row]) -> Row:
    return max(rows, key=lambda row: row.rate_per_s or 0.0)


def fastest_line(rows: list[Row], rate_name: str) -> str:
    """Who was ahead on equal traffic; no claim about an SLO."""
    best = fastest(rows)
    named = ", ".join(filter(None, [best.name, best.knobs]))
    ratio = ratio_to(best, baseline(rows))
    multiple = f", {ratio:.1f}x static" if ratio is not None and best.strategy != "static" else ""
    return f"{named}: {number(best.rate_per_s)} {rate_name}{multiple}"
