"""How much of what the device can do a run used: MFU, MBU, and the share of the roofline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tunebatch.measure.decode_balance import Peaks
from tunebatch.measure.step_work import StepWork


@dataclass(frozen=True, slots=True)
class Utilization:
    """Counted work over the time that steps took, from planning to sampled tokens: waiting for requests is
    not in it. The shares are None where the device's ceilings were not measured.

    Attributes:
        step_s: Of all steps.
        flops_per_s: Counted operations over that time.
        bytes_per_s: Counted memory traffic over that time.
        mfu: The former over the rate of large matrix products (model FLOP utilization; Chowdhery et al.,
            "PaLM", 2022).
        mbu: The latter over the rate at which memory is copied. Above 1 where weights or keys and values
            stay in a cache between steps.
        roofline: The time that the steps need at least, each bound by the one or the other, over what they
            took (Williams et al., CACM 2009).
        ceilings: What the shares are of.
    """

    step_s: float
    flops_per_s: float
    bytes_per_s: float
    mfu: float | None = None
    mbu: float | None = None
    roofline: float | None = None
    ceilings: Peaks | None = None


def utilization(work: StepWork, ceilings: Peaks | None = None) -> Utilization | None:
    """None for a run without steps, or one that took no time."""
    step_s = float(work.duration_s.sum())
    if step_s <= 0.0:
        return None
    flops_per_s, bytes_per_s = float(work.flops.sum()) / step_s, float(work.bytes.sum()) / step_s
    if ceilings is None:
        return Utilization(step_s, flops_per_s, bytes_per_s)
    least_s = np.maximum(work.flops / ceilings.flops_per_s, work.bytes / ceilings.bytes_per_s)
    return Utilization(
        step_s=step_s,
        flops_per_s=flops_per_s,
        bytes_per_s=bytes_per_s,
        mfu=flops_per_s / ceilings.flops_per_s,
        mbu=bytes_per_s / ceilings.bytes_per_s,
        roofline=float(least_s.sum()) / step_s,
        ceilings=ceilings,
    )
