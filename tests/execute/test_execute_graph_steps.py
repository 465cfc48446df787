"""Random steps, replayed and eager, one after the other: the same logits, whatever was replayed before."""

from __future__ import annotations

import importlib.util
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from graph_stand_ins import Again, Dense, Recorded
from tiny_models import BLOCK_SIZE, tiny

from tunebatch.engine.group import DecodeGroup
from tunebatch.engine.plan import Slice, StepPlan
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.execute.torch import attention
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.graphs.buckets import Bucket, Buckets, Shape, buckets_for
from tunebatch.execute.torch.graphs.graphs import Graphs
from tunebatch.execute.torch.graphs.inputs import StaticInputs
from tunebatch.execute.torch.load import serve

BLOCKS_EACH, SLOTS = 12, 7
# For Triton's interpreter, which takes a while for each: one bucket of a kind.
FEW = [
    Bucket(Shape(0, 0, 0, 8, 8)),
    Bucket(Shape(5, 20, 5, 0, 20)),
    Bucket(Shape(7, 32, 24, 7, 32)),
]


@pytest.fixture(autouse=True)
def dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.BACKENDS, "dense", Dense)


def served_by(backend: str, **config: Any) -> TorchExecutor:
    """With a block more than sequences have."""
    blocks = BLOCKS_EACH * SLOTS + 1
    return serve(
        tiny(**config),
        name="tiny",
        backend=backend,
        block_size=BLOCK_SIZE,
        num_blocks=blocks,
        max_slots=SLOTS,
    )


def with_graphs(served: TorchExecutor, capture: Again, buckets: list[Bucket]) -> StaticInputs:
    """The largest first; returns what they read."""
    wanted = Buckets(buckets)
    inputs = StaticInputs(wanted, served.cache, served.max_context, served.device)
    graphs = Graphs(served.forward, inputs)
    for bucket in reversed(list(wanted)):
        graphs.capture(bucket, capture)
    served.use_graphs(graphs)
    return inputs


@dataclass
class Traffic:
    """Sequences of random tokens, and steps that take them on by a chunk, by drafts, or by a token."""

    draw: random.Random
    sequences: list[Sequence] = field(default_factory=list)

    def __post_init__(self) -> None:
        blocks = list(range(BLOCKS_EACH * SLOTS))
        self.draw.shuffle(blocks)
        for slot in range(SLOTS):
            prompt = tuple(self.draw.randrange(99) for _ in range(BLOCKS_EACH * BLOCK_SIZE))
            sequence = Sequence(Request(id=slot, prompt=prompt, max_tokens=1))
            sequence.slot, sequence.block_table = slot, blocks[slot * BLOCKS_EACH : (slot + 1) * BLOCKS_EACH]
            self.sequences.append(sequence)

    def step(self) -> tuple[StepPlan, list[Sequence]]:
        """A plan, and who decodes in it; nobody goes beyond the end of its prompt."""
        kind = self.draw.choice(["decodes", "verification", "mixed", "mixed"])
        slices, decoding = [], []
        for sequence in self.draw.sample(self.sequences, self.draw.randint(1, SLOTS)):
            start = sequence.num_computed
            left = len(sequence.request.prompt) - start
            does = {
                "decodes": "decode",
                "verification": self.draw.choice(["drafts", "drafts", "decode"]),
            }.get(kind, self.draw.choice(["chunk", "decode", "decode", "drafts"]))
            if left <= 9:
                sequence.num_computed = 0  # begins anew, in the same blocks
            elif does == "chunk":
                count = self.draw.randint(1, 9)
                slices.append(Slice(sequence, start, count, sample=self.draw.random() < 0.5))
                sequence.num_computed += count
            elif does == "drafts":
                drafts = sequence.request.prompt[start + 1 : start + 1 + self.draw.randint(1, 4)]
                slices.append(Slice(sequence, start, 1 + len(drafts), draft_tokens=drafts))
                sequence.num_computed += 1 + len(drafts)
            else:
                decoding.append(sequence)
        group = DecodeGroup(BLOCK_SIZE)
        for sequence in decoding:
            group.join(sequence)
        return StepPlan(slices, group if decoding else None, list(decoding)), decoding


@torch.inference_mode()
def poison(served: TorchExecutor, inputs: StaticInputs, buckets: list[Bucket]) -> None:
    """As a step before might have left them: every number another that could be one, in the largest buckets.

    Tables name a block that is nobody's and holds NaN.
    """
    last = served.num_blocks - 1
    for pools in served.cache.layers.values():
        for pool in pools:
            pool[last] = torch.nan
    for bucket in buckets:
        tokens, sampled_at, step = inputs.of(bucket)
        for part, number in (
            (tokens, 98),
            (sampled_at, 1),
            (step.positions, 3),
            (step.query_start, 2),
            (step.context_lens, 5),
            (step.cache_slots, 0),
            (step.block_tables, last),
        ):
            part.fill_(number)


def check(
    backend: str, capture: Again, buckets: list[Bucket], steps: int, seed: int, **config: Any
) -> set[Any]:
    """Returns the kinds of steps that were replayed."""
    eager, served = served_by("reference", **config), served_by(backend, **config)
    inputs = with_graphs(served, capture, buckets)
    traffic, replayed = Traffic(random.Random(seed)), set()
    for _ in range(steps):
        plan, decoding = traffic.step()
        if not plan:
            continue
        for executor in (eager, served):
            for sequence in decoding:
                executor.set_slot(
                    sequence.slot, sequence.request.prompt[sequence.num_computed], sequence.num_computed
                )
        before = capture.replays
        if backend != "dense":  # which reads whatever tables hold
            poison(served, inputs, buckets)
        torch.testing.assert_close(served.logits(plan), eager.logits(plan), rtol=1e-4, atol=1e-5)
        if capture.replays > before:
            verifies = any(piece.draft_tokens for piece in plan.slices)
            replayed.add((verifies, any(not p.draft_tokens for p in plan.slices), bool(decoding)))
        for sequence in decoding:
            sequence.num_computed += 1
    return replayed


@pytest.mark.parametrize("backend", ["reference", "dense"])
@pytest.mark.parametrize("config", [{}, {"kind": "mistral", "sliding_window": 9}])
def test_replayed_steps_give_the_logits_of_eager_ones(backend: str, config: dict[str, Any]) -> None:
    capture = Again() if backend == "reference" else Recorded()
    replayed = check(backend, capture, buckets_for(SLOTS), 60, seed=len(config), **config)
    # Verifying, computing prompts and decoding, alone and together.
    assert len(replayed) >= 6


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, not interpreted")
def test_kernels_that_are_replayed_give_the_logits_of_eager_steps() -> None:
    config = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    replayed = check("triton", Recorded(), FEW, 7, seed=4, **config)
    assert len(replayed) == 6
