"""The decode batch at which a device's arithmetic takes as long as its memory traffic.

A decode step reads all weights once, whatever the batch, and the keys and values of each sequence; its
arithmetic grows with the batch (the roofline of Williams et al., CACM 2009, for decoding as in Pope et al.,
"Efficiently Scaling Transformer Inference", MLSys 2023, arXiv:2211.05102). Both bounds are peaks that no
kernel reaches, so the batch is a prediction of where more sequences stop being nearly free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tunebatch.measure.kv_memory import KvLayout

# So much longer than memory traffic explains is more than the noise of a few steps.
_MARGIN = 1.25


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a device can do at most.

    Attributes:
        flops_per_s: Of dense matrix products in the dtype that is computed in.
        bytes_per_s: From its memory.
        source: Where the two are from.
    """

    flops_per_s: float
    bytes_per_s: float
    source: str


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """What a decode step costs.

    Attributes:
        weight_bytes: Read once a step, whatever the batch; with experts all of them, which a batch at
            the balance certainly meets.
        weight_flops: Of a token with the weights: two for each that it goes through.
        heads: Query heads of a layer.
        layout: Of the keys and values that are read.
    """

    weight_bytes: float
    weight_flops: float
    heads: int
    layout: KvLayout

    def token_flops(self, context: float) -> float:
        """Of one token: with the weights, and with each key and value that it sees."""
        return self.weight_flops + 2.0 * self.heads * self.layout.products * self.layout.visible(context)


def balance_of_weights(work: DecodeWork, peaks: Peaks) -> float:
    """The batch from which on a decode step would be bound by compute, were there no keys and values."""
    return work.weight_bytes / peaks.bytes_per_s * peaks.flops_per_s / work.weight_flops


def compute_bound_batch(work: DecodeWork, peaks: Peaks, context: float) -> float | None:
    """The batch from which on a decode step of sequences with so many tokens is bound by compute.

    None where no batch is: reading a sequence's keys and values alone takes longer than its arithmetic.
    """
    arithmetic_s = work.token_flops(context) / peaks.flops_per_s
    spare_s = arithmetic_s - work.layout.bytes_read(context) / peaks.bytes_per_s
    return work.weight_bytes / peaks.bytes_per_s / spare_s if spare_s > 0 else None


def memory_bound_from(work: DecodeWork, peaks: Peaks, max_context: int) -> int | None:
    """The shortest context at which no batch is bound by compute; None if there is none up to the longest."""
    if compute_bound_batch(work, peaks, max_context) is not None:
        return None
    low, high = 0, max_context
    while high - low > 1:
        middle = (low + high) // 2
        if compute_bound_batch(work, peaks, middle) is None:
            high = middle
        else:
            low = middle
    return high


def measured_compute_bound(step_s: Mapping[int, float], weight_bytes: float, kv_bytes: float) -> int | None:
    """The smallest measured batch whose decode step takes longer than memory traffic explains.

    A step at batch 1 bounds what traffic costs from above: it reads the weights and one sequence's keys and
    values, and has next to no arithmetic. More sequences add their keys and values at the same rate.

    Args:
        step_s: Seconds of a step, by batch; 1 is among them.
        kv_bytes: Keys and values of one sequence.
    """
    per_byte_s = step_s[1] / (weight_bytes + kv_bytes)
    return next(
        (
            batch
            for batch, seconds in sorted(step_s.items())
            if seconds > _MARGIN * per_byte_s * (weight_bytes + batch * kv_bytes)
        ),
        None,
    )
