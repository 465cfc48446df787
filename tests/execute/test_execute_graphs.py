"""Models with graphs serve the tokens of models without, and say what graphs took, or why there are none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_stand_ins import Again, Dense, Recorded
from test_execute_features import requests, serve_all, with_draft
from test_execute_tokens import network
from tiny_models import BLOCK_SIZE, tiny

from tunebatch.engine.request import Sampling
from tunebatch.engine.strategies import STRATEGIES
from tunebatch.execute.torch import attention, load, room, same_tokens
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.graphs.buckets import Buckets, buckets_for
from tunebatch.execute.torch.graphs.captured import bytes_of_graphs, capture_graphs
from tunebatch.execute.torch.load import serve
from tunebatch.execute.torch.memory import measure_memory

MIB = 2**20
ALL = len(buckets_for(8))


@pytest.fixture(autouse=True)
def dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.BACKENDS, "dense", Dense)
    monkeypatch.setattr(load, "CAPTURABLE", frozenset({"dense"}))


def served_by(name: str, backend: str, **settings: Any) -> TorchExecutor:
    model = network(name)
    model.set_attn_implementation("eager")
    settings = {"num_blocks": 40, "max_slots": 8, **settings}
    return serve(model, name=name, backend=backend, block_size=BLOCK_SIZE, **settings)


def outputs(served: TorchExecutor, kind: str = "mixed+ngram") -> list[list[int]]:
    return [one.output for one in serve_all(served, kind, requests()).requests]


@pytest.mark.parametrize(("name", "backend"), [("llama", "reference"), ("mistral", "dense")])
def test_greedy_tokens_are_those_of_eager_steps(name: str, backend: str) -> None:
    served = served_by(name, backend)
    traffic = requests()
    want = [same_tokens.generate(served, one.prompt, one.max_tokens) for one in traffic]
    capture = Again() if backend == "reference" else Recorded()
    facts = capture_graphs(served, capture)
    assert facts["graphs"] > 20 and "without" not in facts
    for kind in STRATEGIES:
        for features in ("", "+prefix+ngram"):
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


def test_sampled_tokens_are_those_of_eager_steps() -> None:
    """Beside greedy ones, whose tokens the graph has found already."""
    traffic = [
        dataclasses.replace(one, sampling=Sampling(temperature=0.8, top_p=0.9, seed=one.id))
        if one.id % 2
        else one
        for one in requests()
    ]
    served = served_by("llama", "dense")
    eager = [one.output for one in serve_all(served, "mixed+ngram", traffic).requests]
    capture = Recorded()
    capture_graphs(served, capture)
    assert [one.output for one in serve_all(served, "mixed+ngram", traffic).requests] == eager
    assert capture.replays > 10 and eager != outputs(served)


class Crowded(Recorded):
    """There is memory for all but the first few captures."""

    def __init__(self, refused: int, error: Callable[[], RuntimeError]) -> None:
        super().__init__()
        self._refused, self._error = refused, error

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        if self._refused:
            self._refused -= 1
            raise self._error()
        return super().__call__(function)


def out_of_memory() -> RuntimeError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def ended_early() -> RuntimeError:
    error = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    error.__context__ = out_of_memory()
    return error


@pytest.mark.parametrize("error", [out_of_memory, ended_early])
@pytest.mark.parametrize("refused", [3, ALL])
def test_where_memory_runs_out_the_largest_steps_have_no_graph(
    error: Callable[[], RuntimeError], refused: int
) -> None:
    served = served_by("llama", "dense")
    want, capture = outputs(served), Crowded(refused, error)
    facts = capture_graphs(served, capture)
    assert facts["graphs"] == ALL - refused
    assert facts["without"] == f"no memory for {refused} of {ALL} graphs, those of the largest steps"
    assert outputs(served) == want
    assert (capture.replays > 0) == (refused < ALL)


def test_a_model_that_cannot_be_captured_is_served_without_graphs() -> None:
    served = served_by("llama", "dense")
    want = outputs(served)

    def waits() -> RuntimeError:
        return RuntimeError("operation not permitted when stream is capturing\nand much more")

    facts = capture_graphs(served, Crowded(1, waits))
    why = "this model cannot be captured: operation not permitted when stream is capturing"
    assert (facts["graphs"], facts["without"]) == (0, why)
    assert outputs(served) == want
    # A stand-in knows it too: experts that are looped over are looked up on the host.
    looped = serve(tiny("mixtral", num_local_experts=3), name="m", backend="dense", num_blocks=8)
    looped.model.set_experts_implementation("eager")
    assert "waits for the device" in capture_graphs(looped, Recorded())["without"]


def test_a_loaded_model_has_graphs_that_were_checked() -> None:
    told: list[tuple[int, int]] = []
    served = served_by("llama", "dense", new_capture=Recorded, told=lambda *counts: told.append(counts))
    facts = served.model_info["cuda_graphs"]
    assert told == [(count, ALL) for count in range(1, ALL + 1)]
    assert facts["graphs"] == ALL and facts["seconds"] > 0 and facts["self_check_error"] < 1e-5
    assert "without" not in facts
    assert "cuda_graphs" not in served_by("llama", "reference", new_capture=Recorded).model_info
    # With fewer blocks than the check takes there is none.
    assert (
        "self_check_error"
        not in served_by("llama", "dense", num_blocks=3, new_capture=Recorded).model_info["cuda_graphs"]
    )


def test_graphs_that_compute_something_else_are_not_used() -> None:
    class Stale(Again):
        def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
            function()
            return lambda: None

    served = served_by("llama", "dense", new_capture=Stale)
    facts = served.model_info["cuda_graphs"]
    assert facts["graphs"] == 0 and facts["without"].startswith("what they compute is wrong by ")
    assert outputs(served) == outputs(served_by("llama", "dense"))


class Taking(Again):
    """The largest graph takes 50 MiB, and every other 3."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 7 * MIB

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.taken += 50 * MIB if self.taken == 7 * MIB else 3 * MIB
        return super().__call__(function)

    def taken_bytes(self) -> int:
        return self.taken


