"""What the doctor says of a GPU: what its driver tells, and how fast it is."""

from __future__ import annotations

from collections.abc import Callable

from tunebatch.cli.checks import Check, check
from tunebatch.measure.telemetry.nvml import Gpu, NvmlError


def nvml_checks(open_one: Callable[[], Gpu], *, has_gpu: bool, on_cuda: bool) -> list[Check]:
    """Whether the driver tells what a GPU does, and, where torch computes on it, what it tells now.

    Args:
        open_one: Opens the GPU; see ``open_gpu``.
        has_gpu: There is an NVIDIA GPU, whether or not torch can use it.
        on_cuda: Torch can, and has begun to.
    """
    try:
        gpu = open_one()
    except NvmlError as error:
        if not has_gpu:
            return [check("NVML", "not needed: no NVIDIA GPU here")]
        return [check("NVML", f"{error}; utilization, power and energy stay n/a", error.mend, "warning")]
    try:
        return [*([_facts(gpu), *_others(gpu)] if on_cuda else []), _nvml(gpu)]
    finally:
        gpu.close()


def backend_checks(capability: tuple[int, int]) -> list[Check]:
    """Which attention backends of other libraries models can be served with, and why not with the others.

    Args:
        capability: The GPU's compute capability.
    """
    from tunebatch.execute.torch.attention.choice import OPTIONAL
    from tunebatch.execute.torch.graphs.captured import CAPTURABLE

    refused = {name: one.refusal(capability) for name, one in OPTIONAL.items()}
    usable = "usable in 16 bits; --backend auto measures it beside the others"
    eager = ", and may choose it where no CUDA graphs are captured ([device] graphs = false)"
    return [
        check(f"{name} (optional)", why or usable + ("" if name in CAPTURABLE else eager))
        for name, why in refused.items()
    ]


def ceiling_checks() -> list[Check]:
    """Measures the device that the strategies will be measured on; a few seconds."""
    import torch

    from tunebatch.execute.torch.ceilings import measure_ceilings
    from tunebatch.report.rows import number

    on_cuda = torch.cuda.is_available()
    found = measure_ceilings("cuda" if on_cuda else "cpu", torch.bfloat16 if on_cuda else torch.float32)
    reached = f"{number(found.flops_per_s / 1e12)} TFLOP/s, {number(found.bytes_per_s / 1e9)} GB/s"
    return [check("ceilings", f"{reached}, {found.source}")]


def _facts(gpu: Gpu) -> Check:
    total, clock, limit = gpu.total_bytes(), gpu.max_sm_clock_mhz(), gpu.power_limit_w()
    temperature = gpu.temperature_c()
    told = [
        gpu.name() or "a GPU without a name",
        "a MIG device" if gpu.is_slice else "",
        "" if total is None else f"{total / 2**30:.1f} GiB",
        "" if clock is None else f"SM clock up to {clock:,.0f} MHz",
        "" if limit is None else f"power limit {limit:,.0f} W",
        "" if temperature is None else f"{temperature:.0f} C now",
    ]
    return check("GPU", ", ".join(filter(None, told)))


def _others(gpu: Gpu) -> list[Check]:
    """Of those that compute on it, one is this process."""
    others = len(gpu.process_ids() or ()) - 1
    if others < 1:
        return []
    many = "another process is" if others == 1 else f"{others} others are"
    mend = "nvidia-smi tells which; stop them, or choose another GPU by CUDA_VISIBLE_DEVICES"
    return [check("GPU load", f"{many} on the GPU: timings will be noisy", mend, "warning")]


def _nvml(gpu: Gpu) -> Check:
    """What it does not tell here is n/a in results, and no fault."""
    for ask in (gpu.utilization, gpu.power_w, gpu.energy_j, gpu.sm_clock_mhz, gpu.clock_reasons):
        ask()
    for ask_too in (gpu.used_bytes, gpu.process_ids, gpu.temperature_c):
        ask_too()
    return check("NVML", f"{gpu.nvml_version() or 'n/a'}, driver {gpu.driver() or 'n/a'}{_silent(gpu)}")


def _silent(gpu: Gpu) -> str:
    names = [name.removeprefix("nvmlDeviceGet") for name in sorted(gpu.refused)]
    if gpu.is_slice:
        names.append("power and energy of a MIG device")
    return f"; n/a here: {', '.join(names)}" if names else ""
