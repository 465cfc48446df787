"""Under which conditions runs were measured, and what was done to make their numbers; a line each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tunebatch.measure.conditions import Conditions
from tunebatch.measure.result import RunResult
from tunebatch.report.rows import duration, hits_text
from tunebatch.report.speculation import SYNTHETIC, rates_text

RANDOM_WEIGHTS = "random weights"
_CLOCKS = {
    "replay": " (steps measured, idle gaps skipped)",
    "wall": " (idle gaps waited through)",
    "virtual": " (predicted, not measured)",
}


def conditions_line(told: Conditions) -> str:
    """``measured: replay clock; warm-up, in no percentile: first 7 of 78 requests; window 8.12 s, ...``"""
    hits = "no prefix cache"
    if told.hit_rate is not None:
        hits = hits_text(told.hit_rate, told.saved_prefill_tokens)
    drawn = "; synthetic acceptance" if told.synthetic_acceptance else ""
    overlapped = "; host and device overlap" if told.overlap else ""
    return (
        f"measured: {told.clock} clock; warm-up, in no percentile: {told.warmup}; "
        f"window {duration(told.window_s)}, {told.window}; seed {told.seed}; {hits}{drawn}{overlapped}"
    )


def common_conditions(runs: Iterable[Conditions | None]) -> list[str]:
    """Which clock gave the times of several runs, and what is in none of their percentiles; nothing where no
    run tells it."""
    told = [one for one in runs if one is not None]
    if not told:
        return []
    clocks = [f"{clock} clock{_CLOCKS.get(clock, '')}" for clock in sorted({one.clock for one in told})]
    without = sum(one.warmup == "none" for one in told)
    warmup = "the first 10 % of a run's requests are warm-up, in no percentile"
    if without == len(told):
        warmup = "no warm-up is left out"
    elif without:
        warmup += ", but of some runs nothing was left out"
    return [f"times: {', '.join(clocks)}; {warmup}"]


def caveats_of(results: Iterable[RunResult]) -> list[str]:
    """What makes the numbers of runs mean other than they seem, each once: that weights are random, that
    acceptance was drawn, and what was done to the traffic, such as lengths that were scaled or clipped."""
    told: list[str] = []
    for result in results:
        rates = result.speculation.synthetic_acceptance if result.speculation is not None else ()
        told += drawn_words(result.model.get("random_weights") is True, rates)
        told += result.workload.get("notes", ())
    return list(dict.fromkeys(told))


def drawn_words(has_random_weights: bool, rates: Sequence[float]) -> list[str]:
    """What no model was trained for or says itself; ``rates`` of a drawn acceptance, or none."""
    weights = [RANDOM_WEIGHTS] if has_random_weights else []
    return [*weights, f"{SYNTHETIC} {rates_text(rates)}"] if rates else weights
