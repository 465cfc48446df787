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
    # The first step that runs makes the KV pools, which are no graph's.
    started, before = time.perf_counter(), capture.taken_bytes() - executor.cache.num_bytes
    try:
        inputs = StaticInputs(wanted, executor.cache, executor.max_context, executor.device)
    except torch.OutOfMemoryError:
        return {"graphs": 0, "seconds": 0.0, "mib": 0.0, "without": "no memory for what graphs read"}
    graphs = Graphs(executor.forward, inputs)
    without = _captured(graphs, wanted, capture, told)
    if len(graphs.buckets):
        executor.use_graphs(graphs)
    return {
        "graphs": len(graphs.buckets),
        "seconds": round(time.perf_counter() - started, 3),
        "mib": round(max(0, capture.taken_bytes() - executor.cache.num_bytes - before) / 2**20, 1),
        **({} if without is None else {"without": without}),
    }


def _captured(graphs: Graphs, wanted: Buckets, capture: Capture, told: Told | None) -> str | None:
    """Why some are missing, in one line, if any are."""
    without: str | None = None
    missing = 0
    for count, bucket in enumerate(reversed(list(wanted)), 1):
        try:
            graphs.capture(bucket, capture)
        except RuntimeError as error:
            if not _memory_ran_out(error):
                return f"this model cannot be captured: {_first_line(error)}"
            missing += 1
            without = f"no memory for {missing} of {len(wanted)} graphs, those of the largest steps"
        if told is not None:
            told(count, len(wanted))
    return without


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
