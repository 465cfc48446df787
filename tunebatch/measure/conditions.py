"""Under which conditions a run was measured, without which its numbers mean little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tunebatch.engine.records import SpeculationRecord
from tunebatch.measure.metrics import Metrics

WINDOW = "first arrival to last token"


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a reader of the numbers has to know.

    Attributes:
        clock: ``replay``, ``wall`` or ``virtual``, see ``engine.clock``.
        warmup: What was left out as warm-up. Nothing is: kernels are compiled and the model has run before
            the clock starts, and how a server begins counts.
        window: What rates are over; ``window_s`` long.
        seed: Of arrivals, lengths and prompts.
        hit_rate: Prompt tokens that were found in the prefix cache, as a share of those of all requests that
            got a token; None without a prefix cache.
        synthetic_acceptance: It was drawn which drafts were accepted, so all numbers hold for its rates only.
    """

    clock: str
    window_s: float
    seed: int
    hit_rate: float | None
    warmup: Literal["none"] = "none"
    window: str = WINDOW
    synthetic_acceptance: bool = False


def conditions(
    metrics: Metrics, clock: str, seed: int, speculation: SpeculationRecord | None = None
) -> Conditions:
    """The conditions of a run that has ended."""
    drawn = speculation is not None and bool(speculation.synthetic_acceptance)
    return Conditions(clock, metrics.duration_s, seed, metrics.hit_rate, synthetic_acceptance=drawn)
