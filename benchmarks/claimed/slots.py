"""How many of the slots that are held compute something."""

from __future__ import annotations

from claimed.batching import POLICIES, REQUESTS
from claimed.bench import Bench, Turns, middle, record_of, slot_use
from claimed.claim import Band, Check, Claim, Figure, Finding, Table, from_to, number
from claimed.continuous import TEXTS, loads
from tunebatch.measure.result import RunResult


def measure(bench: Bench) -> Finding:
    found = loads(bench)
    figures = {f"{one}, {spread}": _use(turns, one) for spread, turns in found.items() for one in POLICIES}
    alone = middle(found["varied"]["continuous 32"], use_without_prompts)
    rows = [" | ".join([one, *(figures[f"{one}, {spread}"].text() for spread in found)]) for one in POLICIES]
    header = " | ".join(["strategy", *(f"{one}: {TEXTS[one]}" for one in found)])
    return Finding(
        setting=f"the runs of `continuous`: {REQUESTS} requests, all at once, max_batch_size 32; slot use is "
        "slot-steps that computed something, of the slot-steps held",
        figures=figures,
        why="a batch of static uses the mean of its output lengths over the longest, whatever these are, "
        "less the steps that compute prompts; in these all who decode wait under continuous too (without "
        f"them it uses {number(alone, '%')}), and in mixed steps nobody does",
        tables=(Table("By output tokens", header, rows),),
    )


def _use(turns: Turns, policy: str) -> Figure:
    return Figure(tuple(map(slot_use, turns[f"{policy} 32"])), "%")


def use_without_prompts(result: RunResult) -> float:
    """Slot use over the steps that compute no prompt."""
    steps = record_of(result).steps
    rows = zip(steps.slots_active, steps.slots_held, steps.num_prefills, strict=True)
    kept = [(active, held) for active, held, prefills in rows if not prefills]
    return sum(active for active, _ in kept) / sum(held for _, held in kept)


def _checks(spread: str) -> tuple[Check, ...]:
    """The claim names no lengths, so it is held against all of them."""
    wasteful = Check(f"static, {spread}", Band(0.5, 0.7), Band(0.3, 0.8))  # fewer empty slots refute it, too
    return wasteful, *(from_to(f"{one}, {spread}", 0.8, 0.95, partly=0.65) for one in ("continuous", "mixed"))


CLAIM = Claim(
    "slots",
    "Static batches use 50 to 70 % of their slots, continuous batching 80 to 95 %.",
    tuple(check for spread in TEXTS for check in _checks(spread)),
    measure,
)
