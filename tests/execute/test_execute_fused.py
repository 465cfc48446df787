"""A model whose parts are fused is served as one whose are not; where they are wrong it keeps its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_execute_features import serve_all
from test_execute_tokens import expected, network, requests
from tiny_models import BLOCK_SIZE

from tunebatch.execute.torch import forward, fused, fused_rotary
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.load import serve

pytest.importorskip("triton", reason="Triton is not installed: its kernels cannot be tested")


def test_it_pays_on_a_gpu_that_has_triton() -> None:
    assert fused.pays(torch.device("cuda"), "triton")
    assert not fused.pays(torch.device("cuda"), "reference")
    assert not fused.pays(torch.device("cpu"), "triton")


def served(model: Any, name: str) -> TorchExecutor:
    model.set_attn_implementation("eager")
    return serve(model, name=name, backend="reference", block_size=BLOCK_SIZE, num_blocks=20, max_slots=8)


def counts(executor: TorchExecutor) -> list[int | None]:
    return [executor.model_info.get(fact) for fact in fused.FACTS]


def test_greedy_tokens_equal_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    want = expected("qwen3")
    monkeypatch.setattr(fused, "pays", lambda *_: True)
    monkeypatch.setattr(forward, "pays", lambda *_: True)  # gates are merged with what they gate
    executor = served(network("qwen3"), "qwen3")
    # Norms: of each of two layers its own two, its queries' and its keys'; and the last.
    assert counts(executor) == [9, 2, 2] and executor.model_info["merged_projections"] == 4
    assert executor.model_info["self_check_error"] < 1e-5
    record = serve_all(executor, "mixed", requests(199)[:1])
    assert [one.output for one in record.requests] == [want[one.id] for one in record.requests]
    monkeypatch.undo()
    assert counts(served(network("qwen3"), "qwen3")) == [None, None, None]
    assert not any("forward" in module.__dict__ for module in network("qwen3").modules())


def test_where_fusing_is_wrong_the_model_is_served_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "pays", lambda *_: True)
    monkeypatch.setattr(fused_rotary, "rotate", lambda own, keeps_dtype, q, k, cos, sin: (q, k))
    executor = served(network("qwen3"), "qwen3")
    assert counts(executor) == [0, 0, 0]
    assert executor.model_info["self_check_error"] < 1e-5
    assert not any("forward" in module.__dict__ for module in network("qwen3").modules())
