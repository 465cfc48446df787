"""How much memory there is for a model."""

from __future__ import annotations

import os

import torch


def room_bytes(device: str, utilization: float) -> int:
    """Memory that is free, less what the utilization leaves to others on a GPU."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return int(free - total * (1 - utilization))
    try:
        import psutil
    except ModuleNotFoundError:  # without it what caches would give back counts as taken
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(psutil.virtual_memory().available)
