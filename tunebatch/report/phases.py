"""What each batch slot was doing, and when: a run's steps, told from the side of its slots."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tunebatch.engine.records import RequestRecord, RunRecord


class Phase(Enum):
    """What a slot's sequence does in a step."""

    PREFILL = "prefill"
    RECOMPUTE = "recompute"  # what a preemption took
    DECODE = "decode"
    VERIFY = "verify"  # decodes, and verifies drafts
    WAIT = "wait"  # has the slot, but no part of the step
    EMPTY = "empty"  # it has ended, and its batch has not


_CODES = list(Phase)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one phase; the spans of a stay follow each other without gaps."""

    start_s: float
    end_s: float
    phase: Phase


@dataclass(frozen=True, slots=True)
class Stay:
    """One request in one batch slot, from its admission until it ended or was preempted; the slot is held
    until ``held_until_s``."""

    slot: int
    request_id: int
    start_s: float
    end_s: float
    held_until_s: float
    spans: list[Span]


class SlotPhases:
    """Finds the phases of a run's stays in its batch slots."""

    def __init__(self, record: RunRecord) -> None:
        steps = record.steps
        self._occupancy = sorted(record.occupancy, key=lambda stay: (stay[0], stay[2], stay[3]))
        self._requests = {request.id: request for request in record.requests}
        self._starts = np.array(steps.start_s, dtype=np.float64)
        self._decoding = (np.array(steps.num_decodes) > 0) | (np.array(steps.num_draft_tokens) > 0)
        self._prefilled = _steps_of(steps.slices)
        self._verified = _steps_of(steps.verifications)

    def stays(
        self, max_slots: int | None = None, since_s: float = -np.inf, until_s: float = np.inf
    ) -> Iterator[Stay]:
        """The stays that overlap a stretch of time, by slot and then by time.

        Args:
            max_slots: Of so many of the slots that were used, the lowest.
        """
        slots = set(sorted({stay[0] for stay in self._occupancy})[:max_slots])
        for slot, request_id, start_s, end_s, held_until_s in self._occupancy:
            if slot in slots and start_s < until_s and held_until_s > since_s:
                spans = self._spans(request_id, start_s, end_s)
                if held_until_s > end_s:
                    spans.append(Span(end_s, held_until_s, Phase.EMPTY))
                yield Stay(slot, request_id, start_s, end_s, held_until_s, spans)

    def _spans(self, request_id: int, start_s: float, end_s: float) -> list[Span]:
        # A stay begins where a step does, and ends where one has ended.
        first, last = np.searchsorted(self._starts, [start_s, end_s])
        codes = self._codes(request_id, start_s, int(first), int(last))
        changes = np.flatnonzero(np.diff(codes)) + 1
        edges = [start_s, *self._starts[first:last][changes].tolist(), end_s]
        phases = [_CODES[codes[at]] for at in (0, *changes.tolist())]
        return [
            Span(since, until, phase)
            for (since, until), phase in zip(pairwise(edges), phases, strict=True)
            if until > since
        ]

    def _codes(self, request_id: int, start_s: float, first: int, last: int) -> NDArray[np.int8]:
        """The phase of each step of a stay, as its place in `Phase`; at least one."""
        codes = np.full(max(last - first, 1), _CODES.index(Phase.WAIT), dtype=np.int8)
        request = self._requests.get(request_id)
        if request is None or last == first:
            return codes
        starts = self._starts[first:last]
        # Whatever token comes during a stay ends the prompt, or its recomputation.
        token = bisect_right(request.token_times_s, start_s)
        if token < len(request.token_times_s):
            decodes = (starts >= request.token_times_s[token]) & self._decoding[first:last]
            codes[decodes] = _CODES.index(Phase.DECODE)
        codes[_within(self._verified[request_id], first, last)] = _CODES.index(Phase.VERIFY)
        prefilled = _within(self._prefilled[request_id], first, last)
        again = starts[prefilled] < _recomputed_s(request, start_s)
        codes[prefilled] = np.where(again, _CODES.index(Phase.RECOMPUTE), _CODES.index(Phase.PREFILL))
        return codes


def _steps_of(entries: list[tuple[tuple[int, int, int, int], ...]]) -> defaultdict[int, list[int]]:
    """The steps in which each request has an entry, in order."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for step, ones in enumerate(entries):
        for one in ones:
            found[one[0]].append(step)
    return found


def _within(steps: list[int], first: int, last: int) -> NDArray[np.int64]:
    found = np.array(steps, dtype=np.int64)
    return found[(found >= first) & (found < last)] - first


def _recomputed_s(request: RequestRecord, start_s: float) -> float:
    """When a stay that begins then has computed what the preemption before it took."""
    preempted = bisect_right(request.preempted_at_s, start_s)
    if preempted == 0:
        return -np.inf
    if preempted > len(request.recomputed_at_s):
        return np.inf
    return request.recomputed_at_s[preempted - 1]
