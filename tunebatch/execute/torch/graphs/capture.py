"""The one place that captures: what runs on the device between two moments becomes a graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch


class Capture(Protocol):
    """Turns a function into its replay.

    The function reads and writes tensors that stay where they are, and its launches hang on nothing that
    changes. It runs at least once, so that all it compiles and allocates for good is there.
    """

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """Raises:
        RuntimeError: It cannot be captured, or there is no memory for it.
        """
        ...

    def taken_bytes(self) -> int:
        """Memory of the device that is not free, once what nobody uses any more is given back."""
        ...


@cache
def _stream() -> torch.cuda.Stream:
    """One for all, since matrix products keep memory of their own for every stream."""
    return torch.cuda.Stream()


class CudaCapture:
    """CUDA graphs, whose temporaries all lie in one pool: one of them runs at a time."""

    def __init__(self) -> None:
        self._pool: tuple[int, int] | None = None
        self._stream = _stream()
        self._pool_used = False

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """See `Capture`."""
        # Kernels are compiled and loaded, and pools are made, when they are first needed: not in a capture.
        function()
        torch.cuda.synchronize()
        if not self._pool_used:
            # One that nobody uses any more, as after a capture that failed, torch does not take again.
            self._pool = torch.cuda.graph_pool_handle()
        captured = torch.cuda.CUDAGraph()
        # Threads beside this one, telemetry for one, may ask the driver for what a capture forbids. The outer
        # stream context is there for a capture that fails: torch's own would then leave its stream current.
        with (
            torch.cuda.stream(self._stream),
            torch.cuda.graph(
                captured, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ),
        ):
            function()
        self._pool_used = True
        return captured.replay

    def taken_bytes(self) -> int:
        """See `Capture`."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return int(total - free)
