"""Where a run pulls its requests from."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from tunebatch.engine.records import RequestRecord
from tunebatch.engine.request import Request


class RequestSource(Protocol):
    """Hands out each request once, when it has arrived; holds the state of one run."""

    @property
    def remaining(self) -> int:
        """Requests not handed out yet."""

    def next_arrival_s(self) -> float | None:
        """When the next request arrives; None: nothing is scheduled now."""

    def take(self, now_s: float) -> list[Request]:
        """All that have arrived by now, by arrival then id; costs what it hands out."""

    def finished(self, record: RequestRecord, now_s: float) -> None:
        """Told once of every request handed out that has ended, however it ended, with what it got."""


def arrived_at(request: Request, arrival_s: float) -> Request:
    """The request moved in time; its client still hangs up as long after the arrival as before."""
    cancel_at_s = request.cancel_at_s
    if cancel_at_s is not None:
        cancel_at_s = arrival_s + (cancel_at_s - request.arrival_s)
    return replace(request, arrival_s=arrival_s, cancel_at_s=cancel_at_s)


class OpenLoop:
    """Requests arrive when they are scheduled, whatever has become of the earlier ones.

    Raises:
        ValueError: Two requests have the same id.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = sorted(requests, key=lambda request: (request.arrival_s, request.id))
        _refuse_equal_ids(self._requests)
        self._taken = 0

    @property
    def remaining(self) -> int:
        return len(self._requests) - self._taken

    def next_arrival_s(self) -> float | None:
        return self._requests[self._taken].arrival_s if self.remaining else None

    def take(self, now_s: float) -> list[Request]:
        first = self._taken
        requests = self._requests
        while self._taken < len(requests) and requests[self._taken].arrival_s <= now_s:
            self._taken += 1
        return requests[first : self._taken]

    def finished(self, record: RequestRecord, now_s: float) -> None:
        """An open loop does not wait for answers."""


class ClosedLoop:
    """A fixed number of clients, each of which sends its next request after the answer to its last.

    The requests are sent in order of their ids, the first ones at 0; the arrivals that they came with
    are replaced.

    Args:
        requests: What the clients send, all together.
        concurrency: Clients, the most requests in flight.
        think_time_s: From an answer to that client's next request.

    Raises:
        ValueError: No client, a negative think time, or two requests with the same id.
    """

    def __init__(self, requests: Iterable[Request], concurrency: int, think_time_s: float = 0.0) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}, must be at least 1")
        if not (math.isfinite(think_time_s) and think_time_s >= 0):
            raise ValueError(f"think time is {think_time_s} s, must be 0 or more")
        self._requests = sorted(requests, key=lambda request: request.id)
        _refuse_equal_ids(self._requests)
        self._think_time_s = think_time_s
        self._sent = 0
        self._due: list[tuple[float, int, Request]] = []
        self._in_flight: set[int] = set()
        for _ in range(concurrency):
            self._send(0.0)

    @property
    def remaining(self) -> int:
        return len(self._requests) - self._sent + len(self._due)

    def next_arrival_s(self) -> float | None:
        return self._due[0][0] if self._due else None

    def take(self, now_s: float) -> list[Request]:
        taken = []
        while self._due and self._due[0][0] <= now_s:
            request = heapq.heappop(self._due)[2]
            self._in_flight.add(request.id)
            taken.append(request)
        return taken

    def finished(self, record: RequestRecord, now_s: float) -> None:
        """Its client thinks, then sends the next request.

        Raises:
            ValueError: The request is not in flight; to go on would exceed the concurrency.
        """
        if record.id not in self._in_flight:
            raise ValueError(f"request {record.id} is not in flight: never handed out, or finished before")
        self._in_flight.remove(record.id)
        self._send(now_s + self._think_time_s)

    def _send(self, arrival_s: float) -> None:
        if self._sent < len(self._requests):
            request = arrived_at(self._requests[self._sent], arrival_s)
            heapq.heappush(self._due, (arrival_s, request.id, request))
            self._sent += 1


def _refuse_equal_ids(requests: list[Request]) -> None:
    seen: set[int] = set()
    for request in requests:
        if request.id in seen:
            raise ValueError(f"two requests have the id {request.id}")
        seen.add(request.id)
