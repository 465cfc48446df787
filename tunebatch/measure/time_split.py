"""Where requests' time went: every second between a request's arrival and its end, in one place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunebatch.engine.records import RequestRecord, RunRecord, StepLog
from tunebatch.measure.percentiles import FloatArray

_ENOUGH_STEPS = 5  # for a median that a mixed step is compared with
_LIKE = 0.2  # how much larger or smaller a batch may be that still is of like size


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Where requests spent their time: seconds, summed over requests.

    Attributes:
        queue_s: Arrival to first scheduled.
        prefill_s: First scheduled to first token.
        decode_s: First token to end, in what none of the following took.
        stalled_s: From the first token on, in steps that only computed prompts of others.
        stalled_in_mixed_s: An estimate: by how much prompts of others lengthened the steps that computed
            a token of it too, compared with the median step that only decoded a batch of like size. 0
            where a run has fewer than 5 of those.
        preempted_s: From each preemption until what it took was computed again.
        speculation_waste_s: Of the steps that verified its drafts, the rejected drafts' share of the
            tokens computed.
    """

    queue_s: float
    prefill_s: float
    decode_s: float
    stalled_s: float = 0.0
    stalled_in_mixed_s: float = 0.0
    preempted_s: float = 0.0
    speculation_waste_s: float = 0.0

    @property
    def total_s(self) -> float:
        return float(sum(getattr(self, part) for part in PARTS))

    def shares(self) -> dict[str, float]:
        """Each part of the whole, 0 to 1, by its name without the unit; all 0 when no time passed."""
        total = self.total_s or 1.0
        return {part.removesuffix("_s"): getattr(self, part) / total for part in PARTS}


PARTS = tuple(field.name for field in dataclasses.fields(TimeSplit))


def split_time(record: RunRecord) -> TimeSplit:
    """The parts summed over all requests; they add up to the sum of end minus arrival."""
    return TimeSplit(**{part: float(seconds.sum()) for part, seconds in split_by_request(record).items()})


def split_by_request(record: RunRecord) -> dict[str, FloatArray]:
    """For each part its seconds in every request, in the order of the record.

    No part is negative, and a request's parts add up to its end minus its arrival; those that never
    reached a phase's end count up to their own end.
    """
    requests, steps = record.requests, _Steps(record.steps)
    phases = _Phases(requests)
    after = phases.after_s.copy()
    parts = {
        "stalled_s": phases.spent_in(steps, steps.only_prefilling_s()),
        "stalled_in_mixed_s": phases.spent_in(steps, steps.lengthened_s()),
        "speculation_waste_s": _waste_s(record, steps),
    }
    for part, seconds in parts.items():
        # What is left bounds an estimate, and whatever rounding added.
        parts[part] = np.clip(seconds, 0.0, after)
        after -= parts[part]
    return {
        "queue_s": phases.queue_s,
        "prefill_s": phases.prefill_s,
        "decode_s": after,
        "stalled_s": parts["stalled_s"],
        "stalled_in_mixed_s": parts["stalled_in_mixed_s"],
        "preempted_s": phases.preempted_s,
        "speculation_waste_s": parts["speculation_waste_s"],
    }


class _Phases:
    """What a request's own times tell: before it was scheduled, before its first token, after it; and the
    preemptions, which are taken out of where they fell."""

    def __init__(self, requests: list[RequestRecord]) -> None:
        arrival = np.array([r.arrival_s for r in requests], dtype=np.float64)
        end = np.maximum([r.end_s for r in requests], arrival)
        first = np.array([r.token_times_s[0] if r.token_times_s else np.inf for r in requests])
        started = [r.first_scheduled_s for r in requests]
        scheduled = np.minimum(first, [np.inf if time is None else time for time in started])
        scheduled = np.clip(scheduled, arrival, end)
        self._first, self._end = np.clip(first, scheduled, end), end
        self.queue_s: FloatArray = scheduled - arrival

        self._owner: NDArray[np.int64] = np.repeat(
            np.arange(len(requests)), [len(r.preempted_at_s) for r in requests]
        )
        self._from = np.array([time for r in requests for time in r.preempted_at_s], dtype=np.float64)
        self._until = np.array([time for r in requests for time in _until(r)], dtype=np.float64)
        firsts = self._first[self._owner]
        early = self._sum(np.minimum(self._until, firsts) - np.minimum(self._from, firsts))
        late = self._sum(np.maximum(self._until, firsts) - np.maximum(self._from, firsts))
        self.preempted_s: FloatArray = early + late
        self.prefill_s: FloatArray = np.maximum(self._first - scheduled - early, 0.0)
        self.after_s: FloatArray = np.maximum(end - self._first - late, 0.0)

    def spent_in(self, steps: _Steps, seconds: FloatArray) -> FloatArray:
        """Those seconds of each step that fall between first token and end, outside preemptions."""
        if not seconds.any():
            return np.zeros(self._end.size)
        whole = steps.between(self._first, self._end, seconds)
        firsts = self._first[self._owner]
        lost = steps.between(np.maximum(self._from, firsts), np.maximum(self._until, firsts), seconds)
        return whole - self._sum(lost)

    def _sum(self, of_preemptions: FloatArray) -> FloatArray:
        return _summed(self._owner, of_preemptions, self._end.size)


