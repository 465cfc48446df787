"""Rotations that are known are one launch, to the last bit, in the one model; others are left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny
from torch import Tensor
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama
from transformers.models.olmo2 import modeling_olmo2
from transformers.models.phi3 import modeling_phi3

from tunebatch.execute.torch import fused_rotary
from tunebatch.execute.torch.fused_rotary import fuse_rotary, rotate, take_apart

pytest.importorskip("triton", reason="Triton is not installed: its kernels cannot be tested")
from bfloat16_rounding import round_as_gpus

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# tokens, query heads, key heads, of a head, rotated
SHAPES = [(1, 4, 2, 16, 16), (3, 6, 2, 24, 24), (1, 9, 1, 80, 80), (2, 3, 4, 20, 6)]
IDS = torch.tensor([[3, 17, 5, 88, 2, 41, 41]])


def parts(shape: tuple[int, ...], dtype: torch.dtype, of_cos: torch.dtype) -> tuple[Tensor, ...]:
    """Queries and keys as views of one projection, and a rotation's cosines and sines."""
    tokens, heads, kv_heads, dim, rotated = shape
    generator = torch.Generator().manual_seed(tokens)
    whole = torch.randn(1, tokens, (heads + 2 * kv_heads) * dim, generator=generator).to(dtype)
    sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
    q, k, _ = (part.view(1, tokens, -1, dim).transpose(1, 2) for part in whole.split(sizes, -1))
    angles = torch.randn(1, tokens, rotated, generator=generator)
    return q, k, angles.cos().to(of_cos), angles.sin().to(of_cos)


@pytest.mark.parametrize("of_cos", [None, torch.float32], ids=["cos alike", "cos in float32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("code", [modeling_llama, modeling_olmo2, modeling_phi3, modeling_gpt_neox])
def test_it_is_the_published_function_to_the_last_bit(
    code: Any, dtype: torch.dtype, of_cos: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_as_gpus(monkeypatch)
    own = code.apply_rotary_pos_emb
    keeps_dtype = fused_rotary._keeps_dtype(own, dtype, torch.device("cpu"))
    assert keeps_dtype is (code is modeling_olmo2 and dtype != torch.float32)
    for shape in SHAPES:
        if shape[-1] < shape[-2] and code not in (modeling_phi3, modeling_gpt_neox):
            continue
        q, k, cos, sin = parts(shape, dtype, of_cos or dtype)
        rotated = rotate(None, keeps_dtype, q, k, cos, sin)
        for got, want in zip(rotated, own(q, k, cos, sin), strict=True):
            assert got.dtype == want.dtype and torch.equal(got, want), shape
        by_token = q.transpose(1, 2), k.transpose(1, 2)
        rotated = rotate(None, keeps_dtype, *by_token, cos, sin, unsqueeze_dim=2)
        for got, want in zip(rotated, own(*by_token, cos, sin, unsqueeze_dim=2), strict=True):
            assert torch.equal(got, want) and got.is_contiguous(), shape


def test_what_is_not_one_row_of_tokens_is_left_to_the_models_own() -> None:
    q, k, cos, sin = parts(SHAPES[1], torch.float32, torch.float32)
    asked: list[int] = []

    def own(*_: Tensor, unsqueeze_dim: int) -> str:
        asked.append(unsqueeze_dim)
        return "own"

    others: list[tuple[Any, ...]] = [
        (q.repeat(2, 1, 1, 1), k.repeat(2, 1, 1, 1), cos, sin),
        (q, k.double(), cos, sin),
        (q, k, cos.double(), sin.double()),
        (q, k, cos[:, :1], sin[:, :1]),
        (q, k[:, :, :1], cos, sin),
        (q, k, cos[..., :3], sin[..., :3]),
        (q[..., ::2], k[..., ::2], cos[..., ::2], sin[..., ::2]),
        (q[0], k[0], cos, sin, 1),
        (q, k, cos, sin, 0),
    ]
    assert [rotate(own, False, *other) for other in others] == ["own"] * 9
    assert asked == [1] * 8 + [0]


KNOWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "phi3": {"partial_rotary_factor": 0.5, "pad_token_id": 0},
    "gpt_neox": {"rotary_pct": 0.5},
    "olmo2": {},
    "gemma2": {"head_dim": 8},
    "mixtral": {"num_local_experts": 2},
}


@pytest.mark.parametrize("name", KNOWN)
@torch.inference_mode()
def test_logits_are_the_same_to_the_last_bit(name: str) -> None:
    model = tiny(name, **KNOWN[name])
    want = model(IDS).logits
    assert fuse_rotary(model) == 2
    assert sum("forward" in module.__dict__ for module in model.modules()) == 2
    launched: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        launch = fused_rotary._launched
        patch.setattr(fused_rotary, "_launched", lambda *args: launched.append(args) or launch(*args))
        assert torch.equal(model(IDS).logits, want)
    assert len(launched) == 2
    if name in ("phi3", "gpt_neox"):
        q, _, cos = launched[0][:3]
        assert cos.shape[-1] == q.shape[-1] // 2
    assert fuse_rotary(model) == 0
    take_apart(model)
    assert not any("forward" in module.__dict__ for module in model.modules())


OTHERS: dict[str, dict[str, Any]] = {
    "glm": {"head_dim": 8, "pad_token_id": 0},  # pairs of neighbours
    "cohere": {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 2},  # cosines of half a head
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},  # none
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_rotation_is_left_alone(name: str) -> None:
    model = tiny(name, **OTHERS[name])
    assert fuse_rotary(model) == 0
    assert not any("forward" in module.__dict__ for module in model.modules())


def by_head_alone(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
    if unsqueeze_dim == 2:
        cos = cos.flip(-1)
    return modeling_llama.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)


def the_last_of_a_head(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
    rest = q.shape[-1] - cos.shape[-1]
    parts = (q[..., rest:], k[..., rest:], cos, sin, unsqueeze_dim)
    rotated = modeling_llama.apply_rotary_pos_emb(*parts)
    return tuple(torch.cat([x[..., :rest], one], -1) for x, one in zip((q, k), rotated, strict=True))


def by_positions(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, ids: Any = None, unsqueeze_dim: int = 1
) -> Any:
    return modeling_llama.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)


def queries_alone(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
    return modeling_llama.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)[0], k


@pytest.mark.parametrize("own", [by_head_alone, the_last_of_a_head, by_positions, queries_alone])
def test_what_differs_anywhere_is_another(own: Any) -> None:
    assert fused_rotary._keeps_dtype(own, torch.float32, torch.device("cpu")) is None


@torch.inference_mode()
def test_other_models_of_the_same_code_keep_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    fused, other = tiny(), tiny()
    own, want = modeling_llama.apply_rotary_pos_emb, other(IDS).logits
    assert fuse_rotary(fused) == 2
    assert modeling_llama.apply_rotary_pos_emb is own
    calls: list[Any] = []

    def counted(*args: Any, **named: Any) -> Any:
        calls.append(args)
        return own(*args, **named)

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", counted)
    assert torch.equal(fused(IDS).logits, want) and len(calls) == 0
    assert torch.equal(other(IDS).logits, want) and len(calls) == 2
    take_apart(fused)
    assert torch.equal(fused(IDS).logits, want) and len(calls) == 4
