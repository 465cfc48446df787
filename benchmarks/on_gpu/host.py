"""Part 8: what the host adds to a step, what graphs cost and save, and what overlap hides."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from claimed.claim import Band, Figure, Table, number

from on_gpu import seam
from on_gpu.bench import GpuBench, Loaded
from on_gpu.budget import Budget
from on_gpu.found import Bar, Found, Part
from on_gpu.planned import WARM_UPS, decode_steps_s, fill_cache, fits, middle
from on_gpu.strategies import at_batch
from tunebatch.engine.plan import StepOutput, StepPlan
from tunebatch.execute.torch.fused import FACTS
from tunebatch.measure.latency import tpot_s
from tunebatch.measure.result import RunResult
from tunebatch.workload.lengths import Fixed
from tunebatch.workload.spec import WorkloadSpec

PROMPT_TOKENS, PROFILED_STEPS, GRAPH_CONTEXT = 128, 10, 512
TPOT = Bar("0.6B at batch 1: a token, end to end, host included", Band(high=2.5), " ms")
PLANNING = Bar("0.6B at batch 1: planning's share of a step, without overlap", Band(high=0.05), "%")
SAME = Bar("overlap: runs whose tokens are equal with it on and off", Band(low=1.0), "%")
OVERLAP = "planning beside the running step (overlap) cannot be switched in this version"
GRAPHS = "CUDA graphs cannot be switched in this version, or there is no CUDA"


class Stopwatch:
    """An executor that notes how long each step took it; the rest of a step is the engine's planning."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self.execute_s: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def execute(self, plan: StepPlan) -> StepOutput:
        began_s = time.perf_counter()
        try:
            output: StepOutput = self._executor.execute(plan)
            return output
        finally:
            self.execute_s.append(time.perf_counter() - began_s)


def measure(bench: GpuBench) -> Found:
    setting = bench.setting
    found = Found(
        setting=f"{setting.small} and {setting.large}, random weights, {setting.dtype}; as many requests as "
        f"the batch, prompts of {PROMPT_TOKENS} tokens where they fit, {setting.host_tokens} output tokens, "
        "continuous; medians of the decode steps; kernels: their own time, from a profile of "
        f"{PROFILED_STEPS} steps"
    )
    split: list[dict[str, Any]] = []
    overlap: list[dict[str, Any]] = []
    graphs: list[dict[str, Any]] = []
    models = (setting.large, setting.small)  # the first is still loaded
    for place, model in enumerate(models):
        budget = bench.budget.share(len(models) - place)
        _of_model(bench, model, budget, found.not_measured, split, overlap)
        if seam.has_graphs(setting.device):
            if budget.over():
                found.not_measured.append(f"{model}: steps without graphs: out of time")
            else:
                graphs.append(_graphs(bench, model))
    if not seam.has_overlap():
        found.not_measured.append(f"overlap on and off: not available: {OVERLAP}")
    if not seam.has_graphs(setting.device):
        found.not_measured.append(f"graphs on and off, and their cost: not available: {GRAPHS}")
    first = next((row for row in split if row["model"] == setting.small and row["batch"] == 1), None)
    found.bars = [
        TPOT.dict(None if first is None else Figure((first["tpot_ms"],), " ms"), "out of time"),
        PLANNING.dict(
            None
            if first is None or first["planning_share"] is None
            else Figure((first["planning_share"],), "%"),
            "out of time" if first is None else "the engine does not ask for one step at a time",
        ),
    ]
    same = sum(row["same_tokens"] for row in overlap) / len(overlap) if overlap else None
    why = "out of time" if seam.has_overlap() else f"not available: {OVERLAP}"
    found.bars.append(SAME.dict(None if same is None else Figure((same,), "%"), why))
    found.tables = _tables(split, overlap, graphs)
    found.data = {"split": split, "overlap": overlap, "graphs": graphs}
    return found


def _of_model(
    bench: GpuBench,
    model: str,
    budget: Budget,
    missing: list[str],
    split: list[dict[str, Any]],
    overlap: list[dict[str, Any]],
) -> None:
    loaded = bench.load(model)
    for place, batch in enumerate(bench.setting.host_batches):
        if place and budget.over():  # the first is what is judged, however long loading took
            missing.append(f"{model}, batch {batch}: out of time")
            continue
        split.append(_split(bench, loaded, batch))
        if seam.has_overlap():
            overlap.append(_overlap(bench, loaded, batch))


