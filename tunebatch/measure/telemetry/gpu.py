"""What a GPU did while something was measured, and who else was on it."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from types import TracebackType

from tunebatch.measure.telemetry.clock_reasons import IDLE, in_words
from tunebatch.measure.telemetry.energy import EnergyMeter, EnergySource
from tunebatch.measure.telemetry.nvml import Gpu

# What NVML calls utilization is of its last sampling period, which is up to so long; and counters of energy
# move 10 times a second or so: shorter spans say more about what was before them.
LEAST_S = 1.0
_MOST_OF_TIME = 0.02  # that the sampling thread takes, however slow the driver answers
_BETWEEN_PROCESS_LISTS = 10  # samples: these take longest
_PATIENCE_S = 2.0  # at the end, with a driver that does not answer


@dataclass(frozen=True, slots=True)
class GpuUse:
    """A GPU over a measured span. None: the driver does not tell, or the span was too short.

    Attributes:
        wall_s: Length of the span.
        num_samples: Readings in it, ``period_s`` apart on average.
        sampling_share: Of the span, what the sampling thread spent on asking.
        sm_utilization: Share of the time in which a kernel ran on at least one SM, 0 to 1: a busy GPU, but
            not how much of it.
        memory_utilization: Share of the time in which its memory was read or written.
        mean_power_w: The energy over the span.
        energy_j: By the GPU's counter, or integrated power: ``energy_source`` says which.
        mean_sm_clock_mhz: With the lowest and the highest, of samples in which the GPU was not idle.
        clock_reasons: Share of the samples in which clocks were held down, by reason.
        peak_memory_bytes: In use at most, by whomever.
        foreign_processes: Others that computed on it, at most at a time; None where the list is hidden.
    """

    wall_s: float
    num_samples: int
    period_s: float
    sampling_share: float
    sm_utilization: float | None
    memory_utilization: float | None
    mean_power_w: float | None
    peak_power_w: float | None
    power_limit_w: float | None
    energy_j: float | None
    energy_source: EnergySource | None
    mean_sm_clock_mhz: float | None
    min_sm_clock_mhz: float | None
    max_sm_clock_mhz: float | None
    mean_memory_clock_mhz: float | None
    clock_reasons: dict[str, float]
    peak_memory_bytes: int | None
    foreign_processes: int | None
    peak_temperature_c: float | None


class GpuTelemetry:
    """Samples a GPU in a thread, 10 times a second, from ``__enter__`` to ``__exit__``.

    Nothing in the measured thread waits for it, and a driver that answers slowly is asked less often, so
    that it never takes more than 2 % of the time. What it keeps does not grow with the span. After the
    block, ``use`` says what happened; None without a GPU.

    Args:
        gpu: None: there is nothing to sample.
        interval_s: From one sample to the next.
    """

    def __init__(self, gpu: Gpu | None, interval_s: float = 0.1) -> None:
        self.use: GpuUse | None = None
        self._gpu = gpu
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._tally: Tally | None = None

    def __enter__(self) -> GpuTelemetry:
        self.use = None
        if self._gpu is not None:
            self._tally = Tally(self._gpu)
            self._stop.clear()
            self._tally.sample(time.perf_counter())
            self._thread = threading.Thread(target=self._run, name="gpu-telemetry", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None or self._tally is None:
            return
        self._stop.set()
        self._thread.join(_PATIENCE_S)
        if not self._thread.is_alive():
            self._tally.sample(time.perf_counter(), last=True)
        self.use = self._tally.use()

    def _run(self) -> None:
        assert self._tally is not None
        wait_s = self._interval_s
        while not self._stop.wait(wait_s):
            began_s = time.perf_counter()
            self._tally.sample(began_s)
            took_s = time.perf_counter() - began_s
            self._tally.asking_s += took_s
            wait_s = self.wait_s(took_s)

    def wait_s(self, took_s: float) -> float:
        """Until the next sample, after one that took so long."""
        return max(self._interval_s - took_s, took_s / _MOST_OF_TIME)


class Tally:
    """What samples add up to; no sample is kept.

    Attributes:
        asking_s: What the sampling thread spent on the driver.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.asking_s = 0.0
        self._num = 0
        self._first_s = self._last_s = 0.0
        self._energy = EnergyMeter()
        self._sm, self._memory = _Range(), _Range()
        self._power, self._sm_clock, self._memory_clock = _Range(), _Range(), _Range()
        self._used, self._temperature, self._processes = _Range(), _Range(), _Range()
        self._reasons: dict[str, int] = {}
        self._num_reasons = 0

    def sample(self, at_s: float, last: bool = False) -> None:
        """Read everything; lists of processes the first and the last time, and now and then."""
        gpu = self._gpu
        if not self._num:
            self._first_s = at_s
        self._last_s = at_s
        power_w = gpu.power_w()
        self._energy.add(at_s, gpu.energy_j(), power_w)
        self._power.add(power_w)
        if at_s - self._first_s >= LEAST_S and (busy := gpu.utilization()) is not None:
            self._sm.add(busy[0])
            self._memory.add(busy[1])
        self._add_clocks()
        self._used.add(gpu.used_bytes())
        self._temperature.add(gpu.temperature_c())
        if last or self._num % _BETWEEN_PROCESS_LISTS == 0:
            processes = gpu.process_ids()
            self._processes.add(_num_foreign(processes) if processes else None)
        self._num += 1

    def _add_clocks(self) -> None:
        bits = self._gpu.clock_reasons()
        words = in_words(bits or 0)
        self._num_reasons += bits is not None
        for word in words:
            self._reasons[word] = self._reasons.get(word, 0) + 1
        if IDLE not in words:
            self._sm_clock.add(self._gpu.sm_clock_mhz())
            self._memory_clock.add(self._gpu.memory_clock_mhz())

    def use(self) -> GpuUse | None:
        """None with less than two samples."""
        wall_s = self._last_s - self._first_s
        if self._num < 2 or wall_s <= 0.0:
            return None
        energy = self._energy.energy_j() if wall_s >= LEAST_S else None
        used, foreign = self._used.high, self._processes.high
        return GpuUse(
            wall_s=wall_s,
            num_samples=self._num,
            period_s=wall_s / (self._num - 1),
            sampling_share=self.asking_s / wall_s,
            sm_utilization=self._sm.mean,
            memory_utilization=self._memory.mean,
            mean_power_w=None if energy is None else energy[0] / wall_s,
            peak_power_w=self._power.high,
            power_limit_w=self._gpu.power_limit_w(),
            energy_j=None if energy is None else energy[0],
            energy_source=None if energy is None else energy[1],
            mean_sm_clock_mhz=self._sm_clock.mean,
            min_sm_clock_mhz=self._sm_clock.low,
            max_sm_clock_mhz=self._sm_clock.high,
            mean_memory_clock_mhz=self._memory_clock.mean,
            clock_reasons={w: n / self._num_reasons for w, n in self._reasons.items() if w != IDLE},
            peak_memory_bytes=None if used is None else int(used),
            foreign_processes=None if foreign is None else int(foreign),
            peak_temperature_c=self._temperature.high,
        )


def _num_foreign(processes: frozenset[int]) -> int:
    """Of all processes but this one, and the one that has started it and waits."""
    if os.getpid() in processes:
        return len(processes - {os.getpid(), os.getppid()})
    return len(processes) - 1  # this one has another number there


class _Range:
    """Lowest, highest and mean of what was told."""

    __slots__ = ("_count", "_sum", "high", "low")

    def __init__(self) -> None:
        self._count, self._sum = 0, 0.0
        self.low: float | None = None
        self.high: float | None = None

    def add(self, value: float | None) -> None:
        if value is None:
            return
        self._count += 1
        self._sum += value
        self.low = value if self.low is None else min(self.low, value)
        self.high = value if self.high is None else max(self.high, value)

    @property
    def mean(self) -> float | None:
        return self._sum / self._count if self._count else None
