"""Capture what a loaded model will be asked for: how many graphs, in what time, and for how much memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.graphs.buckets import Bucket, Buckets, buckets_for
from tunebatch.execute.torch.graphs.capture import Capture
from tunebatch.execute.torch.graphs.graphs import Graphs
from tunebatch.execute.torch.graphs.inputs import StaticInputs

# Backends whose launches hang on nothing but what a bucket holds, and which read nothing back.
CAPTURABLE = frozenset({"triton"})
# What a driver takes for a graph at least, even if so little that the memory that is free does not show it.
_LEAST_BYTES = 2**20
_MANY = 4

# (graphs that are captured, of how many)
Told = Callable[[int, int], None]


def capture_graphs(
    executor: TorchExecutor,
    capture: Capture,
    told: Told | None = None,
    buckets: Iterable[Bucket] | None = None,
) -> dict[str, Any]:
    """Give an executor graphs, largest first, so that smaller ones find room in what these needed.

    Where memory runs out, the largest go without; where the model cannot be captured, all do.

    Args:
        buckets: By default `buckets_for` all its slots.

    Returns:
        Facts for result files: ``graphs``, ``seconds``, ``mib``, and ``without``, in one line, if there are
        fewer than there should be.
    """
    wanted = Buckets(buckets_for(executor.max_slots) if buckets is None else buckets)
    started, before = time.perf_counter(), capture.taken_bytes()
    without: str | None = None
    graphs: Graphs | None = None
    try:
        inputs = StaticInputs(wanted, executor.cache, executor.max_context, executor.device)
        graphs = Graphs(executor.forward, inputs)
    except torch.OutOfMemoryError:
        without = f"no memory for what {len(wanted)} graphs read"
    missed = 0
    for count, bucket in enumerate(reversed(list(wanted)) if graphs is not None else (), 1):
        assert graphs is not None
        try:
            graphs.capture(bucket, capture)
        except RuntimeError as error:
            if not _memory_ran_out(error):
                without = f"this model cannot be captured: {_first_line(error)}"
                break
            missed += 1
            without = f"no memory for {missed} of {len(wanted)} graphs, those of the largest steps"
        if told is not None:
            told(count, len(wanted))
    if graphs is not None and len(graphs.buckets):
        executor.use_graphs(graphs)
    taken = capture.taken_bytes() - before
    facts: dict[str, Any] = {
        "graphs": 0 if graphs is None else len(graphs.buckets),
        "seconds": round(time.perf_counter() - started, 3),
        "mib": round(max(0, taken) / 2**20, 1),
    }
    return facts if without is None else {**facts, "without": without}


def bytes_of_graphs(probe: TorchExecutor, capture: Capture) -> int:
    """What all graphs of a model will take, from a few: the largest, whose temporaries all others share, and
    some of the smallest; 0 where it cannot be captured. These few are gone then."""
    needed = _bytes_of_a_few(probe, capture)
    capture.taken_bytes()
    return needed


def _bytes_of_a_few(probe: TorchExecutor, capture: Capture) -> int:
    wanted = list(Buckets(buckets_for(probe.max_slots)))
    before = capture.taken_bytes()
    try:
        inputs = StaticInputs(Buckets(wanted), probe.cache, probe.max_context, probe.device)
        graphs = Graphs(probe.forward, inputs)
        graphs.capture(wanted[-1], capture)
        largest = capture.taken_bytes()
        for bucket in wanted[:_MANY]:
            graphs.capture(bucket, capture)
    except RuntimeError:
        return 0
    each = max(_LEAST_BYTES, (capture.taken_bytes() - largest) // _MANY)
    return largest - before + each * (len(wanted) - 1)


def _memory_ran_out(error: BaseException) -> bool:
    """Itself, or what it came of: a capture that ends early says that, and not why."""
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
        return True
    earlier = error.__cause__ or error.__context__
    return earlier is not None and _memory_ran_out(earlier)


def _first_line(error: BaseException) -> str:
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