def _served(
    bench: GpuBench, loaded: Loaded, batch: int, overlap: bool | None, executor: Any = None
) -> RunResult:
    spec = WorkloadSpec(
        name="host",
        arrivals="burst",
        prompt_lengths=Fixed(PROMPT_TOKENS),
        output_lengths=Fixed(bench.setting.host_tokens),
        num_requests=batch,
    )
    told = {None: "", True: ", overlapped", False: ", not overlapped"}[overlap]
    return bench.run(
        loaded,
        bench.workload(loaded, spec),
        at_batch("continuous", batch),
        f"host batch {batch}{told}",
        overlap=overlap,
        executor=executor,
    )


def _split(bench: GpuBench, loaded: Loaded, batch: int) -> dict[str, Any]:
    """A step as the engine makes it, what of it is outside of the executor, and what the kernels take."""
    _served(bench, loaded, batch, None)  # warms up
    result = _served(bench, loaded, batch, None)
    watched = Stopwatch(loaded.executor)
    apart = _served(bench, loaded, batch, False, watched)
    step_s, planning_s = _decode_step_s(result), None
    assert apart.record is not None
    durations = apart.record.steps.duration_s
    if len(durations) == len(watched.execute_s):
        outside = [a - b for a, b in zip(durations, watched.execute_s, strict=True)]
        planning_s = statistics.median(
            took
            for took, count in zip(outside, apart.record.steps.num_decodes, strict=True)
            if count == batch
        )
    launched = _kernels(bench, loaded, batch)
    kernels, kernels_s = launched or (None, None)
    facts = loaded.executor.model_info
    tpots = [
        tpot for request in (result.record.requests if result.record else ()) if (tpot := tpot_s(request))
    ]
    return {
        "model": loaded.model,
        "batch": batch,
        "step_ms": 1e3 * step_s,
        "tpot_ms": 1e3 * statistics.median(tpots),
        "planning_us": None if planning_s is None else 1e6 * planning_s,
        "planning_share": None if planning_s is None else planning_s / _decode_step_s(apart),
        "layers": loaded.executor.model.config.get_text_config().num_hidden_layers,
        "fused": {fact: facts[fact] for fact in ("merged_projections", *FACTS) if fact in facts},
        "kernels": kernels,
        "kernels_ms": None if kernels_s is None else 1e3 * kernels_s,
        "host_ms": None if kernels_s is None else 1e3 * max(0.0, step_s - kernels_s),
    }


def _decode_step_s(result: RunResult) -> float:
    assert result.record is not None
    steps = result.record.steps
    most = max(steps.num_decodes)
    return statistics.median(
        took for took, count in zip(steps.duration_s, steps.num_decodes, strict=True) if count == most
    )


def _kernels(bench: GpuBench, loaded: Loaded, batch: int) -> tuple[float, float] | None:
    """How many kernels and copies a decode step has on the device, and seconds of all; None on a CPU."""
    context = PROMPT_TOKENS + bench.setting.host_tokens // 2
    if not bench.on_cuda or fits(loaded.executor, batch, context, 2 * PROFILED_STEPS):
        return None
    from torch.profiler import ProfilerActivity, profile

    fill_cache(loaded.executor)
    decode_steps_s(loaded.executor, batch, context, PROFILED_STEPS)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        timed = decode_steps_s(loaded.executor, batch, context, PROFILED_STEPS)
        torch.cuda.synchronize()
    steps = len(timed) + WARM_UPS
    on_device = [event for event in profiled.key_averages() if event.self_device_time_total > 0]
    total_us = sum(event.self_device_time_total for event in on_device)
    return sum(event.count for event in on_device) / steps, 1e-6 * total_us / steps


def _overlap(bench: GpuBench, loaded: Loaded, batch: int) -> dict[str, Any]:
    """Both ways, taking turns."""
    times: dict[bool, list[float]] = {True: [], False: []}
    outputs: dict[bool, Any] = {}
    for on in (True, False, False, True):
        result = _served(bench, loaded, batch, on)
        times[on].append(result.metrics.output_throughput)
        outputs[on] = [request.output for request in result.record.requests] if result.record else None
    return {
        "model": loaded.model,
        "batch": batch,
        "on_tokens_per_s": statistics.mean(times[True]),
        "off_tokens_per_s": statistics.mean(times[False]),
        "gain": statistics.mean(times[True]) / statistics.mean(times[False]),
        "same_tokens": outputs[True] == outputs[False],
    }


