"""Where a run's time comes from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import ClassVar, Protocol


class Clock(Protocol):
    """Seconds since the run began; ``name`` is for results."""

    name: ClassVar[str]

    def now(self) -> float: ...

    def idle_until(self, time_s: float) -> None:
        """Nothing can be computed before ``time_s``; return when it is that late."""
        ...

    def step_took(self, duration_s: float | None) -> None:
        """A step has ended; ``duration_s`` is the executor's word on it, where it has one."""
        ...


class WallClock:
    """Real time: sleeps through idle gaps, as a server does."""

    name: ClassVar[str] = "wall"

    def __init__(self) -> None:
        self._start_ns = time.perf_counter_ns()

    def now(self) -> float:
        return (time.perf_counter_ns() - self._start_ns) * 1e-9

    def idle_until(self, time_s: float) -> None:
        # Sleeping overshoots by up to a millisecond, so the last one is spent spinning.
        while (left_s := time_s - self.now()) > 0:
            if left_s > 2e-3:
                time.sleep(left_s - 1e-3)

    def step_took(self, duration_s: float | None) -> None:
        pass


class ReplayClock:
    """Real time while there is work, jumps over gaps in which the engine would sleep.

    Everything between two idle gaps is measured: planning, the step itself, bookkeeping. Skipped is
    only waiting with nothing to compute, so the load, the batches and every step stay real.

    Args:
        timer_ns: Monotonic nanoseconds; tests pass a scripted one.
    """

    name: ClassVar[str] = "replay"

    def __init__(self, timer_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._timer_ns = timer_ns
        self._skew_ns = -timer_ns()

    def now(self) -> float:
        return (self._timer_ns() + self._skew_ns) * 1e-9

    def idle_until(self, time_s: float) -> None:
        while self.now() < time_s:
            ahead_ns = math.ceil(time_s * 1e9) - self._timer_ns() - self._skew_ns
            self._skew_ns += max(ahead_ns, 1)

    def step_took(self, duration_s: float | None) -> None:
        pass


class VirtualClock:
    """Advances only by what the executor says; deterministic."""

    name: ClassVar[str] = "virtual"

    def __init__(self) -> None:
        self._now_s = 0.0

    def now(self) -> float:
        return self._now_s

    def idle_until(self, time_s: float) -> None:
        self._now_s = max(self._now_s, time_s)

    def step_took(self, duration_s: float | None) -> None:
        if duration_s is None:
            raise ValueError("a virtual clock needs an executor that tells how long a step takes")
        self._now_s += duration_s
