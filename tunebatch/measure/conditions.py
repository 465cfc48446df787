"""Under which conditions a run was measured, without which its numbers mean little."""

from __future__ import annotations

from dataclasses import dataclass

from tunebatch.engine.records import SpeculationRecord
from tunebatch.measure.metrics import Metrics
from tunebatch.measure.warmup import warmup_text

WINDOW = "first arrival to last token"


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a reader of the numbers has to know.

    Attributes:
        clock: ``replay``, ``wall`` or ``virtual``, see ``engine.clock``.
        warmup: What is in no statistic of a latency, see ``measure.warmup``. Kernels are compiled and the
            model has run before the clock starts.
        window: What rates are over; ``window_s`` long.
        seed: Of arrivals, lengths and prompts.
        hit_rate: Prompt tokens that were found in the prefix cache, as a share of those of all requests that
            got a token; None without a prefix cache.
        saved_prefill_tokens: How many these were; None of a version that did not tell them here, too.
        synthetic_acceptance: It was drawn which drafts were accepted, so all numbers hold for its rates only.
        overlap: The host planned steps while the device computed those before.
    """

    clock: str
    window_s: float
    seed: int
    hit_rate: float | None
    warmup: str = "none"
    window: str = WINDOW
    synthetic_acceptance: bool = False
    overlap: bool = False
    saved_prefill_tokens: int | None = None


def conditions(
    metrics: Metrics,
    clock: str,
    seed: int,
    speculation: SpeculationRecord | None = None,
    overlap: bool = False,
) -> Conditions:
    """The conditions of a run that has ended."""
    drawn = speculation is not None and bool(speculation.synthetic_acceptance)
    return Conditions(
        clock,
        metrics.duration_s,
        seed,
        metrics.hit_rate,
        warmup=warmup_text(metrics.num_warmup, metrics.num_requests),
        synthetic_acceptance=drawn,
        overlap=overlap,
        saved_prefill_tokens=metrics.saved_prefill_tokens,
    )
