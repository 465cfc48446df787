"""Rotary embeddings of queries and keys in one launch, for which the models' own code takes ten.

The function is found by its name in the forward of any module, and by what it computes: to the last bit one
of the published forms, on numbers that are not a rotation's. The module then runs the same code with another
function of that name; the function itself, and with it whatever else runs the code, is left as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

NAME = "apply_rotary_pos_emb"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_HEAD_DIM = 16  # of a sample
_HEADS = 4  # of a program: of a Llama 8B ten rotate a token


@torch.inference_mode()
def fuse_rotary(model: nn.Module) -> int:
    """Each module that rotates in a known way does so in one launch from now on; returns how many do."""
    fused: dict[tuple[FunctionType, torch.dtype, torch.device], FunctionType | None] = {}
    count = 0
    for module in model.modules():
        forward = _forward_of(module)
        weight = None if forward is None else next(module.parameters(), None)
        if forward is None or weight is None:
            continue
        kind = forward, weight.dtype, weight.device
        if kind not in fused:
            fused[kind] = _fused(*kind)
        if (fused_forward := fused[kind]) is not None:
            # Not another module: what looks at it finds what it was.
            module.forward = MethodType(fused_forward, module)
            count += 1
    return count


def take_apart(model: nn.Module) -> None:
    """Each module rotates by its own code again."""
    for module in model.modules():
        forward, own = module.__dict__.get("forward"), type(module).forward
        if isinstance(forward, MethodType) and isinstance(own, FunctionType):
            function = forward.__func__
            if function.__code__ is own.__code__ and function.__globals__ is not own.__globals__:
                del module.forward


def rotate(
    own: Callable[..., Any],
    keeps_dtype: bool,
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    unsqueeze_dim: int = 1,
) -> Any:
    """Queries and keys rotated, in the dtype that torch's operations would give them.

    Args:
        own: What it stands for, and what computes that which is not packed.
        keeps_dtype: What is computed in the dtype of ``cos`` is rounded to that of ``q``, as OLMo 2 does.
        q: ``[1, heads, tokens, dim]``, and ``k`` alike; tokens before heads if ``unsqueeze_dim`` is 2.
        cos: ``[1, tokens, rotated]``, and ``sin`` alike; of a head what goes beyond is not rotated.
    """
    if not _packed(q, k, cos, sin, unsqueeze_dim):
        return own(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
    computed = torch.promote_types(q.dtype, cos.dtype)
    dtype = q.dtype if keeps_dtype else computed
    by_token = (q[0].transpose(0, 1), k[0].transpose(0, 1)) if unsqueeze_dim == 1 else (q[0], k[0])
    outs = _launched(*by_token, cos[0], sin[0], dtype, computed == dtype)
    return tuple(out.transpose(0, 1)[None] if unsqueeze_dim == 1 else out[None] for out in outs)


def _launched(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, round_products: bool
) -> tuple[Tensor, Tensor]:
    """Of ``q [tokens, heads, dim]``, ``k`` alike, and ``cos [tokens, rotated]``, ``sin`` alike."""
    # Not above: a CPU is served without Triton.
    from tunebatch.execute.torch.kernels.rotary import rotary_kernel

    (tokens, q_heads, dim), k_heads = q.shape, k.shape[1]
    half = cos.shape[1] // 2
    rest = dim - 2 * half
    half_padded, rest_padded = (1 << max(0, size - 1).bit_length() for size in (half, rest))
    outs = q.new_empty(q.shape, dtype=dtype), k.new_empty(k.shape, dtype=dtype)
    rotary_kernel[tokens, -(-q_heads // _HEADS) + -(-k_heads // _HEADS)](
        *outs,
        q,
        k,
        cos,
        sin,
        q_heads,
        k_heads,
        *q.stride()[:2],
        *k.stride()[:2],
        cos.stride(0),
        sin.stride(0),
        HALF=half,
        HALF_PADDED=half_padded,
        REST=rest,
        REST_PADDED=rest_padded,
        HEADS=_HEADS,
        ROUND_PRODUCTS=round_products,
        num_warps=max(1, min(4, _HEADS * half_padded // 256)),
        # In float32 a product that is added before it was rounded would not be torch's.
        enable_fp_fusion=False,
    )
    return outs


def as_published(keeps_dtype: bool, x: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> Tensor:
    """The same of one of both by torch's operations, in the order in which models have them."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    rotated, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    left, right = rotated.chunk(2, -1)
    whole = torch.cat([rotated * cos + torch.cat([-right, left], -1) * sin, rest], -1)
    return whole.to(x.dtype) if keeps_dtype else whole


