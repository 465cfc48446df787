"""Batches against one request at a time, when there is always work."""

from __future__ import annotations

from claimed.bench import Bench, Side, Turns, decode_step_s, ms, ratios, tokens_per_s
from claimed.claim import Claim, Finding, Table, from_to
from tunebatch.engine.strategies import strategy
from tunebatch.workload.named import NAMED

POLICIES = ("static", "dynamic", "continuous", "mixed")
REQUESTS = 96
SEQUENTIAL_S = 4.0  # of one request at a time, which takes long; its rate does not change


def full_load(bench: Bench) -> Turns:
    """Quickstart lengths, all at once: what three other claims look at too."""
    if "full load" not in bench.known:
        workload = bench.workload(NAMED["quickstart"], REQUESTS).saturated()
        sides = {"sequential": Side(workload, strategy("sequential"), glimpse_s=SEQUENTIAL_S)}
        for policy, batch in [*((one, 32) for one in POLICIES), ("mixed", 8), ("mixed", 64)]:
            sides[f"{policy} {batch}"] = Side(workload, strategy(policy, {"max_batch_size": batch}))
        bench.known["full load"] = bench.turns(sides)
    return bench.known["full load"]


def measure(bench: Bench) -> Finding:
    turns = full_load(bench)
    figures = {name: ratios(turns, name, "sequential") for name in turns if name != "sequential"}
    one, many = decode_step_s(turns["sequential"], 1, 1), decode_step_s(turns["static 32"], 30, 32)
    rows = [f"sequential | {tokens_per_s(turns['sequential'])} | 1x"]
    rows += [f"{name} | {tokens_per_s(turns[name])} | {gain.text()}" for name, gain in figures.items()]
    return Finding(
        setting=f"{turns['mixed 32'][0].workload['description']}; max_batch_size 32; sequential: its first "
        f"{SEQUENTIAL_S:g} s",
        figures=figures,
        why=f"a decode step takes {ms(one)} for one sequence and {ms(many)} for 30 to 32, so a full batch "
        f"makes {31 * one / many:.1f}x the tokens; prompts, which a batch computes hardly faster, and empty "
        "slots take some of that away",
        tables=(Table("By strategy", "strategy, max_batch_size | output tokens/s | of one at a time", rows),),
    )


CLAIM = Claim(
    "batching",
    "Batching serves 5 to 10 times the tokens of one request at a time.",
    tuple(from_to(f"{policy} 32", 5.0, 10.0, partly=2.0) for policy in POLICIES),
    measure,
)
