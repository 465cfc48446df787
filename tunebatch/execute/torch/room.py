"""How much memory there is for a model."""

from __future__ import annotations

import psutil
import torch

from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.model_error import ModelError
from tunebatch.measure.kv_room import blocks_of_slots, cpu_kv_bytes
from tunebatch.measure.shape_room import Need


def room_bytes(device: str, utilization: float) -> int:
    """Memory that is free, less what the utilization leaves to others on a GPU."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return int(free - total * (1 - utilization))
    return int(psutil.virtual_memory().available)


def blocks_that_fit(probe: TorchExecutor, max_slots: int, utilization: float, beside: Need | None) -> int:
    """As many blocks as all slots could fill, within the memory that is there."""
    wanted = blocks_of_slots(max_slots, probe.max_context, probe.block_size)
    room = room_bytes(probe.device.type, utilization)
    per_token = probe.cache.bytes_per_token
    if probe.device.type == "cpu":
        room = cpu_kv_bytes(room, per_token * probe.max_context)
    if beside is not None:
        room -= beside.weight_bytes + beside.step_bytes if probe.device.type == "cuda" else 0
        per_token += beside.kv_bytes_per_token
    per_block = max(1, per_token * probe.block_size)
    if room < per_block:
        raise ModelError("no memory is left for a KV cache after the weights; use a smaller model")
    return min(wanted, room // per_block)
