"""Training for a number of minutes on cores that other work may share."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import torch

CHECKPOINT_SECONDS = 150.0
MAX_THREADS = 2
_OTHERS_BUSY = 0.3


class SharedCores:
    """Uses one thread in place of two while other processes use a core.

    Every product is cut evenly over the threads and waits for the slowest, so one thread that
    shares its core with other work holds up both and the pair runs slower than one alone.
    """

    def __init__(self, every_seconds: float = 2.0):
        self.every_seconds = every_seconds
        self.process = psutil.Process()
        self.seen = self._times()
        torch.set_num_threads(MAX_THREADS)

    def _times(self) -> tuple[float, float]:
        machine, own = psutil.cpu_times(), self.process.cpu_times()
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        return time.monotonic(), sum(machine) - idle - own.user - own.system

    def adapt(self) -> None:
        """Choose the number of threads by what others used since the last choice."""
        now, others = self._times()
        if now - self.seen[0] < self.every_seconds:
            return
        busy = (others - self.seen[1]) / (now - self.seen[0])
        torch.set_num_threads(1 if busy > _OTHERS_BUSY else MAX_THREADS)
        self.seen = now, others


def run_budget(name: str, minutes: float, step: Callable[[float], float], save: Callable[[], None]) -> dict:
    """Call ``step(share of the budget spent)`` until it is all spent, saving on the way and at the end."""
    begin = saved = time.monotonic()
    cores = SharedCores()
    steps, running = 0, 0.0
    while (progress := (time.monotonic() - begin) / (60 * minutes)) < 1.0:
        cores.adapt()
        loss = step(progress)
        running = loss if steps == 0 else 0.98 * running + 0.02 * loss
        steps += 1
        if steps % 20 == 0:
            print(f"{name}: {progress:6.1%} step {steps} loss {running:.3f}", flush=True)
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            save()
            saved = time.monotonic()
    save()
    return {"steps": steps, "seconds": round(time.monotonic() - begin, 1), "final_loss": round(running, 4)}
