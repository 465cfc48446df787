"""What is looked at beside a run, and what was seen."""

from __future__ import annotations

from dataclasses import dataclass

from tunebatch.engine.records import RunRecord
from tunebatch.measure.decode_balance import Peaks
from tunebatch.measure.metrics import Metrics
from tunebatch.measure.step_work import ModelWork, step_work
from tunebatch.measure.telemetry.cautions import cpu_cautions, gpu_cautions
from tunebatch.measure.telemetry.cpu import CpuUse
from tunebatch.measure.telemetry.gpu import GpuUse
from tunebatch.measure.telemetry.nvml import Gpu
from tunebatch.measure.utilization import Utilization, utilization


@dataclass(frozen=True, slots=True)
class Instruments:
    """What there is to look at beside a run; without any, only the processor is watched.

    Attributes:
        gpu: The one that computes.
        work: What the model costs.
        ceilings: What the device can do, measured in this session.
        price_per_hour: Of the device, in whatever currency.
    """

    gpu: Gpu | None = None
    work: ModelWork | None = None
    ceilings: Peaks | None = None
    price_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What the machine did during a run.

    Attributes:
        joules_per_output_token: The GPU's energy over all output tokens. What a replay leaves out of idle
            time, it leaves out of the energy.
        cost_per_million_output_tokens: At the run's throughput, in the currency of the price.
        cautions: What kept the run from having the machine to itself.
    """

    cpu: CpuUse | None = None
    gpu: GpuUse | None = None
    joules_per_output_token: float | None = None
    cost_per_million_output_tokens: float | None = None
    utilization: Utilization | None = None
    cautions: tuple[str, ...] = ()


def telemetry(
    record: RunRecord, metrics: Metrics, instruments: Instruments, cpu: CpuUse | None, gpu: GpuUse | None
) -> Telemetry:
    """What was seen beside a run that has ended."""
    num_tokens, work = metrics.total_output_tokens, instruments.work
    energy_j = None if gpu is None else gpu.energy_j
    price, tokens_per_hour = instruments.price_per_hour, 3600.0 * metrics.output_throughput
    return Telemetry(
        cpu=cpu,
        gpu=gpu,
        joules_per_output_token=energy_j / num_tokens if energy_j is not None and num_tokens else None,
        cost_per_million_output_tokens=1e6 * price / tokens_per_hour if price and tokens_per_hour else None,
        utilization=None if work is None else utilization(step_work(record, work), instruments.ceilings),
        cautions=(*gpu_cautions(gpu), *cpu_cautions(cpu)),
    )
