"""The attention kernel against float64 on random steps."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from claimed.claim import Table

from on_gpu.attention_step import Heads, attention_step
from on_gpu.bench import GpuBench
from on_gpu.budget import Budget
from on_gpu.found import WrongResultError
from tunebatch.execute.torch.attention import BACKENDS, triton_refusal
from tunebatch.execute.torch.attention.base import AttentionBackend, Variant
from tunebatch.execute.torch.load import DTYPES

# Of 1 + the result: what rounding of weights and of the result explains; sums are made in float32.
TOLERANCE = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 2e-2}
CASES_OF_A_KIND = 25


@dataclass(frozen=True, slots=True)
class Layer:
    """A kind, which needs kernels of its own that take seconds to compile: a few kinds, many steps each."""

    heads: Heads
    block_size: int = 16
    windowed: bool = False
    capped: bool = False
    sinks: bool = False


# Those that are timed first, then what else models ask for.
LAYERS = (
    Layer(Heads(8, 4, 128)),
    Layer(Heads(8, 2, 128)),
    Layer(Heads(8, 8, 64), sinks=True, windowed=True),
    Layer(Heads(4, 2, 256), block_size=32, capped=True, windowed=True),
    Layer(Heads(1, 12, 96), block_size=64),
    Layer(Heads(32, 1, 128), block_size=128),
    Layer(Heads(2, 7, 80), block_size=256, windowed=True),
)


def check_kernel(bench: GpuBench, budget: Budget) -> tuple[Table, dict[str, object], list[str]]:
    """A few random steps of each kind of layer, in one dtype after the other, those that are timed first.

    Raises:
        WrongResultError: An output differs by more than rounding explains, or a key or value is in a wrong
            place; names the step.
    """
    setting, backend = bench.setting, _backend(bench.setting.device)
    worst: dict[str, float] = {}
    counts: dict[str, int] = {}
    kinds = [(layer, dtype) for dtype in setting.kernel_dtypes for layer in LAYERS]
    wanted = setting.kernel_cases
    for case, (layer, dtype) in enumerate(_in_turn(kinds, wanted)):
        if budget.over():
            break
        error = _error(backend, layer, dtype, case, bench)
        counts[dtype] = counts.get(dtype, 0) + 1
        worst[dtype] = max(worst.get(dtype, 0.0), error)
    done = sum(counts.values())
    rows = [f"{dtype} | {counts[dtype]} | {worst[dtype]:.2g} | {TOLERANCE[dtype]:g}" for dtype in counts]
    missing = [] if done == wanted else [f"{wanted - done} of {wanted} random attention steps: out of time"]
    return (
        Table(
            f"Attention ({backend.name}) against float64 on random steps",
            "dtype | steps | largest error, over 1 + the result | tolerated",
            rows,
        ),
        {"backend": backend.name, "steps": counts, "largest_error": worst},
        missing,
    )


def _in_turn(kinds: list[tuple[Layer, str]], wanted: int) -> Iterator[tuple[Layer, str]]:
    """A handful of steps of a kind, then of the next; more rounds where there are fewer kinds than steps."""
    done = 0
    while True:
        for kind in kinds:
            for _ in range(min(CASES_OF_A_KIND, max(1, wanted // len(kinds)))):
                if done == wanted:
                    return
                yield kind
                done += 1


def _backend(device: str) -> AttentionBackend:
    """Triton's kernels; in a dry run in its interpreter, or else the reference."""
    refused = triton_refusal(device, torch.float32, 128)
    return BACKENDS["reference" if refused else "triton"]()


def _error(backend: AttentionBackend, layer: Layer, dtype: str, seed: int, bench: GpuBench) -> float:
    draw = random.Random(seed)
    longest = bench.setting.longest_kernel_context
    counts, starts = [], []
    for _ in range(draw.choice([0, 0, 1, 1, 2, 3])):
        # A prompt, a later chunk of one, or a token with drafts.
        counts.append(draw.choice([draw.randint(2, longest // 2), draw.randint(2, 8)]))
        starts.append(draw.choice([0, draw.randint(1, longest // 2), layer.block_size]))
    for _ in range(draw.choice([0, 1, 4, 24]) if counts else draw.choice([1, 4, 24])):
        counts.append(1)
        starts.append(draw.choice([draw.randint(0, 40), draw.randint(0, longest - 1)]))
    torch_dtype = DTYPES[dtype]
    sinks = torch.randn(layer.heads.query_heads, generator=torch.Generator().manual_seed(seed))
    made = attention_step(
        backend,
        layer.heads,
        starts,
        counts,
        Variant(
            scale=layer.heads.dim**-0.5,
            window=draw.choice([1, 17, 128, draw.randint(2, longest)]) if layer.windowed else None,
            softcap=draw.choice([5.0, 30.0]) if layer.capped else None,
            sinks=sinks.to(bench.setting.device, torch_dtype) if layer.sinks else None,
        ),
        dtype=torch_dtype,
        device=bench.setting.device,
        block_size=layer.block_size,
        seed=seed,
    )
    exact = made.exact()
    error = float(((made.attend(backend).double() - exact).abs() / (1.0 + exact.abs())).max())
    told = f"attention step {seed} ({layer}, {dtype}, new tokens {counts}, cached {starts})"
    if not error <= TOLERANCE[dtype]:
        raise WrongResultError(f"{told} differs from float64 by {error:.3g}, tolerated {TOLERANCE[dtype]:g}")
    if wrong := made.wrong_slots():
        raise WrongResultError(f"{told}: keys or values of {wrong} tokens are not in their cache slots")
    return error
