"""Requests come, hang up and are served in any order that hypothesis can think of."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from test_engine_scheduler import CASES, TICK, strategy_of

from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import VirtualClock
from tunebatch.engine.records import EndReason
from tunebatch.engine.request import Request

# Of prompts that begin alike, so that blocks are shared; some have more tokens than the context.
BEGINNING = (1,) * 6 + (2,) * 8
MAX_CONTEXT = 20


SETTINGS = settings(max_examples=100, stateful_step_count=25, deadline=None)


class Scheduler(RuleBasedStateMachine):
    """An engine of any strategy on a tiny pool; its executor asserts that nobody writes a block of others."""

    def __init__(self, kit: SimpleNamespace, make_executor: Callable[..., Any]) -> None:
        super().__init__()
        self.kit = kit
        self.make_executor = make_executor
        self.requests: list[Request] = []
        self.hung_up: set[int] = set()

    @initialize(
        case=st.sampled_from(list(CASES)),
        knobs=st.tuples(
            *(st.integers(low, high) for low, high in ((1, 6), (1, 24), (0, 10), (1, 8), (1, 3)))
        ),
        num_blocks=st.integers(3, 10),
        block_size=st.integers(1, 4),
        max_slots=st.integers(1, 6),
    )
    def begin(
        self, case: str, knobs: tuple[int, ...], num_blocks: int, block_size: int, max_slots: int
    ) -> None:
        self.executor = self.make_executor(
            num_blocks,
            block_size,
            max_slots,
            MAX_CONTEXT,
            lambda plan: TICK * (1 + plan.num_slice_tokens // 4),
        )
        self.source, self.clock = self.kit.Source([]), VirtualClock()
        self.engine = engine_for(strategy_of(case, *knobs), self.executor, self.source, self.clock)

    @rule(
        prompt=st.integers(1, 14),
        max_tokens=st.integers(1, 8),
        shared=st.integers(0, 14),
        gap=st.integers(0, 4),
        patience=st.none() | st.integers(0, 30),
    )
    def add(self, prompt: int, max_tokens: int, shared: int, gap: int, patience: int | None) -> None:
        last_s = self.requests[-1].arrival_s if self.requests else 0.0
        arrival_s = max(self.clock.now(), last_s) + gap * TICK
        cancel_at_s = None if patience is None else arrival_s + patience * TICK
        own = self.kit.request(len(self.requests), prompt).prompt
        tokens = BEGINNING[: min(shared, prompt)] + own[min(shared, prompt) :]
        self.requests.append(Request(len(self.requests), tokens, max_tokens, arrival_s, cancel_at_s))
        self.source.add(self.requests[-1])

    @precondition(lambda self: self.engine.queues.running or self.engine.queues.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        queues = self.engine.queues
        sequence = data.draw(st.sampled_from([*queues.running.values(), *queues.waiting.values()]))
        queues.finish(sequence, EndReason.CANCELLED, self.clock.now())
        self.hung_up.add(sequence.id)

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.one_step()

    def one_step(self) -> bool:
        """Nothing is left, or time passes, but for a first step that is put in flight: the engine does not
        ask the policy twice at the same time."""
        before, in_flight = self.clock.now(), self.num_in_flight()
        going = self.engine.step()
        self.engine.queues.check_integrity()
        assert not going or self.clock.now() > before or self.num_in_flight() > in_flight == 0
        return going

    def num_in_flight(self) -> int:
        return getattr(self.executor, "num_in_flight", 0)

    @invariant()
    def blocks_have_as_many_owners_as_tables_name_them(self) -> None:
        self.engine.queues.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        left = sum(len(one.prompt) + one.max_tokens + 3 for one in self.requests)
        for _ in range(40 * left):
            if not self.one_step():
                break
        assert not self.engine.step(), "the run does not end"
        kv = self.engine.queues.kv
        assert kv.num_free == kv.num_blocks, "blocks leaked"
        run = self.engine.record()
        assert sorted(self.source.ended) == [request.id for request in self.requests]
        for request, record in zip(self.requests, run.requests, strict=True):
            expected = self.kit.expected_output(request)
            assert record.output == expected[: len(record.output)]
            assert record.completed == (
                record.output == expected and record.end_reason is not EndReason.CANCELLED
            )
            if record.end_reason is EndReason.CANCELLED:
                assert request.id in self.hung_up or request.cancel_at_s is not None


@pytest.mark.parametrize("make_executor", ["Executor", "LateExecutor"])
def test_any_order_of_requests_cancellations_and_steps(kit: SimpleNamespace, make_executor: str) -> None:
    run_state_machine_as_test(lambda: Scheduler(kit, getattr(kit, make_executor)), settings=SETTINGS)
