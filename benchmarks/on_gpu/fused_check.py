"""What is fused into one launch against the operations of torch that it stands for, on random numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from claimed.claim import Table
from torch import Tensor

from on_gpu.bench import GpuBench
from on_gpu.found import WrongResultError
from tunebatch.execute.torch import fused_norms, fused_rotary
from tunebatch.execute.torch.attention import triton_refusal
from tunebatch.execute.torch.fused_gates import silu_times
from tunebatch.execute.torch.load import DTYPES

# Of 1 + the result: a few units in the last place.
TOLERANCE = {"float32": 4e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
HEADS, KV_HEADS, DIM = 8, 2, 128
Pair = tuple[str, Tensor, Tensor]


def check_fused(bench: GpuBench) -> tuple[list[Table], dict[str, object]]:
    """In each dtype, of one token and of many, as parts of merged projections.

    Raises:
        WrongResultError: A result differs by more than rounding explains; names it.
    """
    device = bench.setting.device
    equal: dict[tuple[str, str], list[float]] = {}
    worst: dict[tuple[str, str], float] = {}
    for dtype in bench.setting.kernel_dtypes:
        if triton_refusal(device, DTYPES[dtype], DIM):
            continue
        for tokens in (1, 3) if bench.setting.dry else (1, 33, bench.setting.longest_kernel_context):
            for what, got, want in _pairs(tokens, DTYPES[dtype], device):
                error = float(((got.double() - want.double()).abs() / (1.0 + want.double().abs())).max())
                if not error <= TOLERANCE[dtype]:
                    raise WrongResultError(
                        f"{what} of {tokens} tokens in {dtype} differs from torch's by {error:.3g}, "
                        f"tolerated {TOLERANCE[dtype]:g}"
                    )
                equal.setdefault((what, dtype), []).append(float((got == want).double().mean()))
                worst[what, dtype] = max(error, worst.get((what, dtype), 0.0))
    if not equal:
        return [], {}
    table = Table(
        "In one launch, against the operations of torch",
        "what | dtype | equal to the last bit | largest error, over 1 + the result | tolerated",
        [
            f"{what} | {dtype} | {min(shares):.3%} | {worst[what, dtype]:.2g} | {TOLERANCE[dtype]:g}"
            for (what, dtype), shares in equal.items()
        ],
    )
    rows = [
        {"what": what, "dtype": dtype, "equal": min(shares), "largest_error": worst[what, dtype]}
        for (what, dtype), shares in equal.items()
    ]
    return [table], {"rows": rows}


def _pairs(tokens: int, dtype: torch.dtype, device: str) -> Iterator[Pair]:
    """What a kernel gives, and what torch does."""
    generator = torch.Generator(device).manual_seed(tokens)

    def numbers(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device).to(dtype)

    sizes = [heads * DIM for heads in (HEADS, KV_HEADS, KV_HEADS)]
    q, k, _ = (
        part.view(1, tokens, -1, DIM).transpose(1, 2)
        for part in numbers(1, tokens, sum(sizes)).split(sizes, -1)
    )
    for form in fused_norms.FORMS:
        given = numbers(DIM), 1e-6, form, q.transpose(1, 2)
        yield "norms", fused_norms.rms_norm(*given), fused_norms.as_published(*given)
    for rotated in (DIM, DIM // 4):
        cos, sin = numbers(1, tokens, rotated), numbers(1, tokens, rotated)
        got = fused_rotary.rotate(_never, False, q, k, cos, sin)
        for x, one in zip((q, k), got, strict=True):
            yield "rotary", one, fused_rotary.as_published(False, x, cos, sin, 1)
    gate, up = (4 * numbers(1, tokens, 2 * HEADS * DIM)).chunk(2, -1)
    yield "gates", silu_times(gate, up), F.silu(gate) * up


def _never(*_: object, **__: object) -> tuple[Tensor, Tensor]:
    raise AssertionError("not what the kernel takes")
