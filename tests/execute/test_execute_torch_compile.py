"""A forward through torch.compile: one graph, the same tokens, and errors that are the compiler's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_execute_features import serve_all
from tiny_models import BLOCK_SIZE, tiny

from tunebatch.engine.plan import Slice, StepPlan
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.execute.torch import compile_choice, forward, same_tokens
from tunebatch.execute.torch.attention.reference import Reference
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.load import ModelError, serve
from tunebatch.execute.torch.torch_compile import _running, compiled_forward

WINDOWS = {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
SOFTCAP = {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def served(model: Any, compiler: str, **options: Any) -> TorchExecutor:
    options = {"backend": "reference", "num_blocks": 40, "max_slots": 4, **options}
    return serve(model, name="tiny", block_size=BLOCK_SIZE, compiler=compiler, **options)


@pytest.fixture
def compiled_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(executor: TorchExecutor, plan: StepPlan) -> float:
        executor.logits(plan)
        return 1.0 if executor.forward.__qualname__.startswith("compiled_forward") else 2.0

    monkeypatch.setattr(compile_choice, "step_seconds", seconds)


@pytest.mark.parametrize(("kind", "compiler", "config"), [
    pytest.param("llama", "aot_eager", {}, marks=pytest.mark.slow),
    ("gemma2", "eager", WINDOWS | SOFTCAP),
])  # fmt: skip
def test_greedy_tokens_equal_generate(
    kind: str,
    compiler: str,
    config: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    compiled_is_faster: None,
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
    # Steps of all sizes share what was compiled when the model was loaded; those of one token have their own.
    assert compiled == torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not _running


@pytest.mark.parametrize("count", [0, 1, 3])
@torch.inference_mode()
def test_as_many_rows_as_were_asked_for(count: int) -> None:
    executor = serve(tiny(), name="tiny", block_size=BLOCK_SIZE, backend="reference", num_blocks=40)
    compiled = compiled_forward(executor.model, Reference(), "eager")
    executor._take_tables(plan := _three_tokens())
    tokens, _, step = executor._stage(plan, []).packed
    rows = torch.tensor([2, 0, 2], dtype=torch.int64)
    torch.testing.assert_close(
        compiled(tokens, rows[:count], step), executor.forward(tokens, rows, step)[:count]
    )


def test_what_cannot_be_compiled_is_one_line() -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise ValueError("no C++ compiler\nfound here")

    executor = serve(tiny(), name="tiny", block_size=BLOCK_SIZE, backend="reference", num_blocks=40)
    executor.forward = compiled_forward(executor.model, Reference(), broken)  # type: ignore[arg-type]
    with pytest.raises(ModelError) as refused:
        executor.logits(_three_tokens())
    assert str(refused.value).startswith("llama cannot be compiled: ")
    assert "no C++ compiler" in str(refused.value) and "\n" not in str(refused.value)
    assert not _running


def test_other_failures_are_not_the_compiler_s(
    monkeypatch: pytest.MonkeyPatch, compiled_is_faster: None
) -> None:
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