def test_the_kv_cache_gets_what_graphs_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    served = served_by("llama", "dense")
    needed = (50 + 3 * (ALL - 1)) * MIB
    assert bytes_of_graphs(served, Taking()) == needed
    assert bytes_of_graphs(served, Crowded(1, out_of_memory)) == 0
    assert capture_graphs(served, Taking())["mib"] == needed / MIB
    # On a CPU a quarter of what is free is taken, and a block of this model takes 1 KiB.
    blocks = 100
    monkeypatch.setattr(room, "room_bytes", lambda *_: 4 * blocks * 2**10 + needed)
    sized = {"num_blocks": None, "max_slots": 8}
    assert served_by("llama", "dense", new_capture=Taking, **sized).num_blocks == blocks
    assert served_by("llama", "dense", **sized).num_blocks > blocks


def test_the_kv_cache_is_not_counted_among_what_graphs_take() -> None:
    served = served_by("llama", "dense", num_blocks=4096)
    assert not served.cache.layers, "the first step makes them, which is one that is captured"

    class Counting(Taking):
        def taken_bytes(self) -> int:
            return self.taken + served.cache.num_bytes

    assert capture_graphs(served, Counting())["mib"] == 50 + 3 * (ALL - 1)
    assert served.cache.num_bytes == 4096 * 2**10


def test_the_largest_are_captured_first() -> None:
    tokens: list[int] = []

    class Watching(Again):
        def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
            replay = super().__call__(function)
            tokens.append(seen[-1])
            return replay

    served = served_by("llama", "dense")
    seen: list[int] = []
    forward = served.forward

    def watched(ids: Any, sampled_at: Any, step: Any) -> Any:
        seen.append(len(ids))
        return forward(ids, sampled_at, step)

    served.forward = watched
    capture_graphs(served, Watching())
    assert tokens == [one.shape.tokens for one in reversed(list(Buckets(buckets_for(8))))]


def test_activations_are_those_of_an_eager_step() -> None:
    served, capture = served_by("llama", "dense"), Again()
    capture_graphs(served, capture)
    measure_memory(served, 64)
    assert capture.replays == 0
    outputs(served)
    assert capture.replays > 0