def _packed(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> bool:
    """Whether all are of one row of tokens, in the shapes and dtypes that the kernel takes."""
    if unsqueeze_dim not in (1, 2) or q.dim() != 4 or k.dim() != 4 or cos.dim() != 3:
        return False
    tokens, dim, rotated = q.shape[3 - unsqueeze_dim], q.shape[-1], cos.shape[-1]
    return (
        q.shape[0] == k.shape[0] == 1
        and cos.shape == sin.shape == (1, tokens, rotated)
        and k.shape[3 - unsqueeze_dim] == tokens
        and k.shape[-1] == dim >= rotated
        and rotated % 2 == 0
        and q.stride(-1) == k.stride(-1) == cos.stride(-1) == sin.stride(-1) == 1
        and q.dtype == k.dtype
        and q.dtype in _DTYPES
        and cos.dtype == sin.dtype
        and cos.dtype in _DTYPES
    )


def _forward_of(module: nn.Module) -> FunctionType | None:
    """Its class's, if that calls a function of the name; a decorated one has the name in what it wraps."""
    forward = type(module).forward
    if "forward" in module.__dict__ or not isinstance(forward, FunctionType):
        return None
    return forward if NAME in forward.__code__.co_names else None


def _fused(forward: FunctionType, dtype: torch.dtype, device: torch.device) -> FunctionType | None:
    own = forward.__globals__.get(NAME)
    keeps_dtype = _keeps_dtype(own, dtype, device) if callable(own) else None
    if own is None or keeps_dtype is None:
        return None
    around = {**forward.__globals__, NAME: partial(rotate, own, keeps_dtype)}
    fused = FunctionType(
        forward.__code__, around, forward.__name__, forward.__defaults__, forward.__closure__
    )
    fused.__kwdefaults__ = forward.__kwdefaults__
    return fused


def _keeps_dtype(own: Callable[..., Any], dtype: torch.dtype, device: torch.device) -> bool | None:
    """Of the published forms the one that it is; None if it is another."""
    parameters = list(inspect.signature(own).parameters.values())
    if [parameter.name for parameter in parameters[4:]] != ["unsqueeze_dim"] or parameters[4].default != 1:
        return None
    samples = list(_samples(dtype, device))
    for keeps_dtype in (False, True):
        if all(_same(own, keeps_dtype, *sample) for sample in samples):
            return keeps_dtype
    return None


def _samples(
    dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, int]]:
    """What `rotate` is given: cosines in two dtypes, of whole heads and of parts, in both orders."""
    generator = torch.Generator(device).manual_seed(7)

    def numbers(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    q, k = numbers(1, 4, 3, _HEAD_DIM).to(dtype), numbers(1, 2, 3, _HEAD_DIM).to(dtype)
    for of_cos in (dtype, torch.float32):
        for rotated in (_HEAD_DIM, _HEAD_DIM // 4):
            cos, sin = (numbers(1, 3, rotated).to(of_cos) for _ in range(2))
            yield q, k, cos, sin, 1
            yield q.transpose(1, 2), k.transpose(1, 2), cos, sin, 2


def _same(
    own: Callable[..., Any], keeps_dtype: bool, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int
) -> bool:
    try:
        got = own(q, k, cos, sin, unsqueeze_dim=dim)
    except RuntimeError:
        # Not of parts of heads, as Llama's; what cannot do whole ones is another form.
        return cos.shape[-1] < _HEAD_DIM
    want = tuple(as_published(keeps_dtype, x, cos, sin, dim) for x in (q, k))
    return (
        isinstance(got, tuple)
        and len(got) == 2
        and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(got, want, strict=True))
    )
