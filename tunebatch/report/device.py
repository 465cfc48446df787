"""What the machine did during a run: columns of the table, and lines below it."""

from __future__ import annotations

from collections.abc import Sequence

from tunebatch.measure.decode_balance import Peaks
from tunebatch.measure.result import RunResult
from tunebatch.measure.telemetry.cautions import gpu_cautions
from tunebatch.measure.telemetry.cpu import CpuUse
from tunebatch.measure.telemetry.gpu import GpuUse
from tunebatch.measure.utilization import Utilization
from tunebatch.report.rows import Row, duration, number, percent

_NOT_TOLD = "n/a"
_ENERGY = {"counter": "by the GPU's counter", "power": "from its power over time"}


def device_columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    """``GPU``, the share of the time in which it was busy, ``MFU``, ``MBU``, ``J/token``, and what a million
    output tokens cost; only columns that any row can fill."""
    told = [row.result.telemetry for row in rows]
    busy = [None if one is None or one.gpu is None else one.gpu.sm_utilization for one in told]
    joules = [None if one is None else one.joules_per_output_token for one in told]
    costs = [None if one is None else one.cost_per_million_output_tokens for one in told]
    columns = {}
    if any(share is not None for share in busy):
        columns["GPU"] = [_NOT_TOLD if share is None else percent(share) for share in busy]
    used = [None if one is None else one.utilization for one in told]
    mfu = [None if one is None else one.mfu for one in used]
    mbu = [None if one is None else one.mbu for one in used]
    for name, found in (("MFU", mfu), ("MBU", mbu)):
        if any(share is not None for share in found):
            columns[name] = [_share(share) for share in found]
    for name, values in (("J/token", joules), ("cost/Mtok", costs)):
        if any(value is not None for value in values):
            columns[name] = [_NOT_TOLD if value is None else number(value) for value in values]
    return columns


def caution_lines(rows: Sequence[Row], *, of_gpu_only: bool = False) -> list[str]:
    """What kept runs from having the machine to themselves; each names its run where there are several."""
    lines = []
    for row in rows:
        told = row.result.telemetry
        if told is not None:
            found = gpu_cautions(told.gpu) if of_gpu_only else told.cautions
            lines += [line if len(rows) == 1 else f"{row.name}: {line}" for line in found]
    return lines


def device_lines(result: RunResult) -> list[str]:
    """GPU or processor, and how much of what the device can do was used; nothing of a run in virtual time."""
    told = result.telemetry
    if told is None:
        return []
    lines = []
    if told.gpu is not None:
        replayed = result.conditions is not None and result.conditions.clock == "replay"
        lines.append(_gpu_line(told.gpu, told.joules_per_output_token, replayed))
    elif told.cpu is not None:
        cores = result.environment.get("cores")
        lines.append(_cpu_line(told.cpu, cores if isinstance(cores, int) and cores > 0 else 1))
    if told.utilization is not None and told.utilization.ceilings is not None:
        lines.append(_utilization_line(told.utilization, told.utilization.ceilings))
    return lines


def _gpu_line(use: GpuUse, joules_per_token: float | None, replayed: bool) -> str:
    parts = [f"{_share(use.sm_utilization)} of the time busy, memory {_share(use.memory_utilization)}"]
    limit = "" if use.power_limit_w is None else f" of {use.power_limit_w:,.0f}"
    parts.append("power n/a" if use.mean_power_w is None else f"{use.mean_power_w:,.0f}{limit} W")
    if joules_per_token is not None and use.energy_source is not None:
        gaps = ", idle gaps left out" if replayed else ""
        parts.append(f"{number(joules_per_token)} J/token ({_ENERGY[use.energy_source]}{gaps})")
    else:
        parts.append("J/token n/a")
    parts.append(_clocks(use))
    parts.append("memory n/a" if use.peak_memory_bytes is None else f"{_gib(use.peak_memory_bytes)} in use")
    parts.append(
        "temperature n/a" if use.peak_temperature_c is None else f"up to {use.peak_temperature_c:.0f} C"
    )
    if use.foreign_processes is None:
        parts.append("other processes n/a")
    parts.append(f"sampled every {duration(use.period_s)}")
    return f"GPU: {'; '.join(parts)}"


def _clocks(use: GpuUse) -> str:
    clock = "SM clock n/a" if use.mean_sm_clock_mhz is None else f"SM clock {use.mean_sm_clock_mhz:,.0f} MHz"
    held = ", ".join(f"{word} in {percent(share)}" for word, share in use.clock_reasons.items())
    return f"{clock} ({held} of the samples)" if held else clock


def _cpu_line(use: CpuUse, cores: int) -> str:
    own = percent(use.process_cpu_percent / 100.0 / cores)
    many = "core" if cores == 1 else f"{cores} cores"
    return (
        f"processor: {own} of {many} busy with this, {percent(use.foreign_cpu_share)} with others; "
        f"{_gib(use.peak_rss_bytes)} in use"
    )


def _utilization_line(used: Utilization, ceilings: Peaks) -> str:
    cached = " (a cache keeps some of it)" if used.mbu is not None and used.mbu > 1.0 else ""
    tflops, gigabytes = number(ceilings.flops_per_s / 1e12), number(ceilings.bytes_per_s / 1e9)
    return (
        f"of what the device can do: MFU {_share(used.mfu)} of {tflops} TFLOP/s, "
        f"MBU {_share(used.mbu)}{cached} of {gigabytes} GB/s; "
        f"steps took {_times(used.roofline)} the least time that both allow; {ceilings.source}"
    )


def _times(roofline: float | None) -> str:
    return "n/a times" if not roofline else f"{1.0 / roofline:.1f} times"


def _share(value: float | None) -> str:
    if value is None:
        return _NOT_TOLD
    return f"{100 * value:.1f} %" if value < 0.1 else percent(value)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
