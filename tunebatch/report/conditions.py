"""Under which conditions a run was measured, in one line."""

from __future__ import annotations

from tunebatch.measure.conditions import Conditions
from tunebatch.report.rows import duration, percent


def conditions_line(told: Conditions) -> str:
    """``measured: replay clock; warm-up left out: none; window 8.12 s, ...; seed 0; hit rate ...``"""
    hits = "no prefix cache" if told.hit_rate is None else f"hit rate {percent(told.hit_rate)}"
    drawn = "; synthetic acceptance" if told.synthetic_acceptance else ""
    return (
        f"measured: {told.clock} clock; warm-up left out: {told.warmup}; window {duration(told.window_s)}, "
        f"{told.window}; seed {told.seed}; {hits}{drawn}"
    )
