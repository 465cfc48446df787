"""Part 7: all strategies on three kinds of traffic, for the large shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from claimed.claim import Table, number

from on_gpu.bench import GpuBench
from on_gpu.found import Found, Part
from tunebatch.engine.strategies import STRATEGIES, Strategy, kind_of, strategy
from tunebatch.measure.result import RunResult
from tunebatch.workload.named import NAMED

SHARING = ("continuous+prefix", "mixed+prefix")  # where prompts begin alike
SEQUENTIAL_S = 6.0  # of one request at a time, which takes long; its rate does not change
LEAST_S = 3.0
HEADER = (
    "strategy | output tokens/s | x static | p90 TTFT | p90 TPOT | batch | empty slots | GPU busy | MFU | "
    "MBU | J/token"
)


def measure(bench: GpuBench) -> Found:
    setting = bench.setting
    loaded = bench.load(setting.large)
    found = Found(
        setting=f"{setting.large}, random weights, {setting.dtype}; {setting.strategy_requests} requests "
        f"that are all there at once, max_batch_size {setting.strategy_batch}, other knobs at their "
        f"defaults; one run each; sequential: its first {SEQUENTIAL_S:g} s"
    )
    runs: dict[str, list[dict[str, Any]]] = {}
    for place, name in enumerate(setting.workloads):
        budget = bench.budget.share(len(setting.workloads) - place)
        spec = replace(NAMED[name], num_requests=setting.strategy_requests)
        workload = bench.workload(loaded, spec)
        names = [*STRATEGIES, *(SHARING if name == "rag" else ())]
        own: list[dict[str, Any]] = []
        for one in names:
            if budget.over():
                found.not_measured.append(f"{name}: {', '.join(names[len(own) :])}: out of time")
                break
            bench.say(f"{name}: {one}")
            left_s = max(LEAST_S, budget.left_s())
            glimpse_s = min(SEQUENTIAL_S, left_s) if one == "sequential" else left_s
            result = bench.run(
                loaded, workload, at_batch(one, setting.strategy_batch), f"{name} {one}", glimpse_s=glimpse_s
            )
            own.append(facts(one, result))
            if own[-1]["stopped_early"] and one != "sequential":
                found.not_measured.append(
                    f"{name}: {one}: its end; its figures are of the first {left_s:.0f} s"
                )
        runs[name] = own
        found.tables.append(Table(workload.description, HEADER, rows(own)))
    found.data = {"runs": runs}
    return found


def at_batch(name: str, batch: int) -> Strategy:
    """A strategy with that batch limit, where it has one."""
    has = any(knob.name == "max_batch_size" for knob in kind_of(name.partition("+")[0]).knobs)
    return strategy(name, {"max_batch_size": batch} if has else None)


def facts(name: str, result: RunResult) -> dict[str, Any]:
    """What is shown and kept of a run; None where the machine does not tell."""
    metrics, seen = result.metrics, result.telemetry
    gpu = None if seen is None else seen.gpu
    used = None if seen is None else seen.utilization
    return {
        "strategy": name,
        "output_throughput": metrics.output_throughput,
        "p90_ttft_s": metrics.distribution("ttft").statistic("p90").value_s,
        "p90_tpot_s": metrics.distribution("tpot").statistic("p90").value_s,
        "mean_batch": metrics.mean_batch,
        "bubble": metrics.bubble,
        "sm_busy": None if gpu is None else gpu.sm_utilization,
        "mfu": None if used is None else used.mfu,
        "mbu": None if used is None else used.mbu,
        "mean_power_w": None if gpu is None else gpu.mean_power_w,
        "joules_per_output_token": None if seen is None else seen.joules_per_output_token,
        "cautions": [] if seen is None else list(seen.cautions),
        "stopped_early": result.record is not None and result.record.stopped_early,
    }


def rows(runs: list[dict[str, Any]]) -> list[str]:
    static = next((run["output_throughput"] for run in runs if run["strategy"] == "static"), None)
    return [
        " | ".join(
            [
                run["strategy"],
                f"{run['output_throughput']:,.0f}",
                "-" if static is None else number(run["output_throughput"] / static, "x"),
                _seconds(run["p90_ttft_s"]),
                _seconds(run["p90_tpot_s"]),
                f"{run['mean_batch']:.1f}",
                *(_share(run[key]) for key in ("bubble", "sm_busy", "mfu", "mbu")),
                "n/a" if run["joules_per_output_token"] is None else f"{run['joules_per_output_token']:.3g}",
            ]
        )
        for run in runs
    ]


def _seconds(value_s: float | None) -> str:
    if value_s is None:
        return "n/a"
    return f"{1e3 * value_s:.3g} ms" if value_s < 1 else f"{value_s:.3g} s"


def _share(value: float | None) -> str:
    return "n/a" if value is None else number(value, "%")


PART = Part("strategies", "What does each strategy serve?", 300.0, measure)
