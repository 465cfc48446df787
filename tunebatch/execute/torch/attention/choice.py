"""Which attention backend serves a model on a GPU: of those that can, the one that was fastest just now."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunebatch.execute.torch.attention import flash3, flashinfer
from tunebatch.execute.torch.attention.asked import Asked
from tunebatch.execute.torch.attention.base import AttentionBackend, KvCache, StepContext, Variant
from tunebatch.execute.torch.attention.reference import Reference

# (a call) -> seconds that it takes
Timer = Callable[[Callable[[], object]], float]

# The steps that are measured: decodes of a common batch, and a prompt as long as a step may be by default.
DECODES, CONTEXT, PROMPT = 16, 1024, 2048
# Of the largest output; what 16 bits round is a tenth of it, a wrong mask is many times more.
_TOLERANCE = 3e-2
_CALLS, _ROUNDS = 10, 3
_LEFT_OUT = "cannot be captured as a CUDA graph"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend that may be chosen.

    Attributes:
        refusal_of: Why it cannot serve a layer, or None.
    """

    make: Callable[[], AttentionBackend]
    refusal: Callable[[tuple[int, int]], str | None]
    refusal_of: Callable[[Asked], str | None]


OPTIONAL: dict[str, Candidate] = {
    "flashinfer": Candidate(flashinfer.FlashInfer, flashinfer.refusal, flashinfer.refusal_of),
    "flash-attn-3": Candidate(flash3.FlashAttention3, flash3.refusal, flash3.refusal_of),
}


def why_not(candidate: Candidate, capability: tuple[int, int], layers: Sequence[Asked]) -> str | None:
    """Why a backend cannot serve a model here, or None."""
    if (why := candidate.refusal(capability)) is not None:
        return why
    return next((why for layer in layers if (why := candidate.refusal_of(layer)) is not None), None)


@torch.inference_mode()
def fastest(
    backends: Mapping[str, AttentionBackend],
    layers: Sequence[Asked],
    block_size: int,
    device: torch.device,
    seconds: Timer | None = None,
    among: Collection[str] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Measures a decode and a prefill of the layer that a model has most of.

    Fastest is the least product of both times, so that neither unit nor length of one outweighs the other.
    Who computes something else than the reference, or fails, is not chosen.

    Args:
        backends: Those that can serve the model, by name; the first where none can be measured.
        seconds: Times a call; by default waits for the device before and after.
        among: Names that may be chosen, while the others are measured all the same.

    Returns:
        The name, and for result files microseconds of each, or in one line why there are none; with
        ``left_out`` of those that may not be chosen.
    """
    layer = Counter(layers).most_common(1)[0][0]
    timed = seconds or (lambda call: _seconds(call, device))
    told: dict[str, Any] = {}
    for name, backend in backends.items():
        try:
            if (error := _difference(backend, layer, block_size, device)) > _TOLERANCE:
                told[name] = f"differs from the reference by {error:.2g} of the largest output"
                continue
            told[name] = {
                f"{what}_us": round(1e6 * timed(_call(backend, layer, block_size, device, *shape)), 2)
                for what, shape in (("decode", (DECODES, CONTEXT, 1)), ("prefill", (1, PROMPT, PROMPT)))
            }
            if among is not None and name not in among:
                told[name]["left_out"] = _LEFT_OUT
        except Exception as error:  # of compilers, of drivers, of libraries built for others
            told[name] = f"fails: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    products = {
        name: found["decode_us"] * found["prefill_us"]
        for name, found in told.items()
        if isinstance(found, dict) and "left_out" not in found
    }
    return min(products, key=lambda name: products[name], default=next(iter(backends))), told


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of a call among several in a row, the least of some rounds."""
    best = float("inf")
    for _ in range(_ROUNDS + 1):  # the first compiles
        _wait(device)
        started = time.perf_counter()
        for _ in range(_CALLS):
            call()
        _wait(device)
        best = min(best, (time.perf_counter() - started) / _CALLS)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _call(
    backend: AttentionBackend, layer: Asked, block_size: int, device: torch.device, *shape: int
) -> Callable[[], Tensor]:
    """Attention of a step of ``shape``: sequences, their contexts, and tokens of each that are new."""
    step = _step(backend, block_size, device, *shape)
    parts = _parts(layer, len(step.positions), device)
    variant = _variant(layer, device)
    return lambda: backend.attend(*parts, 0, variant, step)


def _difference(backend: AttentionBackend, layer: Asked, block_size: int, device: torch.device) -> float:
    """Of a prompt's and of decodes' outputs from the reference's, relative to the largest."""
    worst = 0.0
    for num_sequences, context, new in ((2, 3 * block_size - 1, 3 * block_size - 1), (3, block_size + 1, 1)):
        outputs = []
        for one in (backend, Reference()):
            cache = KvCache(num_sequences * 4, block_size, one.new_pools)
            parts = _parts(layer, num_sequences * context, device)
            variant = _variant(layer, device)
            whole = _laid_out(cache, num_sequences, context, context, device)
            prompts = one.attend(*parts, 0, variant, whole)
            if new == context:
                outputs.append(prompts)
                continue
            last = _laid_out(cache, num_sequences, context, new, device)
            rows = torch.arange(1, num_sequences + 1, device=device) * context - 1
            query, key, value = (part[rows] for part in parts)
            outputs.append(one.attend(query, key, value, 0, variant, last))
        got, want = (output.float() for output in outputs)
        error = float((got - want).abs().max() / want.abs().max())
        worst = max(worst, error if error == error else float("inf"))
    return worst


def _parts(layer: Asked, tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, always the same."""
    generator = torch.Generator().manual_seed(7)
    shapes = ((layer.heads, layer.dim), (layer.kv_heads, layer.dim), (layer.kv_heads, layer.value_dim))
    query, key, value = (
        torch.randn(tokens, *shape, generator=generator).to(device, layer.dtype) for shape in shapes
    )
    return query, key, value


def _variant(layer: Asked, device: torch.device) -> Variant:
    variant = layer.variant
    if not layer.sinks:
        return variant
    sinks = torch.zeros(layer.heads, dtype=layer.dtype, device=device)
    return Variant(variant.scale, variant.window, variant.softcap, sinks)


def _step(
    backend: AttentionBackend, block_size: int, device: torch.device, sequences: int, context: int, new: int
) -> StepContext:
    cache = KvCache(sequences * -(-context // block_size), block_size, backend.new_pools)
    return _laid_out(cache, sequences, context, new, device)


def _laid_out(cache: KvCache, sequences: int, context: int, new: int, device: torch.device) -> StepContext:
    """So many sequences of one context, whose last ``new`` tokens are computed; one token is a decode."""
    width = -(-context // cache.block_size)
    tables = torch.arange(sequences * width, device=device).flip(0).view(sequences, width)
    positions = torch.arange(context - new, context, device=device)
    slots = tables[:, positions // cache.block_size] * cache.block_size + positions % cache.block_size
    lens = torch.full((sequences,), context)
    slices = [] if new == 1 else [(i * new, new, context - new) for i in range(sequences)]
    return StepContext(
        cache=cache,
        positions=positions.repeat(sequences),
        query_start=torch.arange(sequences + 1, device=device) * new,
        context_lens=lens.to(device),
        block_tables=tables,
        cache_slots=slots.reshape(-1),
        slices=slices,
        num_slice_tokens=new * len(slices),
        max_context_len=context,
        context_sum=context * sequences,
        host_lens=lens.numpy(),
    )
