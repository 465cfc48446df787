"""Time on the device of calls that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

_LARGEST_CACHE_BYTES = 2**28
_LEAST_ROUNDS = 3


class Turns:
    """Times calls on a device, each with a cold cache, since a step's other layers would have emptied it.

    On CUDA they are replayed from graphs, so that launching them is not in it.

    Attributes:
        launched: Names of calls that could not be captured, whose times hold launching them.
    """

    def __init__(self, device: str) -> None:
        self._on_cuda = device == "cuda"
        self._other = torch.empty(
            _LARGEST_CACHE_BYTES if self._on_cuda else 1, dtype=torch.uint8, device=device
        )
        self.launched: set[str] = set()

    def medians_s(
        self, sides: Mapping[str, Callable[[], Any]], rounds: int, budget_s: float
    ) -> dict[str, float]:
        """Seconds of each side: the median of so many rounds, or of those that the time allows."""
        calls = {name: self._captured(name, call) for name, call in sides.items()}
        for call in calls.values():  # finds clocks low
            self._timed_s(call)
        times: dict[str, list[float]] = {name: [] for name in calls}
        ends_s = time.perf_counter() + budget_s
        for turn in range(rounds):
            if turn >= _LEAST_ROUNDS and time.perf_counter() > ends_s:
                break
            for name in list(calls) if turn % 2 == 0 else reversed(list(calls)):
                times[name].append(self._timed_s(calls[name]))
        return {name: statistics.median(own) for name, own in times.items()}

    def _captured(self, name: str, call: Callable[[], Any]) -> Callable[[], Any]:
        call()  # compiles
        if not self._on_cuda:
            return call
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer context is there for a capture that fails, which leaves torch's own stream current.
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
                call()
        except RuntimeError:
            self.launched.add(name)
            return call
        return graph.replay

    def _timed_s(self, call: Callable[[], Any]) -> float:
        if not self._on_cuda:
            began_s = time.perf_counter()
            call()
            return time.perf_counter() - began_s
        self._other.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3
