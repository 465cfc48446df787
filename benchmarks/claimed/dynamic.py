"""Dynamic batching between two ends: answers soon, and full batches."""

from __future__ import annotations

from claimed.batching import full_load
from claimed.bench import Bench, Side, latency_s, middle, ms, ratios, request_rate, tokens_per_s
from claimed.claim import Claim, Figure, Finding, Table, at_least, number
from tunebatch.engine.strategies import strategy
from tunebatch.workload.named import NAMED

LOADS = (0.3, 0.6)  # of the requests a second that static serves when there is always work
REQUESTS = 96
POLICIES = ("static", "dynamic")
HEADER = "rate | strategy | p50 TTFT | p90 TTFT | p50 E2E | output tokens/s"
P50, P90 = latency_s("ttft", "p50"), latency_s("ttft", "p90")


def measure(bench: Bench) -> Finding:
    full = full_load(bench)
    most_per_s = middle(full["static 32"], request_rate)
    workload = bench.workload(NAMED["quickstart"], REQUESTS)
    figures: dict[str, Figure] = {"throughput at full load": ratios(full, "dynamic 32", "static 32")}
    rows: list[str] = []
    for load in LOADS:
        paced = workload.at_rate(round(load * most_per_s, 1))
        turns = bench.turns({one: Side(paced, strategy(one, {"max_batch_size": 32})) for one in POLICIES})
        figures[f"p50 TTFT at {number(load, '%')}, static over dynamic"] = ratios(
            turns, "static", "dynamic", P50
        )
        for policy, results in turns.items():
            latencies = " | ".join(ms(middle(results, of)) for of in (P50, P90, latency_s("e2e", "p50")))
            rate = f"{paced.rate_per_s:g} req/s ({number(load, '%')})"
            rows.append(f"{rate} | {policy} | {latencies} | {tokens_per_s(results)}")
    rows += [f"all at once | {one} | - | - | - | {tokens_per_s(full[f'{one} 32'])}" for one in POLICIES]
    return Finding(
        setting=f"{workload.description}, but at {', '.join(number(load, '%') for load in LOADS)} of what "
        f"static serves all at once ({most_per_s:.1f} req/s); max_batch_size 32, max_delay 50 ms",
        figures=figures,
        why="static waits until 32 requests are there, dynamic starts with whoever has come when the oldest "
        "has waited for the delay, and under full load both find 32 at once; under both a request that comes "
        "while a batch runs waits for its end",
        tables=(Table("By request rate", HEADER, rows),),
    )


CLAIM = Claim(
    "dynamic",
    "Dynamic batching balances latency and throughput: answers begin sooner than with static batches, at the "
    "same throughput.",
    (
        *(at_least(f"p50 TTFT at {number(load, '%')}, static over dynamic", 1.5, 1.1) for load in LOADS),
        at_least("throughput at full load", 0.97, 0.9),
    ),
    measure,
)
