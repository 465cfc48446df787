"""What a long prompt does to the short requests beside it, and what chunks of it change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from claimed.bench import Bench, Side, middle, ms, ratios, record_of, tokens_per_s
from claimed.claim import Claim, Figure, Finding, Table, at_least
from tunebatch.engine.records import RequestRecord
from tunebatch.engine.strategies import strategy
from tunebatch.measure.result import RunResult
from tunebatch.workload.lengths import Interleaved, Uniform
from tunebatch.workload.spec import WorkloadSpec

CHUNKS = (64, 128, 256, 1024)
ALTERNATING = (256,)
REQUESTS, CLIENTS = 100, 12
SHORT, LONG = Uniform(16, 64), Uniform(1536, 1920)
BORDER = 1000
HEADER = "strategy, chunk_size | p99 ITL of the short | continuous over it | TTFT of the long | tokens/s"
ALONE = "continuous, short prompts alone"
SPEC = WorkloadSpec(
    name="short chats",
    arrivals="closed",
    concurrency=CLIENTS,
    num_requests=REQUESTS,
    prompt_lengths=SHORT,
    output_lengths=Uniform(16, 48),
)


def measure(bench: Bench) -> Finding:
    short = bench.workload(SPEC, REQUESTS)
    both = bench.workload(
        replace(SPEC, name="one prompt of ten is long", prompt_lengths=Interleaved(SHORT, LONG, 10)), REQUESTS
    )
    sides = {ALONE: Side(short, strategy("continuous")), "continuous": Side(both, strategy("continuous"))}
    for policy, chunks in (("mixed", CHUNKS), ("chunked", ALTERNATING)):
        sides |= {f"{policy} {size}": Side(both, strategy(policy, {"chunk_size": size})) for size in chunks}
    turns = bench.turns(sides)
    figures = {"p99 ITL, with long prompts over without": ratios(turns, "continuous", ALONE, p99_gap_s)}
    rows: list[str] = []
    for name, results in turns.items():
        long = ratio = "-"
        if name != ALONE:
            figures[f"p99 ITL, continuous over {name}"] = ratios(turns, "continuous", name, p99_gap_s)
            ratio, long = figures[f"p99 ITL, continuous over {name}"].text(), ms(middle(results, long_ttft_s))
        gaps = Figure(tuple(1e3 * p99_gap_s(result) for result in results), " ms").text()
        rows.append(f"{name} | {gaps} | {ratio} | {long} | {tokens_per_s(results)}")
    small, plain = turns[f"mixed {CHUNKS[0]}"], turns["continuous"]
    return Finding(
        setting=f"{both.description}; long prompts have {LONG.low:,} to {LONG.high:,} tokens; ITL pooled "
        f"over {sum(len(gaps_s(one)) for one in _short(record_of(plain[0]).requests)):,} gaps of the short "
        "requests of each run",
        figures=figures,
        why="a whole long prompt is one step that everybody waits for, a chunk is a shorter one; at "
        f"chunk_size {CHUNKS[0]} the long prompts' first tokens come after {ms(middle(small, long_ttft_s))} "
        f"instead of {ms(middle(plain, long_ttft_s))}",
        tables=(Table("The trade-off", HEADER, rows),),
    )


def gaps_s(request: RequestRecord) -> list[float]:
    """Between the tokens of a request."""
    return [after - before for before, after in pairwise(request.token_times_s)]


def _short(requests: Sequence[RequestRecord]) -> list[RequestRecord]:
    return [one for one in requests if one.num_prompt_tokens < BORDER]


def p99_gap_s(result: RunResult) -> float:
    """Of all gaps of the short requests."""
    gaps = [gap for one in _short(record_of(result).requests) for gap in gaps_s(one)]
    return float(np.percentile(gaps, 99))


def long_ttft_s(result: RunResult) -> float:
    """Median over the long ones."""
    long = [one for one in record_of(result).requests if one.num_prompt_tokens >= BORDER]
    return float(np.median([one.token_times_s[0] - one.arrival_s for one in long]))


CLAIM = Claim(
    "chunking",
    "Chunked prefill keeps the p99 ITL of short requests down when a long prompt arrives.",
    (
        at_least("p99 ITL, continuous over mixed 64", 2.0, 1.2),
        at_least("p99 ITL, continuous over mixed 256", 2.0, 1.2),
        at_least("p99 ITL, continuous over chunked 256", 2.0, 1.2),
    ),
    measure,
)
