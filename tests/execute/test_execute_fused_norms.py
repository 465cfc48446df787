"""Norms that are found by what they compute, compute it in one launch; what is another is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_execute_features import serve_all
from test_execute_tokens import expected, network, requests
from tiny_models import BLOCK_SIZE
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from tunebatch.execute.torch import fused_norms
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.fused_norms import FORMS, fuse_norms, pays, take_apart
from tunebatch.execute.torch.load import serve

pytest.importorskip("triton", reason="Triton is not installed: its kernels cannot be tested")

WIDTH, HEADS, TOKENS = 24, 3, 5
PUBLISHED = dict(zip((LlamaRMSNorm, Olmo2RMSNorm, Gemma2RMSNorm), FORMS, strict=True))


def made(kind: Any, dtype: torch.dtype) -> Any:
    generator = torch.Generator().manual_seed(3)
    norm = kind(WIDTH, eps=1e-5).to(dtype)
    norm.weight.data = torch.randn(WIDTH, generator=generator).to(dtype)
    return norm


def inputs(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    whole = torch.randn(1, TOKENS, 2 * HEADS * WIDTH, generator=generator).to(dtype)
    part = whole[..., : HEADS * WIDTH].view(1, TOKENS, HEADS, WIDTH)
    return {
        "hidden states": whole.view(1, -1, WIDTH),
        "one token": whole.view(1, -1, WIDTH)[:, :1],
        "heads of a part of a projection": part,
        "heads of one token": part[:, :1],
        "heads first": part.transpose(1, 2),
        "three steps": torch.stack([part, part]).flip(0)[:, 0, ::2, ::2],
        "numbers apart": whole.view(-1, WIDTH, 2 * HEADS).transpose(1, 2),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", PUBLISHED, ids=lambda kind: kind.__name__)
def test_a_norm_as_published_is_one_launch(kind: Any, dtype: torch.dtype) -> None:
    norm, given = made(kind, dtype), inputs(dtype)
    want = {what: norm(x) for what, x in given.items()}
    assert fuse_norms(nn.ModuleList([norm])) == 1
    assert norm.forward.func is fused_norms.rms_norm
    if dtype == torch.float16:  # in float32 the first two round alike
        assert norm.forward.args[2] == PUBLISHED[kind]
    # A rounding of float32, which in 16 bits tips a few numbers over.
    rtol = 2e-6 if dtype == torch.float32 else 1e-3
    for what, x in given.items():
        got = norm(x)
        assert got.shape == x.shape and got.is_contiguous(), what
        torch.testing.assert_close(got, want[what], rtol=rtol, atol=0, msg=what)
        assert (got == want[what]).float().mean() > (0.3 if dtype == torch.float32 else 0.98), what
    take_apart(norm)
    assert "forward" not in norm.__dict__


class EpsOutside(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.weight * hidden_states / (hidden_states.pow(2).mean(-1, keepdim=True).sqrt() + 1e-5)


class Gated(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        own = super().forward(hidden_states)
        return own if gate is None else own * gate


def hooked() -> nn.Module:
    norm = LlamaRMSNorm(WIDTH)
    norm.register_forward_hook(lambda *_: None)
    return norm


@pytest.mark.parametrize(
    "other",
    [
        EpsOutside(WIDTH).half(),
        Gated(WIDTH),
        hooked(),
        nn.LayerNorm(WIDTH, bias=False),
        nn.Linear(WIDTH, WIDTH, bias=False),
        nn.BatchNorm1d(WIDTH),
    ],
    ids=lambda other: type(other).__name__,
)
def test_what_is_another_is_left_alone(other: nn.Module) -> None:
    assert fuse_norms(nn.ModuleList([other])) == 0 and "forward" not in other.__dict__


def test_it_pays_on_a_gpu_that_has_triton() -> None:
    assert pays(torch.device("cuda"), "triton")
    assert not pays(torch.device("cuda"), "reference") and not pays(torch.device("cpu"), "triton")


def served(model: Any, name: str) -> TorchExecutor:
    model.set_attn_implementation("eager")
    return serve(model, name=name, backend="reference", block_size=BLOCK_SIZE, num_blocks=20, max_slots=8)


def test_greedy_tokens_equal_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    want = expected("qwen3")
    monkeypatch.setattr(fused_norms, "pays", lambda *_: True)
    executor = served(network("qwen3"), "qwen3")
    # Of each of two layers its own two, its queries' and its keys'; and the last.
    assert executor.model_info["fused_norms"] == 9
    assert executor.model_info["self_check_error"] < 1e-5
    record = serve_all(executor, "mixed", requests(199)[:2])
    assert [one.output for one in record.requests] == [want[one.id] for one in record.requests]
    monkeypatch.undo()
    assert "fused_norms" not in served(network("qwen3"), "qwen3").model_info
    assert not any("forward" in module.__dict__ for module in network("qwen3").modules())


def test_where_fusing_is_wrong_the_model_is_served_without(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fused_norms.rms_norm
    monkeypatch.setattr(fused_norms, "pays", lambda *_: True)
    monkeypatch.setattr(
        fused_norms, "rms_norm", lambda weight, eps, form, x: 2.0 * right(weight, eps, form, x)
    )
    executor = served(network("qwen3"), "qwen3")
    assert executor.model_info["fused_norms"] == 0
    assert executor.model_info["self_check_error"] < 1e-5
