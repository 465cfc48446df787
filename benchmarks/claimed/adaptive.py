"""A burst that triples the rate: a batch limit that follows the SLO against fixed ones."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from load_step import SCENARIOS, serve

from claimed.bench import Bench, Side, latency_s, middle, ms, ratios
from claimed.claim import Claim, Figure, Finding, Table, at_least, at_most, number
from tunebatch.engine.strategies import strategy
from tunebatch.measure.limits import parse_slo
from tunebatch.measure.result import RunResult
from tunebatch.workload.named import NAMED
from tunebatch.workload.realised import Workload, arriving

GOOD, LARGE = 24, 64
ROOM = 1.1  # the limit on the TPOT, over what the good batch has at full load
LOAD, STEP = 0.45, 3.0  # of the requests a second that the good batch serves at full load
CALM_S, BURST_S = 1.0, 2.0
HEADER = "strategy, max_batch_size | goodput, req/s | keep the SLO | p90 TPOT | p90 TTFT"
FIXED = (f"mixed {GOOD}", f"mixed {LARGE}")
TPOT, TTFT = latency_s("tpot", "p90"), latency_s("ttft", "p90")


def measure(bench: Bench) -> Finding:
    chosen = {f"mixed {batch}": strategy("mixed", {"max_batch_size": batch}) for batch in (GOOD, LARGE)}
    chosen["adaptive"] = strategy("adaptive", {"max_batch_size": LARGE})
    probe = bench.run(Side(bench.workload(NAMED["quickstart"], 2 * LARGE).saturated(), chosen[FIXED[0]]))
    limit_ms = math.ceil(ROOM * 1e4 * TPOT(probe)) / 10
    slo = parse_slo(["p90_ttft<=1s", f"p90_tpot<={limit_ms:g}ms"])
    step = stepped(bench, round(LOAD * probe.metrics.request_throughput, 1))
    turns = bench.turns({name: Side(step, one, slo) for name, one in chosen.items()})
    figures = {f"goodput, adaptive over {name}": ratios(turns, "adaptive", name, _goodput) for name in FIXED}
    over = tuple(1e3 * TPOT(one) / limit_ms for one in turns["adaptive"])
    figures["p90 TPOT of adaptive over its limit"] = Figure(over)
    rows: list[str] = []
    for name, results in turns.items():
        good, kept = middle(results, _goodput), middle(results, _kept)
        latencies = " | ".join(ms(middle(results, of)) for of in (TPOT, TTFT))
        rows.append(f"{name} | {good:.1f} | {number(kept, '%')} | {latencies}")
    return Finding(
        setting=f"{step.description}; {', '.join(slo.texts())}: {ROOM:g} times the TPOT of mixed with batch "
        f"{GOOD} at full load, which is right by construction; {number(LOAD, '%')} of its load, then "
        f"{STEP:g} times that for {BURST_S:g} s",
        figures=figures,
        why="the burst fills whatever batch there is, and adaptive learns from its own steps how large a "
        "batch keeps the TPOT, which nobody told it; where the TPOT is lost to long prompts rather than to "
        "large batches it makes requests wait for nothing (the second table)",
        tables=(Table("Measured: through the burst", HEADER, rows), _predicted()),
    )


def _goodput(result: RunResult) -> float:
    return max(result.metrics.request_goodput or 0.0, 1e-9)


def _kept(result: RunResult) -> float:
    """Share of the requests that keep every limit."""
    return _goodput(result) * result.metrics.duration_s / result.metrics.num_requests


def stepped(bench: Bench, base_per_s: float) -> Workload:
    """Poisson arrivals whose rate is ``STEP`` times as high for a while in the middle."""
    amounts, spans_s = np.array([CALM_S, STEP * BURST_S, CALM_S]), np.array([CALM_S, BURST_S, CALM_S])
    drawn = bench.workload(NAMED["quickstart"], round(base_per_s * amounts.sum()))
    assert drawn.unit_arrivals_s is not None
    # Of an even stream: so many requests have come when each phase ends.
    came, times_s = (np.concatenate([[0.0], np.cumsum(one)]) for one in (base_per_s * amounts, spans_s))
    arrivals = np.interp(drawn.unit_arrivals_s, came, times_s).tolist()
    requests = arriving(drawn.patterns, arrivals)
    process = f"Poisson at {base_per_s:g} req/s, {STEP:g} times that for {BURST_S:g} s, mean"
    return replace(drawn, requests=requests, rate_per_s=len(requests) / spans_s.sum(), process=process)


def _predicted() -> Table:
    """Where it wins and where it loses, in virtual time."""
    chosen = [strategy("mixed", {"max_batch_size": batch}) for batch in (32, 128)]
    chosen.append(strategy("adaptive", {"max_batch_size": 128}))
    rows: list[str] = []
    for scenario in SCENARIOS:
        if scenario.slo.limits:
            goods = [serve(scenario, one, 0).request_goodput or 0.0 for one in chosen]
            best = max(goods[:-1])
            told = "level" if abs(goods[-1] / best - 1) < 0.02 else "wins" if goods[-1] > best else "loses"
            cells = " | ".join(f"{good:.2f}" for good in goods)
            rows.append(f"{scenario.name} | {cells} | {told} ({goods[-1] / best:.2f}x)")
    title = (
        "Predicted, by `benchmarks/load_step.py`: goodput in req/s of a large model on a GPU in virtual time"
    )
    return Table(title, "load | mixed 32 | mixed 128 | adaptive 128 | over the better fixed one", rows)


CLAIM = Claim(
    "adaptive",
    "Adaptive batching keeps the SLO through a step in the load: as well as a fixed batch that is right for "
    "it, better than one that is too large.",
    (
        at_least(f"goodput, adaptive over {FIXED[0]}", 0.97, 0.85),
        at_least(f"goodput, adaptive over {FIXED[1]}", 1.05, 1.0),
        at_most("p90 TPOT of adaptive over its limit", 1.0, 1.1),
    ),
    measure,
)
