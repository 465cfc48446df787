"""A forward through torch.compile: one graph, the same tokens, and one line where it cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_execute_features import serve_all
from tiny_models import BLOCK_SIZE, tiny

from tunebatch.engine.plan import Slice, StepPlan
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.execute.torch import forward, same_tokens
from tunebatch.execute.torch.attention.compiled import Compiled
from tunebatch.execute.torch.attention.reference import Reference
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.load import ModelError, serve
from tunebatch.execute.torch.torch_compile import _running

WINDOWS = {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
SOFTCAP = {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def served(model: Any, compiler: str, **options: Any) -> TorchExecutor:
    options = {"backend": "reference", "num_blocks": 40, "max_slots": 4, **options}
    return serve(model, name="tiny", block_size=BLOCK_SIZE, compiler=compiler, **options)


@pytest.mark.parametrize(("kind", "compiler", "config"), [
    pytest.param("llama", "aot_eager", {}, marks=pytest.mark.slow),
    ("gemma2", "eager", WINDOWS | SOFTCAP),
])  # fmt: skip
def test_greedy_tokens_equal_generate(
    kind: str, compiler: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "pays", lambda *_: True)
    model = tiny(kind, eos_token_id=None, **config)
    with torch.no_grad():  # logits of the initial weights are flat; larger ones separate the tokens
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.dim() > 1 else parameter.add_(0.05 * torch.randn_like(parameter))
    executor = served(model, compiler)
    facts = executor.model_info
    assert (facts["forward"], facts["merged_projections"]) == ("torch.compile", 4)
    assert facts["self_check_error"] < 1e-5
    assert not torch._dynamo.utils.counters["graph_break"]
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    traffic = [Request(i, tuple(range(3, 9 + 7 * i)), 5, ignore_eos=True) for i in range(3)]
    record = serve_all(executor, "mixed", traffic)
    want = [same_tokens.generate(executor, one.prompt, one.max_tokens) for one in traffic]
    assert [one.output for one in record.requests] == want
    # Steps of all sizes share what was compiled; those of one token, or with one sampled, have their own.
    assert 0 < compiled <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 8
    assert not _running


def test_with_the_kernels_for_cpus_the_model_s_own_code_is_compiled() -> None:
    told, _ = forward.choose_forward(tiny(), Compiled(), 128, (), "eager")
    assert told["forward"] == "torch.compile"


def test_what_cannot_be_compiled_is_one_line() -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise ValueError("no C++ compiler\nfound here")

    with pytest.raises(ModelError) as refused:
        served(tiny(), broken)  # type: ignore[arg-type]
    assert str(refused.value).startswith("--compile: llama cannot be compiled: ")
    assert "no C++ compiler" in str(refused.value) and "\n" not in str(refused.value)
    assert not _running


def test_other_failures_are_not_the_compiler_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    executor = served(tiny(), "eager")
    monkeypatch.setattr(Reference, "attend", fails)
    with pytest.raises(torch.OutOfMemoryError):
        executor.logits(_three_tokens())
    assert not _running


def _three_tokens() -> Any:
    sequence = Sequence(Request(id=0, prompt=(3, 4, 5), max_tokens=1))
    sequence.block_table, sequence.slot = [0], 0
    return StepPlan([Slice(sequence, 0, 3)])
