"""All that a step needs of the host travels to the device in one copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graph_stand_ins import Again, Dense
from test_execute_features import with_draft
from tiny_models import BLOCK_SIZE, tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tunebatch.engine.group import DecodeGroup
from tunebatch.engine.plan import Slice, StepPlan
from tunebatch.engine.request import Request, Sampling
from tunebatch.engine.sequence import Sequence
from tunebatch.execute.torch import attention, executor, load
from tunebatch.execute.torch.attention.reference import Reference
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.graphs.buckets import Bucket, Buckets, Shape, decode_bucket
from tunebatch.execute.torch.graphs.captured import capture_graphs
from tunebatch.execute.torch.graphs.graphs import Graphs
from tunebatch.execute.torch.graphs.inputs import StaticInputs
from tunebatch.execute.torch.last_tokens import Reading
from tunebatch.execute.torch.staging import Pinned

SAMPLINGS = (
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(temperature=0.7, top_k=5),
    Sampling(temperature=1.2, top_p=0.9, top_k=7, seed=3),
)


class Transfers(TorchDispatchMode):
    """Counts operations that take numbers of the host's to a device, which is one without memory."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = [part.device.type for part in tree_leaves(args) if isinstance(part, torch.Tensor)]
        there = [part.device.type for part in tree_leaves(made) if isinstance(part, torch.Tensor)]
        self.count += "cpu" in given and "meta" in there
        return made


def on_no_device(monkeypatch: pytest.MonkeyPatch) -> TorchExecutor:
    """Where shapes are computed, and nothing else: what is sampled is always 0."""
    monkeypatch.setattr(executor, "read", lambda tokens, slices: Reading(slices, [0] * len(tokens)))

    def forward(ids: torch.Tensor, sampled_at: torch.Tensor, step: Any) -> torch.Tensor:
        assert ids.device.type == step.positions.device.type == "meta"
        return torch.empty(len(sampled_at), 99, device="meta")

    return TorchExecutor(
        tiny().to("meta"),
        forward,
        Reference().new_pools,
        num_blocks=80,
        block_size=BLOCK_SIZE,
        max_slots=8,
        max_context=40,
        eos_token_ids=frozenset(),
        model_info={},
    )


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("samplings", [SAMPLINGS[:1], SAMPLINGS[1:2], SAMPLINGS])
def test_a_step_takes_one_copy(
    monkeypatch: pytest.MonkeyPatch, samplings: tuple[Sampling, ...], graphs: bool
) -> None:
    served, capture = on_no_device(monkeypatch), Again()
    if graphs:
        kinds = [decode_bucket(8), Bucket(Shape(9, 64, 64, 0, 64)), Bucket(Shape(5, 64, 64, 8, 16))]
        made = Graphs(
            served.forward, StaticInputs(Buckets(kinds), served.cache, served.max_context, served.device)
        )
        for bucket in kinds:
            made.capture(bucket, capture)
        served.use_graphs(made)
    group, sequences = DecodeGroup(BLOCK_SIZE), []
    for slot in range(8):
        asked = Request(slot, (5, 7, 9, 11, 13), 20, sampling=samplings[slot % len(samplings)])
        sequence = Sequence(asked)
        sequence.slot, sequence.block_table = slot, list(range(10 * slot, 10 * slot + 10))
        sequences.append(sequence)

    def transfers(plan: StepPlan) -> int:
        with Transfers() as counted:
            served.execute(plan)
        return counted.count

    def decode(sequence: Sequence) -> None:
        sequence.num_computed = 5
        group.join(sequence)

    assert transfers(StepPlan([Slice(one, 0, 5) for one in sequences[:4]])) == 1
    for sequence in sequences[:4]:
        decode(sequence)
    assert [transfers(StepPlan(decodes=group)) for _ in range(2)] == [1, 1]
    # Beside decodes, and with drafts, of whose last accepted ones the next step is told.
    assert transfers(StepPlan([Slice(sequences[4], 0, 5)], group)) == 1
    drafts = Slice(sequences[5], 0, 5, draft_tokens=(11, 13))
    assert transfers(StepPlan([drafts], group)) == 1
    decode(sequences[5])
    assert transfers(StepPlan(decodes=group)) == 1
    assert capture.replays == 6 * graphs


def test_all_drafts_of_a_step_take_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.BACKENDS, "dense", Dense)
    monkeypatch.setattr(load, "CAPTURABLE", frozenset({"dense"}))
    drafter = with_draft("llama", "dense", num_blocks=40).drafter
    sent: list[int] = []
    for name in ("send", "send_to"):
        whole = getattr(Pinned, name)
        monkeypatch.setattr(
            Pinned, name, lambda self, *args, whole=whole: (sent.append(1), whole(self, *args))[1]
        )
    sequence = Sequence(Request(0, (5, 7, 9, 11), 20))
    sequence.slot, sequence.block_table = 0, list(range(4))
    eager = drafter.propose([(sequence, 4)], [1] * 40)
    assert len(sent) == 1
    capture = Again()
    capture_graphs(drafter.executor, capture, buckets=[Bucket(Shape(2, 8, 8, 0, 2)), decode_bucket(1)])
    drafter.reset()
    sent.clear()
    assert drafter.propose([(sequence, 4)], [1] * 40) == eager
    assert len(sent) == 1 and capture.replays == 4
