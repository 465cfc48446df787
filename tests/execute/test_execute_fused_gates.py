"""Gates of SiLU are one launch wherever they are found; what gates otherwise is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP

from tunebatch.execute.torch import fused_gates, selfcheck
from tunebatch.execute.torch.fused_gates import fuse_gates, silu_times, take_apart
from tunebatch.execute.torch.merged import merge, watched

pytest.importorskip("triton", reason="Triton is not installed: its kernels cannot be tested")
from bfloat16_rounding import round_as_gpus

WIDTH, INNER = 8, 12
IDS = torch.tensor([[3, 17, 5, 88, 2, 41, 41]])
# A unit in the last place, of the exponential in float32, and of the product in 16 bits.
RTOL = {torch.float32: 5e-7, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("dtype", RTOL, ids=str)
def test_it_is_torchs_product(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    round_as_gpus(monkeypatch)
    generator = torch.Generator().manual_seed(3)
    for size in ((1, 1, 24), (1, 5, 48), (2, 3, 50), (1, 2, 2400)):
        both = (4 * torch.randn(size, generator=generator)).to(dtype)
        both[..., 0, :4] = torch.tensor([-120.0, 90.0, 0.0, -20.0])
        pairs = [both.chunk(2, -1), (both[..., ::2], both[..., 1::2]), (both, both.flip(-1))]
        for gate, up in pairs:
            got, want = silu_times(gate, up), F.silu(gate) * up
            assert got.shape == want.shape and got.dtype == dtype and got.is_contiguous()
            torch.testing.assert_close(got, want, rtol=RTOL[dtype], atol=1e-30)
            assert (got == want).float().mean() > (0.6 if dtype == torch.float32 else 0.98)


FUSED: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "phi3": {"pad_token_id": 0},
    "olmo2": {"intermediate_size": 32},  # all three layers are of one shape
}


@pytest.mark.parametrize("name", FUSED)
@torch.inference_mode()
def test_logits_are_the_same(name: str) -> None:
    model = tiny(name, **FUSED[name])
    want = model(IDS).logits
    assert fuse_gates(model) == 2
    torch.testing.assert_close(model(IDS).logits, want, rtol=1e-5, atol=1e-6)
    assert fuse_gates(model) == 0
    take_apart(model)
    assert torch.equal(model(IDS).logits, want)


@torch.inference_mode()
def test_merged_projections_are_gated() -> None:
    model = tiny()
    with watched(model) as groups:
        want = selfcheck.own_logits(model, [IDS[0].tolist()])
    merged = merge(groups)
    assert fuse_gates(model) == 2
    assert not any(one._parts for one in merged)
    strides: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:

        def seen(gate: Tensor, up: Tensor) -> Tensor:
            strides.append((gate.stride(1), up.data_ptr() - gate.data_ptr()))
            return silu_times(gate, up)

        patch.setattr(fused_gates, "silu_times", seen)
        torch.testing.assert_close(model(IDS).logits[0], want[0], rtol=1e-5, atol=1e-6)
    assert strides == [(2 * 48, 4 * 48)] * 2  # halves of one tensor


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, INNER) for _ in range(2))
        self.down = nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Backwards(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gate(x) * F.silu(self.up(x)))


class Clamped(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x).clamp(max=5.0)) * self.up(x))


class Gelu(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.gate(x)) * self.up(x))


class Added(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class Twice(Mlp):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x) * scale


class OneInput(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, None, 0])


class UpFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(WIDTH, 2 * INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.both(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


def hooked() -> nn.Module:
    mlp = Mlp()
    mlp.register_forward_hook(lambda *_: None)
    return mlp


@pytest.mark.parametrize(
    "other",
    [Clamped(), Gelu(), Added(), Twice(), OneInput(), UpFirst(), hooked(), Mlp().double()],
    ids=lambda other: type(other).__name__,
)
def test_what_gates_otherwise_is_left_alone(other: nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    assert fuse_gates(nn.ModuleList([other])) == 0 and "forward" not in other.__dict__


def test_whichever_gates_is_found() -> None:
    for mlp, gate in ((Mlp(), "gate"), (Backwards(), "up")):
        assert fuse_gates(nn.ModuleList([mlp])) == 1
        (layers,) = mlp.forward.args
        assert layers.gate is getattr(mlp, gate) and layers.down is mlp.down


def test_models_with_other_gates_are_left_alone() -> None:
    for name, config in (("gemma2", {"head_dim": 8}), ("gpt_neox", {})):
        assert fuse_gates(tiny(name, **config)) == 0, name


@torch.inference_mode()
def test_another_module_of_the_class_keeps_its_code() -> None:
    model, other = tiny(), tiny()
    own = LlamaMLP.forward
    fuse_gates(model)
    assert LlamaMLP.forward is own and "forward" not in other.model.layers[0].mlp.__dict__
