"""Continuous against dynamic batching, by how much output lengths differ."""

from __future__ import annotations

from dataclasses import replace

from claimed.batching import POLICIES, REQUESTS, full_load
from claimed.bench import Bench, Side, Turns, decode_step_s, middle, ms, ratios, slot_use, tokens_per_s
from claimed.claim import Claim, Figure, Finding, Table, from_to, number
from tunebatch.engine.strategies import strategy
from tunebatch.workload.lengths import Fixed, LengthLaw, LogNormal
from tunebatch.workload.named import NAMED

# Output tokens; those of the quickstart workload, uniform from 8 to 96, lie between.
SPREADS: dict[str, LengthLaw] = {"alike": Fixed(52), "wide": LogNormal.fit(24, 200, low=4, high=512)}
HEADER = "output tokens | strategy | output tokens/s | over dynamic | slot use"
TEXTS = {"alike": "all of 52", "varied": "8 to 96", "wide": "p50 24, p90 200"}


def loads(bench: Bench) -> dict[str, Turns]:
    """All at once at a batch of 32, by spread of the output lengths; `slots` looks at them too."""
    for spread, law in SPREADS.items():
        if spread not in bench.known:
            spec = replace(NAMED["quickstart"], output_lengths=law)
            workload = bench.workload(spec, REQUESTS).saturated()
            bench.known[spread] = bench.turns(
                {f"{one} 32": Side(workload, strategy(one, {"max_batch_size": 32})) for one in POLICIES}
            )
    return {"alike": bench.known["alike"], "varied": full_load(bench), "wide": bench.known["wide"]}


def measure(bench: Bench) -> Finding:
    found = loads(bench)
    figures: dict[str, Figure] = {}
    rows: list[str] = []
    for spread, turns in found.items():
        for policy in ("dynamic", "continuous", "mixed"):
            gain = ratios(turns, f"{policy} 32", "dynamic 32")
            figures[f"{policy}, {spread}"] = gain
            results = turns[f"{policy} 32"]
            used = number(middle(results, slot_use), "%")
            rows.append(
                f"{spread}: {TEXTS[spread]} | {policy} | {tokens_per_s(results)} | {gain.text()} | {used}"
            )
    few, many = (decode_step_s(found["wide"]["dynamic 32"], *ends) for ends in ((7, 9), (30, 32)))
    return Finding(
        setting=f"{found['varied']['dynamic 32'][0].workload['description']}, and the same with other output "
        "lengths; max_batch_size 32, max_delay 50 ms",
        figures=figures,
        why=f"an empty slot costs little here (a step of 7 to 9 sequences takes {ms(few)}, one of 30 to 32 "
        f"{ms(many)}), so what dynamic loses by them shows where lengths differ much, while continuous "
        "computes prompts in many small steps in which all others wait; where a step takes as long however "
        "many it decodes, as large models on GPUs do, each empty slot is a token lost",
        tables=(Table("By the spread of output lengths", HEADER, rows),),
    )


CLAIM = Claim(
    "continuous",
    "Continuous batching serves 20 to 30 % more than dynamic batching when output lengths differ.",
    tuple(from_to(f"continuous, {spread}", 1.2, 1.3, partly=1.05) for spread in ("varied", "wide")),
    measure,
)