def _summed(owner: ArrayLike, seconds: FloatArray, count: int) -> FloatArray:
    """One sum for each owner; numpy's own makes integers of nothing."""
    return np.zeros(count) + np.bincount(owner, seconds, count)


def _until(request: RequestRecord) -> list[float]:
    """When each of its preemptions was over; the last one with the request, if not before."""
    unfinished = len(request.preempted_at_s) - len(request.recomputed_at_s)
    return request.recomputed_at_s + [request.end_s] * unfinished


class _Steps:
    """The steps' columns as arrays."""

    def __init__(self, log: StepLog) -> None:
        self.start_s: FloatArray = np.array(log.start_s, dtype=np.float64)
        self.duration_s: FloatArray = np.array(log.duration_s, dtype=np.float64)
        self._prefill_tokens = np.array(log.num_prefill_tokens, dtype=np.int64)
        # One token of everybody who decodes, and the drafts.
        drafts = np.array(log.num_draft_tokens, dtype=np.int64)
        self._decode_tokens = np.array(log.slots_active, dtype=np.int64) - log.num_prefills + drafts

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        return self._prefill_tokens + self._decode_tokens

    def only_prefilling_s(self) -> FloatArray:
        return np.where(self._decode_tokens == 0, self.duration_s, 0.0)

    def lengthened_s(self) -> FloatArray:
        """How much longer each mixed step took than the median of those that only decoded a like batch."""
        longer = np.zeros(self.duration_s.size)
        mixed = (self._decode_tokens > 0) & (self._prefill_tokens > 0)
        pure = (self._decode_tokens > 0) & (self._prefill_tokens == 0)
        order = np.argsort(self._decode_tokens[pure], kind="stable")
        sizes, durations = self._decode_tokens[pure][order], self.duration_s[pure][order]
        for size in np.unique(self._decode_tokens[mixed]):
            like = _of_like_size(sizes, int(size))
            if like.stop - like.start >= _ENOUGH_STEPS:
                these = mixed & (self._decode_tokens == size)
                longer[these] = self.duration_s[these] - np.median(durations[like])
        return longer

    def between(self, since: FloatArray, until: FloatArray, seconds: FloatArray) -> FloatArray:
        """The seconds of the steps that fall between two times each; part of a step gives part of them."""
        edges = np.column_stack((self.start_s, self.start_s + self.duration_s)).ravel()
        so_far = np.cumsum(np.column_stack((np.zeros(seconds.size), seconds)).ravel())
        return np.interp(until, edges, so_far) - np.interp(since, edges, so_far)


def _of_like_size(sizes: NDArray[np.int64], size: int) -> slice:
    """Where the sorted sizes equal one; where too few do, those that differ little."""
    first, last = np.searchsorted(sizes, [size, size + 1])
    if last - first < _ENOUGH_STEPS:
        least, most = np.floor(size * (1.0 - _LIKE)), np.ceil(size * (1.0 + _LIKE))
        first, last = np.searchsorted(sizes, [least, most + 1])
    return slice(int(first), int(last))


def _waste_s(record: RunRecord, steps: _Steps) -> FloatArray:
    """Seconds that went into each request's rejected drafts."""
    rejecting = np.flatnonzero(record.steps.num_rejected)
    verifications = [record.steps.verifications[step] for step in rejecting]
    of_request = {request.id: index for index, request in enumerate(record.requests)}
    owner = np.array([of_request[one[0]] for step in verifications for one in step], dtype=np.int64)
    rejected = np.array([one[3] for step in verifications for one in step], dtype=np.float64)
    per_token = np.repeat(
        (steps.duration_s / steps.num_tokens)[rejecting], [len(step) for step in verifications]
    )
    return _summed(owner, rejected * per_token, len(record.requests))
