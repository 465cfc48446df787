"""Why the winner won: its numbers beside those of the runner-up and of the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunebatch.report.rows import Row, duration, number, percent

_SPENT = {
    "queue": "in the queue",
    "prefill": "in prefill",
    "decode": "decoding",
    "stalled": "stalled behind prompts of others",
    "stalled_in_mixed": "behind prompts of others in mixed steps (estimated)",
    "preempted": "preempted",
    "speculation_waste": "on rejected drafts",
}
_SAID_SHARE = 0.1  # of a request's time, below which a part is not named


@dataclass(frozen=True, slots=True)
class _Trait:
    """A number that explains a rate.

    Attributes:
        text: What is said, with a place for the value.
        better: 1 where more is better, -1 where less is.
        least: The smallest difference that is worth a word; a tenth of the larger value is, too.
    """

    text: str
    value: Callable[[Row], float | None]
    better: int
    show: Callable[[float], str]
    least: float = 0.0


def _share(*parts: str) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        shares = row.result.metrics.where.shares()
        return sum(shares[part] for part in parts)

    return value


_POINTS = 0.02  # of a share
_TRAITS = (
    _Trait("{} sequences a step", lambda row: row.result.metrics.mean_batch, 1, number),
    _Trait("{} a step", lambda row: row.result.metrics.mean_step_s, -1, duration),
    _Trait("{} tokens a verification", lambda row: row.result.metrics.accepted_length, 1, number),
    _Trait("{} of the held slots empty", lambda row: row.result.metrics.bubble, -1, percent, _POINTS),
    *(
        _Trait(f"{{}} of a request's time {words}", _share(part), -1, percent, _POINTS)
        for part, words in _SPENT.items()
        if part != "decode"  # what is left when nothing else takes time: neither good nor bad
    ),
)


def reasons(winner: Row, rows: Sequence[Row]) -> list[str]:
    """Where the winner's time went, then what told it from the next best and from the last; a line each."""
    others = [row for row in rows if row.name != winner.name and row.rate_per_s]
    others.sort(key=lambda row: -(row.rate_per_s or 0.0))
    told = [_dominant(winner)]
    if others:
        told.append(_against(winner, others[0], "the next best"))
    if len(others) > 1:
        told.append(_against(winner, others[-1], "the last"))
    return [line for line in told if line]


def _dominant(row: Row) -> str:
    """``continuous: a request spends 44 % of its time decoding, 41 % stalled behind prompts of others``"""
    shares = row.result.metrics.where.shares()
    large = sorted((part for part in shares if shares[part] >= _SAID_SHARE), key=lambda part: -shares[part])
    if not large:
        return ""
    largest, *rest = [(percent(shares[part]), _SPENT[part]) for part in large]
    others = "".join(f", {share} {words}" for share, words in rest)
    return f"{row.name}: a request spends {largest[0]} of its time {largest[1]}{others}"


def _against(winner: Row, other: Row, place: str) -> str:
    """``over static, the last (3.1x): 14.8 sequences a step, not 2.9; but 41 % of ..., not 0 %``"""
    better: list[str] = []
    worse: list[str] = []
    for trait in _TRAITS:
        own, theirs = trait.value(winner), trait.value(other)
        if own is None or theirs is None:
            continue
        if abs(own - theirs) > max(trait.least, 0.1 * max(abs(own), abs(theirs))):
            said = f"{trait.text.format(trait.show(own))}, not {trait.show(theirs)}"
            (better if trait.better * (own - theirs) > 0 else worse).append(said)
    ratio = (winner.rate_per_s or 0.0) / (other.rate_per_s or 1.0)
    found = "; ".join(better) or "nothing measured here is clearly better"
    if worse:
        found += f"; but {'; '.join(worse)}"
    return f"{winner.name} over {other.name}, {place} ({number(ratio)}x): {found}"
