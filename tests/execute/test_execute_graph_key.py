"""A graph serves whatever its key holds: of all other host values a captured step knows nothing."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from graph_stand_ins import Dense, Recorded
from test_execute_graph_steps import served_by, with_graphs
from test_execute_graphs import served_by as served_as
from test_execute_overlap import run
from tiny_models import BLOCK_SIZE

from tunebatch.engine.group import DecodeGroup
from tunebatch.engine.plan import Slice, StepPlan
from tunebatch.engine.request import Request, Sampling
from tunebatch.engine.sequence import Sequence
from tunebatch.execute.torch import attention
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.graphs.buckets import Bucket, Shape, decode_bucket
from tunebatch.execute.torch.graphs.captured import capture_graphs
from tunebatch.execute.torch.graphs.inputs import StaticInputs

NOT_IN_THE_KEY = ("max_context_len", "context_sum", "host_lens", "masks")
BUCKETS = [decode_bucket(2), Bucket(Shape(3, 8, 6, 2, 5))]
SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
ONE_LAYER = {"sliding_window": 5, "kind": "mistral", **SMALL}


@pytest.fixture(autouse=True)
def dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.BACKENDS, "dense", Dense)


class Guarded:
    """A step whose host values cannot be read, or computed with, but for those in the key."""

    def __init__(self, step: Any) -> None:
        self._step = step
        self.slices = [(object(), count, object()) for _, count, _ in step.slices]

    def __getattr__(self, name: str) -> Any:
        assert name not in NOT_IN_THE_KEY, f"a captured step reads {name}"
        return getattr(self._step, name)


def texts(seed: int) -> list[Sequence]:
    """Four sequences of other tokens, lengths, samplings and blocks with each seed."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randperm(40, generator=generator).tolist()
    found = []
    for slot in range(4):
        prompt = tuple(torch.randint(99, (3 + (5 * slot + 7 * seed) % 11,), generator=generator).tolist())
        sampling = Sampling(temperature=0.9, seed=slot) if (slot + seed) % 2 else Sampling()
        sequence = Sequence(Request(slot, prompt, 9, sampling=sampling))
        sequence.slot, sequence.block_table = slot, blocks[8 * slot : 8 * slot + 8]
        found.append(sequence)
    return found


def tokens(served: TorchExecutor, seed: int) -> list[Any]:
    """Two prompts, then decodes of both beside chunks of two others, then of both alone."""
    served.reset()
    a, b, c, d = texts(seed)
    group = DecodeGroup(BLOCK_SIZE)
    outputs = [served.execute(StepPlan([Slice(one, 0, len(one.request.prompt)) for one in (a, b)]))]
    for sequence in (a, b):
        sequence.num_computed = len(sequence.request.prompt)
        group.join(sequence)
    counts = (1 + seed % 3, 2 + seed % 2)
    chunks = [Slice(one, 0, count) for one, count in zip((c, d), counts, strict=True)]
    for plan in (StepPlan(chunks, group), StepPlan(decodes=group), StepPlan(decodes=group)):
        outputs.append(served.execute(plan))
        group.advance()
    return [(list(map(list, one.slice_tokens)), list(one.decode_tokens or ())) for one in outputs]


@pytest.mark.parametrize(
    "backend",
    [
        "dense",
        pytest.param(
            "triton",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("triton") is None or torch.cuda.is_available(),
                reason="Triton's interpreter is not used here",
            ),
        ),
    ],
)
def test_a_captured_step_serves_other_content(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = StaticInputs.of

    def guarded(self: StaticInputs, bucket: Bucket) -> Any:
        ids, sampled_at, step = whole(self, bucket)
        return ids, sampled_at, Guarded(step)

    monkeypatch.setattr(StaticInputs, "of", guarded)
    eager, served, capture = served_by("reference", **ONE_LAYER), served_by(backend, **ONE_LAYER), Recorded()
    with_graphs(served, capture, BUCKETS)
    found = [tokens(served, seed) for seed in range(3)]
    assert found == [tokens(eager, seed) for seed in range(3)]
    assert capture.replays == 9
    assert found[0] != found[1] != found[2]


@pytest.mark.parametrize("name", ["continuous", "mixed+prefix"])
def test_where_tokens_come_from_and_how_they_are_drawn_is_in_no_graph(name: str) -> None:
    """Greedy and drawn, known to the host or to the device alone; one graph of each kind for all of them."""
    served, capture = served_as("llama", "dense", num_blocks=13), Recorded()
    wanted = [one.output for one in run(served, name, overlap=False).requests]
    capture_graphs(served, capture, buckets=[decode_bucket(8), Bucket(Shape(5, 32, 32, 8, 13))])
    for overlap in (False, True):
        before = capture.replays
        assert [one.output for one in run(served, name, overlap).requests] == wanted
        assert capture.replays - before > 20
