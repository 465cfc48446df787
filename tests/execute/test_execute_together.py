"""What a GPU has at once: fused and merged parts, replayed kernels, draws beside them, and overlap."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from graph_stand_ins import Recorded
from tiny_models import BLOCK_SIZE, tiny

from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import ReplayClock
from tunebatch.engine.request import GREEDY, Request, Sampling
from tunebatch.engine.strategies import strategy
from tunebatch.execute.torch import forward, fused, selfcheck
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.graphs import captured
from tunebatch.execute.torch.graphs.buckets import Bucket, Shape
from tunebatch.execute.torch.load import serve
from tunebatch.execute.torch.same_tokens import AllAtOnce

# For Triton's interpreter, which takes a while for each.
FEW = [Bucket(Shape(0, 0, 0, 4, 4)), Bucket(Shape(3, 16, 16, 4, 7))]
DRAWN = Sampling(0.9, top_p=0.9, seed=3)


def served(backend: str, capture: Recorded | None = None) -> TorchExecutor:
    model = tiny("qwen3", num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    return serve(
        model,
        name="tiny",
        backend=backend,
        block_size=BLOCK_SIZE,
        num_blocks=40,
        max_slots=4,
        new_capture=None if capture is None else lambda: capture,
    )


def outputs(executor: TorchExecutor, overlap: bool) -> list[list[int]]:
    executor.reset()
    traffic = [
        Request(
            id=i,
            prompt=tuple(range(1 + i, 5 + 2 * i)),
            max_tokens=4,
            sampling=DRAWN if i % 2 else GREEDY,
            ignore_eos=True,
        )
        for i in range(3)
    ]
    source = AllAtOnce(traffic[:2], traffic[2:])
    record = engine_for(strategy("mixed"), executor, source, ReplayClock(), overlap=overlap).run()
    return [one.output for one in record.requests]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, not interpreted")
def test_tokens_are_those_of_a_model_with_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    want = outputs(served("reference"), overlap=False)
    monkeypatch.setattr(fused, "pays", lambda *_: True)
    monkeypatch.setattr(forward, "pays", lambda *_: True)
    monkeypatch.setattr(captured, "buckets_for", lambda _: FEW)
    monkeypatch.setattr(selfcheck, "prompts", lambda *_: [[7, 8, 9], [5, 6, 7, 8], [6, 4]])
    capture = Recorded()
    executor = served("triton", capture)
    facts = executor.model_info
    assert [facts[fact] for fact in ("merged_projections", *fused.FACTS)] == [2, 5, 1, 1]
    assert facts["cuda_graphs"]["graphs"] == len(FEW)
    before = capture.replays
    assert outputs(executor, overlap=True) == want
    assert capture.replays - before >= 7
