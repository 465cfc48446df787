"""Numbers that travel to a device that takes its time arrive as they were when they were sent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graph_stand_ins import Again
from test_execute_graph_steps import served_by, with_graphs
from tiny_models import BLOCK_SIZE

from tunebatch.engine.group import DecodeGroup
from tunebatch.engine.plan import Slice, StepPlan
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.execute.torch import staging
from tunebatch.execute.torch.graphs.buckets import decode_bucket
from tunebatch.execute.torch.staging import Pinned, Staging


class Late(Pinned):
    """A copy is made when somebody waits for it, and no sooner: until then nobody may write here."""

    made: list[Late]

    def __init__(self, size: int, device: torch.device) -> None:
        super().__init__(size, device)
        self.sent: list[np.ndarray] = []
        self.made.append(self)

    def wait(self) -> None:
        for numbers in self.sent:
            assert (self.numbers[: len(numbers)] == numbers).all(), "written over before it was copied"
        self.sent.clear()

    def send(self, count: int) -> torch.Tensor:
        self.sent.append(self.numbers[:count].copy())
        return super().send(count).clone()  # on a CPU it is this memory, in which the device then works

    def send_to(self, landed: torch.Tensor, count: int) -> None:
        super().send_to(landed, count)
        self.sent.append(self.numbers[:count].copy())


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> list[Late]:
    Late.made = []
    monkeypatch.setattr(staging, "Pinned", Late)
    return Late.made


def test_a_buffer_is_written_when_it_was_copied_and_the_host_waits_for_no_other(late: list[Late]) -> None:
    sending = Staging(4, torch.device("cpu"))
    for step in range(7):
        count = 2 + step  # grows while others are on their way
        sending.to_write(count)[:] = range(step, step + count)
        assert sending.send(count).tolist() == list(range(step, step + count))
        # This step's, and the one before, which the device may still be computing.
        assert sum(len(one.sent) for one in late) == min(step + 1, 2)
    for one in late:
        one.wait()


@pytest.mark.parametrize("graphs", [False, True])
def test_steps_that_nobody_has_collected_keep_their_inputs(late: list[Late], graphs: bool) -> None:
    """Some with a graph, the prompts without: of the three ways to the device none is taken too early."""
    served = served_by("reference")
    if graphs:
        with_graphs(served, Again(), [decode_bucket(2)])
    group = DecodeGroup(BLOCK_SIZE)
    for slot in range(2):
        sequence = Sequence(Request(slot, (5, 7, 9), 20))
        sequence.slot, sequence.block_table = slot, list(range(10 * slot, 10 * slot + 10))
        served.submit(StepPlan([Slice(sequence, 0, 3)]))
        sequence.num_computed = 3
        group.join(sequence)
    handles = []
    for _ in range(6):
        handles.append(served.submit(StepPlan(decodes=group)))
        group.advance()
        assert all(len(one.sent) <= 1 for one in late)
    for one in late:
        one.wait()
    assert sum(bool(one.numbers.any()) for one in late) >= 2 + 2 * graphs
    outputs = [served.collect(handle).decode_tokens for handle in handles]
    assert all(first == second for first, second in outputs)
