"""Conversations: a prompt holds all that was said before, answers included."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunebatch.engine.records import RequestRecord
from tunebatch.engine.request import Request
from tunebatch.workload.source import arrived_at


@dataclass(frozen=True, slots=True)
class Turn:
    """What one request adds to its conversation.

    Attributes:
        first: It begins a conversation.
        text: New tokens of the user; of a first turn the whole prompt.
        answer: Stands for the answer in what is known beforehand, and where an executor tells only the
            number of the tokens.
        think_time_s: From the answer before to this turn.
    """

    first: bool
    text: tuple[int, ...]
    answer: tuple[int, ...]
    think_time_s: float


class MultiTurn:
    """Conversations start when they are scheduled; their later turns wait for the answer before.

    A turn's prompt is the prompt before it, the answer that was really given and the turn's own text.
    Its arrival is the end of that answer plus its think time, and what is measured counts from there.
    Whoever hangs up during an answer goes on with the part that came.

    Args:
        requests: Turns of one conversation have consecutive ids; the arrival of a first one is the
            start, those of the others are replaced.
        turns: By request id.
        thinks: Without, a turn comes at once after the answer.
    """

    def __init__(self, requests: Sequence[Request], turns: Sequence[Turn], thinks: bool = True) -> None:
        self._requests = {request.id: request for request in requests}
        self._turns = turns
        self._thinks = thinks
        self._taken = 0
        self._in_flight: dict[int, Request] = {}
        self._due = [(r.arrival_s, r.id, r) for r in requests if turns[r.id].first]
        heapq.heapify(self._due)

    @property
    def remaining(self) -> int:
        return len(self._requests) - self._taken

    def next_arrival_s(self) -> float | None:
        return self._due[0][0] if self._due else None

    def take(self, now_s: float) -> list[Request]:
        taken = []
        while self._due and self._due[0][0] <= now_s:
            request = heapq.heappop(self._due)[2]
            self._in_flight[request.id] = request
            taken.append(request)
        self._taken += len(taken)
        return taken

    def finished(self, record: RequestRecord, now_s: float) -> None:
        """Its user thinks, then sends the next turn, if there is one.

        Raises:
            ValueError: The request is not in flight.
        """
        request = self._in_flight.pop(record.id, None)
        if request is None:
            raise ValueError(f"request {record.id} is not in flight: never handed out, or finished before")
        following = self._requests.get(record.id + 1)
        if following is None or self._turns[following.id].first:
            return
        turn = self._turns[following.id]
        prompt = (*request.prompt, *_answered(record, self._turns[record.id]), *turn.text)
        due_s = now_s + (turn.think_time_s if self._thinks else 0.0)
        sent = arrived_at(replace(following, prompt=prompt), due_s)
        heapq.heappush(self._due, (due_s, sent.id, sent))


def _answered(record: RequestRecord, turn: Turn) -> tuple[int, ...]:
    told = record.output
    return (*told, *turn.answer[len(told) : len(record.token_times_s)])
