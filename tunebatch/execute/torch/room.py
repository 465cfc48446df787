"""How much memory there is for a model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import torch

from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.model_error import ModelError
from tunebatch.execute.torch.peak_step import DeviceMemory, run_peak_step
from tunebatch.measure.kv_room import blocks_of_slots, cpu_kv_bytes
from tunebatch.measure.shape_room import Need


def room_bytes(device: str, utilization: float) -> int:
    """Memory that is free, less what the utilization leaves to others on a GPU."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return share_of(free, total, utilization)
    try:
        import psutil
    except ModuleNotFoundError:  # without it what caches would give back counts as taken
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(psutil.virtual_memory().available)


def share_of(free: int, total: int, utilization: float) -> int:
    """Of a GPU's free memory, what does not belong to others, in bytes."""
    return int(free - total * (1 - utilization))


def blocks_that_fit(
    probe: TorchExecutor,
    new_executor: Callable[[int], TorchExecutor],
    utilization: float,
    beside: Need | None,
    memory: DeviceMemory | None,
    graph_bytes: int = 0,
) -> tuple[int, dict[str, Any]]:
    """As many blocks as all slots could fill, within the memory that is there.

    Args:
        probe: Whose layers have made their pools.
        new_executor: Makes one with so many blocks, to see what the largest step takes.
        beside: Of a draft model that will have as many blocks, and as many graphs if there are any: theirs
            are counted as large as these, since what they share, the logits, has the same vocabulary.
        memory: Of a GPU, whose room is what the largest step leaves; None: a share of what a CPU has.
        graph_bytes: What graphs of steps will take.

    Returns:
        Blocks, and for result files ``peak_step``, where it was run, and ``kept_free``: what was left to
        others than the KV cache, in bytes.

    Raises:
        ModelError: There is not even room for one.
    """
    wanted = blocks_of_slots(probe.max_slots, probe.max_context, probe.block_size)
    per_token, told = probe.cache.bytes_per_token, dict[str, Any]()
    kept = _kept_free(graph_bytes, beside)
    if kept:
        told["kept_free"] = kept
    aside = graph_bytes + sum(kept.get("draft", {}).values())
    if memory is None:
        room = cpu_kv_bytes(room_bytes("cpu", utilization) - aside, per_token * probe.max_context)
    else:
        peak = run_peak_step(new_executor, memory)
        told["peak_step"] = dataclasses.asdict(peak)
        room = share_of(*memory.free_and_total(), utilization) - peak.num_bytes - aside
    per_token += beside.kv_bytes_per_token if beside is not None else 0
    per_block = max(1, per_token * probe.block_size)
    if room < per_block:
        raise ModelError("no memory is left for a KV cache after the weights; use a smaller model")
    return min(wanted, room // per_block), told


def _kept_free(graph_bytes: int, beside: Need | None) -> dict[str, Any]:
    kept: dict[str, Any] = {"graphs": graph_bytes} if graph_bytes else {}
    if beside is not None:
        kept["draft"] = {"weights": beside.weight_bytes, "step": beside.step_bytes, "graphs": graph_bytes}
    return kept
