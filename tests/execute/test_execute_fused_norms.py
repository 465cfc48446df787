"""Norms that are found by what they compute, compute it in one launch; what is another is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from tunebatch.execute.torch import fused_norms
from tunebatch.execute.torch.fused_norms import FORMS, fuse_norms, take_apart

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
