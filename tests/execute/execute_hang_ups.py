"""Clients that hang up in every phase of a request, found out beforehand on a clock that counts steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, ClassVar

from tunebatch.engine.engine import Engine
from tunebatch.engine.plan import StepOutput, StepPlan
from tunebatch.engine.queues import Queues
from tunebatch.engine.records import EndReason, RequestRecord
from tunebatch.engine.request import Request
from tunebatch.engine.strategies import Strategy
from tunebatch.execute.torch.same_tokens import AllAtOnce

PHASES = ("mid-decode", "mid-prefill", "waiting")


class StepClock:
    """Its time is the number of steps, so that a run is the same on every executor."""

    name: ClassVar[str] = "steps"

    def __init__(self) -> None:
        self._now_s = 0.0

    def now(self) -> float:
        return self._now_s

    def idle_until(self, time_s: float) -> None:
        self._now_s = max(self._now_s, time_s)

    def step_took(self, duration_s: float | None) -> None:
        self._now_s += 1.0


def phase_of(queues: Queues, request_id: int) -> str | None:
    """What a hang-up of the request would interrupt; None: nothing of interest."""
    if request_id in queues.partial:
        return "mid-prefill"
    if request_id in queues.running and len(queues.running[request_id].output) >= 2:
        return "mid-decode"
    if request_id in queues.waiting and not queues.waiting[request_id].output:
        return "waiting"
    return None


class Blocks:
    """Looks at the blocks when a request has ended: none of a hang-up's is kept until the next step."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.returned: dict[int, int] = {}

    def arrived(self, request: Request) -> None: ...

    def first_token(self, record: RequestRecord, now: float) -> None: ...

    def should_stop(self, now: float) -> bool:
        return False

    def ended(self, record: RequestRecord, now: float) -> None:
        assert self.engine is not None
        queues = self.engine.queues
        queues.check_integrity()
        if record.end_reason is EndReason.CANCELLED:
            assert record.end_s == now, "the blocks came back later than the client hung up"
            owned = {block for one in queues.running.values() for block in one.block_table}
            assert queues.kv.num_used == len(owned)
            self.returned[record.id] = queues.kv.num_free


@dataclass(frozen=True)
class Lengths:
    """An executor of which only the lengths matter."""

    num_blocks: int
    block_size: int
    max_slots: int
    max_context: int
    eos_token_ids: frozenset[int] = frozenset()
    drafter: None = None

    def execute(self, plan: StepPlan) -> StepOutput:
        return StepOutput(
            [[5] if piece.sample else [] for piece in plan.slices], [5] * plan.num_decodes or None
        )

    def reset(self) -> None: ...


def serve_with(
    executor: Any, chosen: Strategy, traffic: Sequence[Request]
) -> tuple[Engine, Blocks, list[dict[int, str | None]]]:
    """The traffic to its end; the phase of every request before each step."""
    blocks = Blocks()
    engine = Engine(executor, chosen.make_policy(), AllAtOnce(traffic), StepClock(), blocks)
    blocks.engine = engine
    phases = []
    while True:
        phases.append({request.id: phase_of(engine.queues, request.id) for request in traffic})
        if not engine.step():
            return engine, blocks, phases
        engine.queues.check_integrity()


def hang_ups(executor: Lengths, chosen: Strategy, traffic: Sequence[Request]) -> dict[str, tuple[int, int]]:
    """For each phase a request, and the step before which its client hangs up, one after another; of all
    orders of the phases the first in which most are met."""
    orders = (_in_order(executor, chosen, traffic, order) for order in permutations(PHASES))
    return max(orders, key=len)


def _in_order(
    executor: Lengths, chosen: Strategy, traffic: Sequence[Request], order: Sequence[str]
) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for phase in order:
        # Each hang-up changes what comes.
        _, _, phases = serve_with(executor, chosen, hanging_up(traffic, found))
        gone = {request_id for request_id, _ in found.values()}
        begin = 1 + max((step for _, step in found.values()), default=0)
        candidates = (
            (request_id, step)
            for step, now in enumerate(phases)
            for request_id, one in now.items()
            if step >= begin and one == phase and request_id not in gone
        )
        if (first := next(candidates, None)) is not None:
            found[phase] = first
    return found


def hanging_up(traffic: Sequence[Request], found: dict[str, tuple[int, int]]) -> list[Request]:
    at = {request_id: float(step) for request_id, step in found.values()}
    return [replace(request, cancel_at_s=at.get(request.id)) for request in traffic]
