"""What drafts gain at each batch size."""

from __future__ import annotations

from claimed.bench import Bench, Side, Turns, decode_step_s, ms, ratios, record_of, tokens_per_s
from claimed.claim import Claim, Figure, Finding, Table, at_most, from_to, number
from tunebatch.engine.records import SpeculationRecord
from tunebatch.engine.strategies import strategy
from tunebatch.measure.result import RunResult
from tunebatch.workload.lengths import Fixed
from tunebatch.workload.spec import Workload, WorkloadSpec

BATCHES = (1, 4, 8, 16, 32)
DRAFTERS = ("ngram", "draft")
DEPTHS = (3, "auto")
# Requests for each slot: when a batch runs empty, it is a smaller one.
WAVES, LEAST_REQUESTS = 3, 8
SPEC = WorkloadSpec(
    name="completions", arrivals="burst", num_requests=1, prompt_lengths=Fixed(64), output_lengths=Fixed(96)
)


def measure(bench: Bench) -> Finding:
    warm = bench.workload(SPEC, LEAST_REQUESTS)
    for side in _sides(warm, 4).values():  # the first steps of each shape choose their kernels
        bench.run(side)
    loads = {
        batch: bench.turns(_sides(bench.workload(SPEC, max(WAVES * batch, LEAST_REQUESTS)), batch))
        for batch in BATCHES
    }
    figures: dict[str, Figure] = {}
    rows: list[str] = []
    for batch, turns in loads.items():
        own = {side: ratios(turns, side, "plain") for side in turns if side != "plain"}
        figures |= {f"{side} at batch {batch}": gain for side, gain in own.items()}
        rows.append(
            " | ".join([str(batch), tokens_per_s(turns["plain"]), *(gain.text() for gain in own.values())])
        )
    for drafter in DRAFTERS:
        first, last = (figures[f"{drafter} 3 at batch {batch}"] for batch in (BATCHES[0], BATCHES[-1]))
        figures[f"{drafter} 3, batch {BATCHES[-1]} over batch {BATCHES[0]}"] = Figure(
            (last.value / first.value,)
        )
    one, many = (decode_step_s(loads[batch]["plain"], batch, batch) for batch in (BATCHES[0], BATCHES[-1]))
    return Finding(
        setting=f"{warm.description}, or {WAVES} times the batch; greedy; continuous with max_batch_size at "
        "the batch, num_drafts 3 or auto, which learns from each run anew",
        figures=figures,
        why="drafts are verified with arithmetic that a small batch leaves idle, and these cores have "
        f"little: a step of {BATCHES[-1]} sequences takes {many / one:.1f}x one of a single sequence "
        f"({ms(one)}), so every token that is verified costs time soon; n-grams cost nothing to draft, and "
        "this text repeats itself, while each draft of the small model is a step of its own",
        tables=(
            Table(
                "Output tokens/s without drafts, and with drafts over it",
                " | ".join(["batch", *loads[1]]),
                rows,
            ),
            Table("Accepted at each position, num_drafts 3", "drafter | 1 | 2 | 3", _accepted(loads)),
            Table(
                "Drafts that auto learnt to make", " | ".join(["batch", *map(str, BATCHES)]), _learnt(loads)
            ),
        ),
    )


def _sides(workload: Workload, batch: int) -> dict[str, Side]:
    chosen = {"plain": strategy("continuous", {"max_batch_size": batch})}
    for drafter in DRAFTERS:
        for depth in DEPTHS:
            knobs = {"max_batch_size": batch, "num_drafts": depth}
            chosen[f"{drafter} {depth}"] = strategy(f"continuous+{drafter}", knobs)
    return {name: Side(workload, one) for name, one in chosen.items()}


def _drafts(result: RunResult) -> SpeculationRecord:
    found = record_of(result).speculation
    assert found is not None, "the strategy drafts"
    return found


def _accepted(loads: dict[int, Turns]) -> list[str]:
    rows: list[str] = []
    for drafter in DRAFTERS:
        records = [_drafts(result) for turns in loads.values() for result in turns[f"{drafter} 3"]]
        places = range(3)
        shares = [
            sum(r.accepted_at[p] for r in records) / sum(r.drafted_at[p] for r in records) for p in places
        ]
        rows.append(" | ".join([f"+{drafter}", *(number(share, "%") for share in shares)]))
    return rows


def _learnt(loads: dict[int, Turns]) -> list[str]:
    """What the last round had learnt for its largest batch."""
    rows: list[str] = []
    for drafter in DRAFTERS:
        tables = [_drafts(turns[f"{drafter} auto"][-1]).depth_by_batch for turns in loads.values()]
        rows.append(" | ".join([f"+{drafter}", *(str(found[-1][2]) if found else "-" for found in tables)]))
    return rows


CLAIM = Claim(
    "speculation",
    "Speculation is 2 to 3 times as fast at batch 1, and its gain fades as the batch grows.",
    (
        from_to("ngram auto at batch 1", 2.0, 3.0, partly=1.1),
        from_to("draft auto at batch 1", 2.0, 3.0, partly=1.1),
        at_most("ngram 3, batch 32 over batch 1", 0.8, 0.95),
        at_most("draft 3, batch 32 over batch 1", 0.8, 0.95),
    ),
    measure,
)