def _graphs(bench: GpuBench, model: str) -> dict[str, Any]:
    """Loading and decode steps with graphs and without: not in turns, as a model is loaded once for each."""
    load_s: dict[str, float] = {}
    step_ms: dict[str, dict[int, float]] = {}
    captured: Any = None
    for told, graphs in (("with", True), ("without", False)):
        load_s[told], step_ms[told], facts = _with_graphs(bench, model, graphs)
        captured = captured or facts
    return {"model": model, "captured": captured, "load_s": load_s, "step_ms": step_ms}


def _with_graphs(bench: GpuBench, model: str, graphs: bool) -> tuple[float, dict[int, float], Any]:
    """Seconds that loading took, milliseconds of a decode step by batch, and what was captured."""
    loaded, repeats = bench.load(model, graphs=graphs), bench.setting.repeats
    fill_cache(loaded.executor)
    step_ms: dict[int, float] = {}
    for batch in bench.setting.host_batches:
        if fits(loaded.executor, batch, GRAPH_CONTEXT, WARM_UPS + repeats) is None:
            timed = decode_steps_s(loaded.executor, batch, GRAPH_CONTEXT, repeats)
            step_ms[batch] = 1e3 * middle([took for took, _ in timed])
    return loaded.load_s, step_ms, loaded.executor.model_info.get("cuda_graphs")


def _tables(
    split: list[dict[str, Any]], overlap: list[dict[str, Any]], graphs: list[dict[str, Any]]
) -> list[Table]:
    tables = [
        Table(
            "Where a decode step's time goes",
            "model | batch | step | TPOT | planning | its share | kernels | step less kernels",
            [
                f"{row['model']} | {row['batch']} | {row['step_ms']:.3g} ms | {row['tpot_ms']:.3g} ms | "
                f"{_told(row['planning_us'], 'us')} | "
                f"{'n/a' if row['planning_share'] is None else number(row['planning_share'], '%')} | "
                f"{_told(row['kernels_ms'], 'ms')} | {_told(row['host_ms'], 'ms')}"
                for row in split
            ],
        )
    ]
    if any(row["kernels"] for row in split):
        tables.append(
            Table(
                "What a decode step launches",
                "model | batch | kernels | of each layer | modules that compute in one launch",
                [
                    f"{row['model']} | {row['batch']} | {row['kernels']:.0f} | "
                    f"{row['kernels'] / row['layers']:.1f} | {_fused(row['fused'])}"
                    for row in split
                    if row["kernels"]
                ],
            )
        )
    if overlap:
        tables.append(
            Table(
                "Overlap on and off",
                "model | batch | on | off | gain | same tokens",
                [
                    f"{row['model']} | {row['batch']} | {row['on_tokens_per_s']:,.0f} tokens/s | "
                    f"{row['off_tokens_per_s']:,.0f} tokens/s | {number(row['gain'], 'x')} | "
                    f"{'yes' if row['same_tokens'] else 'NO'}"
                    for row in overlap
                ],
            )
        )
    if graphs:
        tables.append(
            Table(
                "Graphs on and off",
                "model | captured | load with and without | decode steps at a context of "
                f"{GRAPH_CONTEXT}, with and without",
                [
                    f"{row['model']} | {row['captured']} | {row['load_s']['with']:.1f} s, "
                    f"{row['load_s']['without']:.1f} s | "
                    + ", ".join(
                        f"batch {batch}: {with_ms:.3g} and {row['step_ms']['without'].get(batch, 0):.3g} ms"
                        for batch, with_ms in row["step_ms"]["with"].items()
                    )
                    for row in graphs
                ],
            )
        )
    return tables


def _fused(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {fact.replace('_', ' ')}" for fact, count in counts.items()) or "none"


def _told(value: float | None, unit: str) -> str:
    return "n/a" if value is None else f"{value:.3g} {unit}"


PART = Part(
    "host",
    "What does the host add, and what do graphs and overlap save?",
    150.0,
    measure,
    (TPOT, PLANNING, SAME),
)
