"""RMS norms in one launch each, which the models' own code computes in eight.

A decode step of a few sequences is hundreds of launches that each take longer than what they compute, and of
a Llama two in five are its norms'. vLLM and nano-vllm have them in model code of their own; here they are
found in any model by what they compute: a module is replaced whose output is to the last bit that of a norm
as published, with its own weights.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tunebatch.execute.torch.own_forward import restore_forwards

# Of a sample's rows: the smallest tell what is added to the variance, and where.
_SCALES = (1.0, 30.0, 1e-2, 1e-3)


@dataclass(frozen=True, slots=True)
class Form:
    """How a norm rounds, and what its weights are.

    Attributes:
        round_first: To the input's dtype, and then multiply by the weight, as Llama does; else the product
            alone is rounded, as OLMo 2 has it.
        plus_one: The weight is what is added to 1, as Gemma has it.
    """

    round_first: bool
    plus_one: bool


FORMS = (Form(True, False), Form(False, False), Form(False, True))


@torch.inference_mode()
def fuse_norms(model: nn.Module) -> int:
    """Each norm of the model that is known computes in one launch from now on; returns how many do."""
    count = 0
    for norm in model.modules():
        eps = _eps_of(norm)
        form = None if eps is None else _form_of(norm, eps)
        if form is not None:
            # Not another module: the weight keeps its name, and what looks at it finds it.
            norm.forward = partial(rms_norm, norm.weight, eps, form)
            count += 1
    return count


def take_apart(model: nn.Module) -> None:
    """Each norm computes by its own code again."""
    restore_forwards(model, rms_norm)


def rms_norm(weight: Tensor, eps: float | None, form: Form, x: Tensor) -> Tensor:
    """The norm of ``x [..., width]``, in float32 and then in the dtype of ``x``."""
    # Not above: a CPU is served without Triton.
    from tunebatch.execute.torch.kernels.rms_norm import rms_norm_kernel

    width = x.shape[-1]
    x, outer_stride, inner, inner_stride = _rows_apart(x)
    out = x.new_empty(x.shape)
    padded = 1 << (width - 1).bit_length()
    rms_norm_kernel[x.numel() // width,](
        out,
        x,
        weight,
        eps,
        inner,
        outer_stride,
        inner_stride,
        WIDTH=width,
        WIDTH_PADDED=padded,
        ROUND_FIRST=form.round_first,
        PLUS_ONE=form.plus_one,
        num_warps=max(1, min(8, padded // 512)),
    )
    return out


def as_published(weight: Tensor, eps: float, form: Form, x: Tensor) -> Tensor:
    """The same by torch's operations, in the order in which models have them."""
    normed = x.to(torch.float32)
    normed = normed * torch.rsqrt(normed.pow(2).mean(-1, keepdim=True) + eps)
    if form.round_first:
        return weight * normed.to(x.dtype)
    return ((1.0 + weight.float() if form.plus_one else weight) * normed).to(x.dtype)


def _rows_apart(x: Tensor) -> tuple[Tensor, int, int, int]:
    """Where rows begin: as steps along two dimensions, such as tokens and heads of a part of a projection."""
    leading = [(size, stride) for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size > 1]
    if x.is_contiguous() or x.stride(-1) != 1 or len(leading) > 2:
        return x.contiguous(), x.shape[-1], 1, 0
    outer, inner = leading if len(leading) == 2 else (leading[0], (1, 0))
    return x, outer[1], inner[0], inner[1]


def _eps_of(norm: Any) -> float | None:
    """Of what may be a norm: a module of one input with one vector of weights, and nothing hooked to it."""
    named = dict(norm.named_parameters(recurse=False))
    if (
        list(named) != ["weight"]
        or named["weight"].dim() != 1
        or any(True for _ in norm.children())
        or any(True for _ in norm.buffers(recurse=False))
        or "forward" in norm.__dict__
        or norm._forward_hooks
        or norm._forward_pre_hooks
        or len(inspect.signature(norm.forward).parameters) != 1
    ):
        return None
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return float(eps) if isinstance(eps, (int, float)) else None


def _form_of(norm: Any, eps: float) -> Form | None:
    weight = norm.weight
    generator = torch.Generator(weight.device).manual_seed(7)
    rows = torch.randn(len(_SCALES), len(weight), generator=generator, device=weight.device)
    x = (rows * torch.tensor(_SCALES, device=weight.device)[:, None]).to(weight.dtype)
    own = norm(x)
    if own.dtype != x.dtype:
        return None
    return next((form for form in FORMS if torch.equal(own, as_published(weight, eps, form, x))), None)
