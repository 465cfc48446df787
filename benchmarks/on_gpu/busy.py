"""Part 9: what is said of how busy batching keeps a GPU, and what this one shows of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from claimed.claim import Band, Figure, Table

from on_gpu.bench import GpuBench
from on_gpu.found import Bar, Found, Part
from on_gpu.strategies import HEADER, SEQUENTIAL_S, at_batch, facts, rows
from tunebatch.workload.named import NAMED

CLAIMED = ("sequential", "static", "continuous", "mixed")
# Of each claim what could be meant by it: arithmetic over the ceiling, the driver's word, slots that compute.
BARS: dict[tuple[str, str], Bar] = {
    ("sequential", "mfu"): Bar(
        "one request at a time: arithmetic over the ceiling (MFU)", Band(high=0.1), "%"
    ),
    ("static", "sm_busy"): Bar("static: time in which a kernel ran (NVML)", Band(0.5, 0.7), "%"),
    ("static", "slots"): Bar("static: slots that computed a token", Band(0.5, 0.7), "%"),
    ("continuous", "sm_busy"): Bar("continuous: time in which a kernel ran (NVML)", Band(0.8, 0.95), "%"),
    ("continuous", "slots"): Bar("continuous: slots that computed a token", Band(0.8, 0.95), "%"),
}


def measure(bench: GpuBench) -> Found:
    setting = bench.setting
    loaded = bench.load(setting.large)
    spec = replace(NAMED["chat"], num_requests=setting.strategy_requests)
    workload = bench.workload(loaded, spec)
    runs: dict[str, dict[str, Any]] = {}
    found = Found(
        setting=f"{setting.large}, random weights, {setting.dtype}; {workload.description}; max_batch_size "
        f"{setting.strategy_batch}; MFU and MBU: counted work over the ceilings of this run"
    )
    for name in CLAIMED:
        if bench.budget.over():
            found.not_measured.append(f"{name}: out of time")
            continue
        bench.say(f"chat: {name}")
        glimpse_s = SEQUENTIAL_S if name == "sequential" else None
        result = bench.run(
            loaded, workload, at_batch(name, setting.strategy_batch), name, glimpse_s=glimpse_s
        )
        runs[name] = facts(name, result)
        bubble = runs[name]["bubble"]
        runs[name]["slots"] = None if bubble is None else 1.0 - bubble
    for (name, measured), bar in BARS.items():
        value = runs.get(name, {}).get(measured)
        why = "out of time" if name not in runs else "no NVML here (nvidia-ml-py), or the run was too short"
        found.bars.append(bar.dict(None if value is None else Figure((value,), "%"), why))
    found.tables.append(Table("Chat, all at once", HEADER, rows(list(runs.values()))))
    found.data = {"runs": runs}
    return found


PART = Part("busy", "How busy does each way of batching keep the GPU?", 90.0, measure, tuple(BARS.values()))
