"""Who used the processor while something was measured: this process, or others on the machine."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType

import psutil


@dataclass(frozen=True, slots=True)
class CpuUse:
    """Processor use over a measured span.

    Attributes:
        wall_s: Length of the span.
        process_cpu_percent: This process; 100 is one core, so it can exceed 100.
        other_cpu_percent: Everything else on the cores that this process may use; same unit.
        foreign_cpu_share: The latter as a share of those cores, 0 to 1.
        peak_foreign_cpu_share: The highest such share over half a second.
        peak_rss_bytes: Largest resident memory seen.
    """

    wall_s: float
    process_cpu_percent: float
    other_cpu_percent: float
    foreign_cpu_share: float
    peak_foreign_cpu_share: float
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class _Reading:
    wall_s: float
    process_s: float
    busy_s: float


class CpuTelemetry:
    """Samples the processor in a thread, 10 times a second, from ``__enter__`` to ``__exit__``.

    Nothing in the measured thread waits for it; after the block, ``use`` says what happened. Child
    processes count as others. Where the system tells nothing, ``use`` is None instead of an error.
    """

    def __init__(self, interval_s: float = 0.1) -> None:
        self.use: CpuUse | None = None
        self._interval_s = interval_s
        self._process = psutil.Process()
        self._cores = usable_cores()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._readings: list[_Reading] = []
        self._peak_rss = 0

    def __enter__(self) -> CpuTelemetry:
        self.use = None
        self._readings, self._peak_rss = [], 0
        self._stop.clear()
        self._sample()
        self._thread = threading.Thread(target=self._run, name="cpu-telemetry", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._sample()
        self.use = _use(self._readings, len(self._cores), self._peak_rss)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        try:
            own = self._process.cpu_times()
            rss = int(self._process.memory_info().rss)
            busy = _busy_seconds(self._cores)
        except (psutil.Error, OSError):
            return
        self._peak_rss = max(self._peak_rss, rss)
        self._readings.append(_Reading(time.perf_counter(), own.user + own.system, busy))


def usable_cores() -> list[int]:
    """The cores that this process may run on; all of them where the system has no affinity."""
    try:
        return list(psutil.Process().cpu_affinity() or [])
    except (AttributeError, psutil.Error, OSError):
        return list(range(psutil.cpu_count() or 1))


def _busy_seconds(cores: list[int]) -> float:
    """Seconds since boot in which these cores were not free, theft by a hypervisor included."""
    times = psutil.cpu_times(percpu=True)
    busy = 0.0
    for core in cores:
        if core < len(times):
            fields = times[core]._asdict()
            # On Linux user and nice already contain the guests' time.
            idle = ("idle", "iowait", "guest", "guest_nice")
            busy += sum(value for name, value in fields.items() if name not in idle)
    return busy


def _use(readings: list[_Reading], num_cores: int, peak_rss: int) -> CpuUse | None:
    if len(readings) < 2 or readings[-1].wall_s <= readings[0].wall_s:
        return None
    first, last = readings[0], readings[-1]
    wall = last.wall_s - first.wall_s
    own = (last.process_s - first.process_s) / wall
    foreign = _foreign_cores(first, last)
    # The kernel counts in ticks of 10 ms: spans shorter than half a second say little by themselves.
    window = [(a, b) for a, b in zip(readings, readings[5:], strict=False) if b.wall_s > a.wall_s]
    peak = max((_foreign_cores(a, b) for a, b in window), default=foreign)
    cores = max(num_cores, 1)
    return CpuUse(
        wall_s=wall,
        process_cpu_percent=100.0 * own,
        other_cpu_percent=100.0 * foreign,
        foreign_cpu_share=min(1.0, foreign / cores),
        peak_foreign_cpu_share=min(1.0, max(peak, foreign) / cores),
        peak_rss_bytes=peak_rss,
    )


def _foreign_cores(before: _Reading, after: _Reading) -> float:
    """Cores' worth of work by others between two readings."""
    others = (after.busy_s - before.busy_s) - (after.process_s - before.process_s)
    return max(0.0, others) / (after.wall_s - before.wall_s)
