"""What a gate lets through, ``silu(gate) * up``, in one launch instead of two.

Found in any model by what it computes: a module is replaced whose output is to the last bit that of two
projections, one of which gates the other by SiLU, or of one that is both, and of a third.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunebatch.execute.torch.own_forward import restore_forwards

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of a sample's rows: large ones meet what clamps, small ones tell activations apart.
_SCALES = (1.0, 10.0, 0.1, 1e-2)
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Gated:
    """The projections of a module.

    Attributes:
        up: None where ``gate`` computes both, itself first.
    """

    gate: nn.Linear
    up: nn.Linear | None
    down: nn.Linear

    def inner(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is gated, after its gate."""
        if self.up is not None:
            return self.gate(x), self.up(x)
        gate, up = self.gate(x).chunk(2, -1)
        return gate, up


@torch.inference_mode()
def fuse_gates(model: nn.Module) -> int:
    """Each module of that kind gates in one launch from now on; returns how many do."""
    count = 0
    for module in model.modules():
        layers = next((one for one in _may_be(module) if _is(module, one)), None)
        if layers is not None:
            # Not another module: weights keep their names, and what looks at them finds them.
            module.forward = partial(gated_projection, layers)
            count += 1
    return count


def take_apart(model: nn.Module) -> None:
    """Each module computes by its own code again."""
    restore_forwards(model, gated_projection)


def gated_projection(layers: Gated, x: Tensor) -> Tensor:
    """Of ``x [..., width]``; also where the first two layers are merged (`merged.MergedProjection`)."""
    gated: Tensor = layers.down(silu_times(*layers.inner(x)))
    return gated


def silu_times(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, both ``[..., width]``: in float32, rounded where torch rounds."""
    # Not above: a CPU is served without Triton.
    from tunebatch.execute.torch.kernels.gate import gate_kernel

    width = gate.shape[-1]
    out = gate.new_empty(gate.shape)
    gate, up = (x.reshape(-1, width) for x in (gate, up))
    gate, up = (x if x.stride(1) == 1 else x.contiguous() for x in (gate, up))
    gate_kernel[len(gate), -(-width // _BLOCK)](
        out, gate, up, width, gate.stride(0), up.stride(0), BLOCK=_BLOCK, num_warps=4
    )
    return out


def _may_be(module: Any) -> Iterator[Gated]:
    """By the shapes of its linear layers, if it is a module of one input with nothing hooked to it."""
    linear = [child for child in module.children() if isinstance(child, nn.Linear)]
    if (
        len(linear) not in (2, 3)
        or any(layer.weight.dtype not in _DTYPES for layer in linear)
        or any(True for _ in module.parameters(recurse=False))
        or "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
        or len(inspect.signature(module.forward).parameters) != 1
    ):
        return
    for gate, *up, down in permutations(linear):
        wide = down.in_features if up else 2 * down.in_features
        if all((one.in_features, one.out_features) == (down.out_features, wide) for one in (gate, *up)):
            yield Gated(gate, up[0] if up else None, down)


def _is(module: nn.Module, layers: Gated) -> bool:
    weight = layers.gate.weight
    generator = torch.Generator(weight.device).manual_seed(7)
    rows = torch.randn(len(_SCALES), layers.gate.in_features, generator=generator, device=weight.device)
    x = (rows * torch.tensor(_SCALES, device=weight.device)[:, None]).to(weight.dtype)[None]
    gate, up = layers.inner(x)
    return torch.equal(module(x), layers.down(F.silu(gate) * up))
