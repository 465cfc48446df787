"""Why the winner won: its numbers beside those of the runner-up and of the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunebatch.measure.metrics import Metrics
from tunebatch.report.rows import Row, duration, number, percent

# What is said of each part of the time split. Stalls are one thing, wherever they happen.
_SPENT = {
    "queue": "in the queue",
    "prefill": "in prefill",
    "decode": "decoding",
    "stalled": "behind prompts of others",
    "preempted": "preempted",
    "speculation_waste": "on rejected drafts",
}
_STALLED = ("stalled", "stalled_in_mixed")
_SAID_SHARE = 0.1  # of a request's time, below which a part is not named
_SAID_DIFFERENCE = 0.1  # of the larger of two values
_SAID_TIME = 0.02  # of a request's whole time, the longer of two
_SAID_SLOTS = 0.02  # of all slot-steps held


@dataclass(frozen=True, slots=True)
class _Difference:
    """The same number of two rows.

    Attributes:
        text: What is said, with a place for the value.
        better: 1 where more is better, -1 where less is.
        least: The smallest difference that is worth a word.
    """

    text: str
    own: float
    theirs: float
    better: int
    show: Callable[[float], str]
    least: float = 0.0

    @property
    def clear(self) -> bool:
        larger = max(abs(self.own), abs(self.theirs))
        return abs(self.own - self.theirs) > max(self.least, _SAID_DIFFERENCE * larger)

    @property
    def in_favour(self) -> bool:
        return self.better * (self.own - self.theirs) > 0

    def __str__(self) -> str:
        return f"{self.text.format(self.show(self.own))}, not {self.show(self.theirs)}"


# What is said, of which number of a run, whether more or less of it is better, and how it is written.
_TRAITS: tuple[tuple[str, Callable[[Metrics], float | None], int, Callable[[float], str], float], ...] = (
    ("{} sequences a step", lambda metrics: metrics.mean_batch, 1, number, 0.0),
    ("{} tokens a verification", lambda metrics: metrics.accepted_length, 1, number, 0.0),
    ("{} of the held slots empty", lambda metrics: metrics.bubble, -1, percent, _SAID_SLOTS),
    ("steps of {}", lambda metrics: metrics.mean_step_s, -1, duration, 0.0),
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
    """``continuous: a request spends 44 % of its time decoding, 41 % behind prompts of others``"""
    spent_s = _spent_s(row)
    whole_s = sum(spent_s.values()) or 1.0
    large = sorted(
        (part for part in spent_s if spent_s[part] >= _SAID_SHARE * whole_s), key=lambda part: -spent_s[part]
    )
    if not large:
        return ""
    largest, *rest = [(percent(spent_s[part] / whole_s), _words(part, row)) for part in large]
    others = "".join(f", {share} {words}" for share, words in rest)
    return f"{row.name}: a request spends {largest[0]} of its time {largest[1]}{others}"


def _spent_s(row: Row) -> dict[str, float]:
    """Mean seconds of a request in each part; stalls summed up, whether told or estimated."""
    metrics = row.result.metrics
    shares = metrics.where.shares()
    shares["stalled"] = sum(shares[part] for part in _STALLED)
    mean_s = metrics.where.total_s / max(metrics.num_requests, 1)
    return {part: shares[part] * mean_s for part in _SPENT}


def _words(part: str, *rows: Row) -> str:
    estimated = part == "stalled" and any(row.result.metrics.where.stalled_in_mixed_s for row in rows)
    return _SPENT[part] + (" (in mixed steps estimated)" if estimated else "")


def _against(winner: Row, other: Row, place: str) -> str:
    """``over static, the last (3.1x): 14.8 sequences a step, not 2.9; ...; but steps of ...``"""
    told = [one for one in (*_times(winner, other), *_traits(winner, other)) if one.clear]
    better = [str(one) for one in told if one.in_favour]
    worse = [str(one) for one in told if not one.in_favour]
    ratio = (winner.rate_per_s or 0.0) / (other.rate_per_s or 1.0)
    found = "; ".join(better) or "nothing measured here is clearly better"
    if worse:
        found += f"; but {'; '.join(worse)}"
    return f"{winner.name} over {other.name}, {place} ({number(ratio)}x): {found}"


def _times(winner: Row, other: Row) -> list[_Difference]:
    """A request's seconds in each part, the largest difference first. Seconds, not shares: of a long wait
    everything else is a small share."""
    own, theirs = _spent_s(winner), _spent_s(other)
    least_s = _SAID_TIME * max(sum(own.values()), sum(theirs.values()))
    parts = sorted(_SPENT, key=lambda part: -abs(own[part] - theirs[part]))
    return [
        _Difference(
            f"{{}} a request {_words(part, winner, other)}", own[part], theirs[part], -1, duration, least_s
        )
        for part in parts
    ]


def _traits(winner: Row, other: Row) -> list[_Difference]:
    found = []
    for text, value, better, show, least in _TRAITS:
        own, theirs = value(winner.result.metrics), value(other.result.metrics)
        if own is not None and theirs is not None:
            found.append(_Difference(text, own, theirs, better, show, least))
    return found
