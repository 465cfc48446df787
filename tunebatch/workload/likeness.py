"""Whether two runs had traffic of the same kind, though it came faster in one, and went on for longer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from tunebatch.engine.request import Request

_BEGINNING = 32  # requests, by which prompts, lengths and rhythm are told apart
_DIGITS = 5  # of a time: scaling and rounding leave so many


def likeness(requests: Sequence[Request]) -> str:
    """SHA-256, in hex, of how traffic begins, with times as shares of the last of these arrivals.

    Equal for a workload at any two rates, and for one of the same law and seed that has more requests.
    """
    first = requests[:_BEGINNING]
    last_s = max((request.arrival_s for request in first), default=0.0) or 1.0
    digest = hashlib.sha256()
    for request in first:
        patience_s = None if request.cancel_at_s is None else request.cancel_at_s - request.arrival_s
        told = (
            round(request.arrival_s / last_s, _DIGITS),
            request.max_tokens,
            request.ignore_eos,
            None if patience_s is None else round(patience_s, _DIGITS),
            request.sampling,
        )
        digest.update(repr(told).encode())
        digest.update(np.asarray(request.prompt, "<i8").tobytes())
    return digest.hexdigest()
