"""Models on the Triton backend give the tokens of ``generate``; who cannot have it is told why."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from test_execute_features import serve_all
from tiny_models import tiny

from tunebatch.engine.request import Request
from tunebatch.execute.torch import attention, same_tokens
from tunebatch.execute.torch.load import ModelError, serve

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: its kernels cannot be tested"
)
WINDOWS = {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": WINDOWS | {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gpt_oss": WINDOWS | {"num_local_experts": 4, "num_experts_per_tok": 2},
}


@needs_triton
@pytest.mark.parametrize(
    "kind", ["gpt_oss", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llama", "gemma2"))]
)
def test_greedy_tokens_equal_generate(kind: str) -> None:
    model = tiny(kind, vocab_size=199, eos_token_id=None, **MODELS[kind])
    with torch.no_grad():  # logits of the initial weights are flat; larger ones separate the tokens
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.dim() > 1 else parameter.add_(0.05 * torch.randn_like(parameter))
    served = serve(model, name=kind, backend="triton", block_size=16, num_blocks=16, max_slots=4)
    assert served.model_info["attention_backend"] == "triton"
    assert served.model_info["self_check_error"] < 1e-5
    # The repeated prompt is drafted for: prompts, drafts and decodes are in one step.
    prompts = [(5, 6, 7) * 4, tuple(range(20, 41)), (9,)]
    traffic = [Request(i, prompt, 4, ignore_eos=True) for i, prompt in enumerate(prompts)]
    want = [same_tokens.generate(served, one.prompt, one.max_tokens) for one in traffic]
    record = serve_all(served, "chunked+ngram", traffic)
    assert [one.output for one in record.requests] == want
    assert len({token for output in want for token in output}) >= 5


def test_without_triton_a_gpu_is_served_by_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    assert attention.choose_backend("auto", "cuda", torch.bfloat16, 128, 16).name == "reference"
    with pytest.raises(
        ValueError, match=r"^attention backend triton: Triton is not installed; use reference$"
    ):
        attention.choose_backend("triton", "cuda", torch.bfloat16, 128, 16)


@needs_triton
def test_a_gpu_is_served_by_triton() -> None:
    assert attention.choose_backend("auto", "cuda", torch.bfloat16, 128, 16).name == "triton"
    assert attention.choose_backend("auto", "cuda", torch.bfloat16, 512, 16).name == "reference"
    assert attention.choose_backend("reference", "cuda", torch.bfloat16, 128, 16).name == "reference"


@needs_triton
def test_on_a_cpu_it_is_refused_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ModelError) as refused:
        serve(tiny(), name="tiny", backend="triton")
    assert str(refused.value) == (
        "attention backend triton: runs on a CUDA device, or with TRITON_INTERPRET=1 on a CPU, very slowly; "
        "use compiled"
    )


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, not interpreted")
def test_the_interpreter_is_not_trusted_with_bfloat16() -> None:
    with pytest.raises(ModelError, match="interpreter takes bfloat16 for integers; use compiled"):
        serve(tiny().bfloat16(), name="tiny", backend="triton")


@needs_triton
def test_a_kernel_that_cannot_be_compiled_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunebatch.execute.torch.attention import triton

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no assembler\nat all")

    monkeypatch.setattr(type(triton.attend_kernel), "warmup", broken)
    with pytest.raises(ModelError, match=r"Triton cannot compile attention for .*: no assembler$") as error:
        serve(tiny(), name="tiny", backend="triton")
    assert "\n" not in str(error.value)
