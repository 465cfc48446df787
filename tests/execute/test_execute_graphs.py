"""Replayed steps give the tokens of eager ones: whatever pads them, and whatever was replayed before."""

from __future__ import annotations

import pytest
from graph_stand_ins import Again, Dense, Recorded
from test_execute_features import requests, serve_all, with_draft
from test_execute_tokens import network
from tiny_models import BLOCK_SIZE

from tunebatch.engine.strategies import STRATEGIES
from tunebatch.execute.torch import attention, same_tokens
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.graphs.captured import capture_graphs
from tunebatch.execute.torch.load import serve


@pytest.fixture(autouse=True)
def dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.BACKENDS, "dense", Dense)


def served_by(name: str, backend: str, num_blocks: int = 40) -> TorchExecutor:
    model = network(name)
    model.set_attn_implementation("eager")
    return serve(model, name=name, backend=backend, block_size=BLOCK_SIZE, num_blocks=num_blocks, max_slots=8)


@pytest.mark.parametrize(
    ("name", "backend"), [("llama", "reference"), ("mistral", "dense"), ("gpt2", "dense")]
)
def test_greedy_tokens_are_those_of_eager_steps(name: str, backend: str) -> None:
    served = served_by(name, backend)
    traffic = requests()
    want = [same_tokens.generate(served, one.prompt, one.max_tokens) for one in traffic]
    capture = Again() if backend == "reference" else Recorded()
    facts = capture_graphs(served, capture)
    assert facts["graphs"] > 20 and "without" not in facts
    for kind in STRATEGIES:
        for features in ("", "+ngram", "+prefix+ngram"):
            before = capture.replays
            record = serve_all(served, kind + features, traffic)
            assert [one.output for one in record.requests] == want, kind + features
            assert capture.replays - before > 0.5 * len(record.steps.start_s)


def test_a_draft_model_replays_its_steps_too() -> None:
    served = with_draft("llama", "dense", num_blocks=40)
    traffic = requests()
    want = [same_tokens.generate(served, one.prompt, one.max_tokens) for one in traffic]
    drafting, verifying = Recorded(), Recorded()
    eager = [serve_all(served, kind, traffic) for kind in ("continuous+draft", "mixed+prefix+draft")]
    capture_graphs(served.drafter.executor, drafting)
    capture_graphs(served, verifying)
    for kind, before in zip(("continuous+draft", "mixed+prefix+draft"), eager, strict=True):
        record = serve_all(served, kind, traffic)
        assert [one.output for one in record.requests] == want
        assert record.speculation == before.speculation
    assert drafting.replays > verifying.replays > 40
