"""What kept a run from having the machine to itself, in words."""

from __future__ import annotations

from tunebatch.measure.telemetry.clock_reasons import throttles
from tunebatch.measure.telemetry.cpu import CpuUse
from tunebatch.measure.telemetry.gpu import GpuUse

NOISY_SHARE = 0.1  # of the processor used by others
_LEAST_CPU_S = 1.0  # below it the kernel's ticks tell little
_STEADY = 0.95  # the mean clock over the highest


def cpu_cautions(use: CpuUse | None) -> tuple[str, ...]:
    """Other programs on the processor."""
    if use is None or use.wall_s < _LEAST_CPU_S or use.foreign_cpu_share <= NOISY_SHARE:
        return ()
    return (f"shared: other programs took {100 * use.foreign_cpu_share:.0f} % of the processor",)


def gpu_cautions(use: GpuUse | None) -> tuple[str, ...]:
    """A GPU that was throttled, shared, or changed its clocks."""
    if use is None:
        return ()
    found = []
    throttled = {word: share for word, share in use.clock_reasons.items() if throttles(word)}
    if throttled:
        told = ", ".join(f"{word} in {_percent(share)} of the samples" for word, share in throttled.items())
        found.append(f"throttled: {told}")
    if use.foreign_processes:
        others = "another process" if use.foreign_processes == 1 else f"{use.foreign_processes} others"
        found.append(f"shared: {others} computed on the GPU, or could")
    mean, low, high = use.mean_sm_clock_mhz, use.min_sm_clock_mhz, use.max_sm_clock_mhz
    if mean is not None and low is not None and high is not None and mean < _STEADY * high:
        found.append(f"clocks changed: the SMs ran at {low:,.0f} to {high:,.0f} MHz, {mean:,.0f} on average")
    return tuple(found)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "under 1 %"
