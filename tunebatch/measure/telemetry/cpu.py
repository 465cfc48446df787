"""Who used the processor while something was measured: this process, or others on the machine."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
class Reading:
    """Seconds of processor since the process, and since the system, began."""

    wall_s: float
    process_s: float
    busy_s: float


class CpuTelemetry:
    """Samples the processor in a thread, 10 times a second, from ``__enter__`` to ``__exit__``.

    Nothing in the measured thread waits for it, and what it keeps does not grow with the span; after the
    block, ``use`` says what happened. Child processes count as others. Where the system tells nothing, or
    psutil is missing, ``use`` is None instead of an error.
    """

    def __init__(self, interval_s: float = 0.1) -> None:
        self.use: CpuUse | None = None
        self._interval_s = interval_s
        self._process = _this_process()
        self._cores = usable_cores()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._tally = Tally(len(self._cores))

    def __enter__(self) -> CpuTelemetry:
        self.use = None
        self._tally = Tally(len(self._cores))
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
        self.use = self._tally.use()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        if self._process is None:
            return
        import psutil

        try:
            own = self._process.cpu_times()
            rss = int(self._process.memory_info().rss)
            busy = _busy_seconds(self._cores)
        except (psutil.Error, OSError):
            return
        self._tally.add(Reading(time.perf_counter(), own.user + own.system, busy), rss)


def usable_cores() -> list[int]:
    """The cores that this process may run on; all of them where the system has no affinity."""
    process = _this_process()
    if process is None:
        return sorted(os.sched_getaffinity(0))
    import psutil

    try:
        return list(process.cpu_affinity() or [])
    except (AttributeError, psutil.Error, OSError):
        return list(range(psutil.cpu_count() or 1))


def _this_process() -> psutil.Process | None:
    """None without psutil, which a Linux machine that is there for its GPU may lack."""
    try:
        import psutil
    except ModuleNotFoundError:
        return None
    return psutil.Process()


def _busy_seconds(cores: list[int]) -> float:
    """Seconds since boot in which these cores were not free, theft by a hypervisor included."""
    import psutil

    times = psutil.cpu_times(percpu=True)
    busy = 0.0
    for core in cores:
        if core < len(times):
            fields = times[core]._asdict()
            # On Linux user and nice already contain the guests' time.
            idle = ("idle", "iowait", "guest", "guest_nice")
            busy += sum(value for name, value in fields.items() if name not in idle)
    return busy


class Tally:
    """What readings add up to; only those of the last half second are kept."""

    def __init__(self, num_cores: int) -> None:
        self._cores = max(num_cores, 1)
        self._first: Reading | None = None
        # The kernel counts in ticks of 10 ms: spans shorter than half a second say little by themselves.
        self._latest: deque[Reading] = deque(maxlen=6)
        self._peak_foreign = 0.0
        self._peak_rss = 0

    def add(self, reading: Reading, rss_bytes: int) -> None:
        self._first = self._first or reading
        self._latest.append(reading)
        self._peak_rss = max(self._peak_rss, rss_bytes)
        oldest = self._latest[0]
        if len(self._latest) == self._latest.maxlen and reading.wall_s > oldest.wall_s:
            self._peak_foreign = max(self._peak_foreign, _foreign_cores(oldest, reading))

    def use(self) -> CpuUse | None:
        """None with less than two readings."""
        if self._first is None or self._latest[-1].wall_s <= self._first.wall_s:
            return None
        first, last = self._first, self._latest[-1]
        wall = last.wall_s - first.wall_s
        foreign = _foreign_cores(first, last)
        return CpuUse(
            wall_s=wall,
            process_cpu_percent=100.0 * (last.process_s - first.process_s) / wall,
            other_cpu_percent=100.0 * foreign,
            foreign_cpu_share=min(1.0, foreign / self._cores),
            peak_foreign_cpu_share=min(1.0, max(self._peak_foreign, foreign) / self._cores),
            peak_rss_bytes=self._peak_rss,
        )


def _foreign_cores(before: Reading, after: Reading) -> float:
    """Cores' worth of work by others between two readings."""
    others = (after.busy_s - before.busy_s) - (after.process_s - before.process_s)
    return max(0.0, others) / (after.wall_s - before.wall_s)
