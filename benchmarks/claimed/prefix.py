"""What prompts that begin alike save: tokens that are not computed, blocks that are not stored."""

from __future__ import annotations

import statistics
from dataclasses import replace

from claimed.bench import Bench, Side, latency_s, middle, ms, ratios, record_of, tokens_per_s
from claimed.claim import Claim, Figure, Finding, Table, at_least, at_most
from tunebatch.engine.strategies import strategy
from tunebatch.measure.result import RunResult
from tunebatch.workload.lengths import Uniform
from tunebatch.workload.named import NAMED

WORKLOADS = ("system-prompt", "multi-turn", "rag")
REQUESTS = 20
TIGHT_REQUESTS, TIGHT = 40, 6  # sequences without sharing that the tight pool holds
HEADER = (
    "workload | prompt tokens saved | of those shared | blocks a sequence, without | with | mean TTFT, "
    "without | with | output tokens/s, with over without"
)
MODES = {"without": "continuous", "with": "continuous+prefix"}


def measure(bench: Bench) -> Finding:
    figures: dict[str, Figure] = {}
    rows: list[str] = []
    for name in WORKLOADS:
        workload = bench.workload(NAMED[name], REQUESTS).saturated()
        turns = bench.turns({mode: Side(workload, strategy(own)) for mode, own in MODES.items()})
        prompt = statistics.median(len(one.prompt) for one in workload.patterns)
        saved = Figure(tuple(one.metrics.hit_rate or 0.0 for one in turns["with"]), "%")
        found = tuple(share / workload.shared_share for share in saved.samples)
        blocks = ratios(turns, "with", "without", blocks_per_sequence)
        figures |= {f"{name}: found of what is shared": Figure(found, "%"), f"{name}: KV blocks": blocks}
        cells = [
            f"{name}, prompts of {prompt:.0f} tokens",
            saved.text(),
            figures[f"{name}: found of what is shared"].text(),
        ]
        cells += [f"{middle(turns[mode], blocks_per_sequence):.0f}" for mode in MODES]
        cells += [ms(middle(turns[mode], latency_s("ttft", "mean"))) for mode in MODES]
        rows.append(" | ".join([*cells, ratios(turns, "with", "without").text()]))
    tight = _tight_pool(bench, figures)
    return Finding(
        setting=f"{', '.join(WORKLOADS)}: {REQUESTS} requests each, all at once, lengths scaled to the "
        f"model's context, max_batch_size 32; tight pool: {tight.title}, max_batch_size 64",
        figures=figures,
        why="shared beginnings are computed and stored once, since who would compute one beside another "
        "waits; how much larger a batch becomes follows from how long they are against the rest",
        tables=(Table("By workload", HEADER, rows), tight),
    )


def _tight_pool(bench: Bench, figures: dict[str, Figure]) -> Table:
    spec = replace(NAMED["system-prompt"], output_lengths=Uniform(16, 256))
    workload = bench.workload(spec, TIGHT_REQUESTS).saturated()
    lengths = [len(one.prompt) + one.max_tokens for one in workload.patterns]
    num_blocks = TIGHT * sum(lengths) // len(lengths) // bench.executor.block_size
    sides = {mode: strategy(own, {"max_batch_size": 64}) for mode, own in MODES.items()}
    turns = bench.turns({mode: Side(workload, one, num_blocks=num_blocks) for mode, one in sides.items()})
    figures["tight pool: batch"] = ratios(turns, "with", "without", batch_while_others_wait)
    rows: list[str] = []
    for mode, results in turns.items():
        batch, most = middle(results, batch_while_others_wait), middle(results, most_at_once)
        preempted = middle(results, lambda one: one.metrics.num_preemptions)
        rows.append(f"{MODES[mode]} | {batch:.1f} | {most:.0f} | {preempted:.0f} | {tokens_per_s(results)}")
    title = (
        f"{TIGHT_REQUESTS} requests of system-prompt, short answers, all at once, in {num_blocks} KV blocks"
    )
    header = "strategy | sequences while others wait | most in a step | preemptions | output tokens/s"
    return Table(title, header, rows)


def blocks_per_sequence(result: RunResult) -> float:
    """KV blocks in use for each sequence that is there, mean over steps by their time."""
    steps = record_of(result).steps
    rows = list(zip(steps.duration_s, steps.blocks_used, steps.slots_held, strict=True))
    return sum(took * blocks for took, blocks, _ in rows) / sum(took * slots for took, _, slots in rows)


def batch_while_others_wait(result: RunResult) -> float:
    """Sequences that are there, mean over the time in which others wait: the most that the KV cache holds."""
    steps = record_of(result).steps
    rows = list(zip(steps.duration_s, steps.slots_held, steps.num_waiting, strict=True))
    waiting = [(took, held) for took, held, others in rows if others]
    return sum(took * held for took, held in waiting) / sum(took for took, _ in waiting)


def most_at_once(result: RunResult) -> float:
    """The most sequences that one step computed."""
    return float(max(record_of(result).steps.slots_active))


CLAIM = Claim(
    "prefix",
    "Prefix caching computes and stores shared beginnings once, and makes the effective batch 3 times as "
    "large.",
    (
        *(at_least(f"{name}: found of what is shared", 0.9, 0.5) for name in WORKLOADS),
        *(at_most(f"{name}: KV blocks", 0.7, 0.95) for name in WORKLOADS),
        at_least("tight pool: batch", 3.0, 1.5),
    ),
    measure,
)
