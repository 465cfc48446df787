"""What a latency SLO leaves a policy to spend."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LatencyLimits:
    """The tightest limits of an SLO, in seconds; None where it promises nothing.

    Attributes:
        ttft_s: From the arrival of a request to its first token.
        tpot_s: Between two tokens of a request; so a step that decodes should take no longer.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None


NO_LIMITS = LatencyLimits()
