"""Whether a model fits into the memory that is free, before it is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunebatch.measure.kv_memory import KvLayout
from tunebatch.measure.memory_plan import KV_BYTES, activation_bytes, weight_bytes
from tunebatch.models.architecture import Architecture, architecture
from tunebatch.models.parameters import count_parameters
from tunebatch.models.shapes import SHAPES

Asked = tuple[str, Architecture, str]  # name, sizes, dtype

# What has to fit beside the weights when nothing else is said: one sequence, in one step.
_LEAST_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Need:
    """The least that a model takes, predicted.

    Attributes:
        kv_bytes: Of the smallest KV cache that is of use, or of the one asked for.
        kv_bytes_per_token: Of that.
        step_bytes: Activations of a step.
    """

    weight_bytes: int
    kv_bytes: int
    kv_bytes_per_token: int
    step_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.step_bytes


def need(
    model: Architecture, dtype: str, kv_tokens: int | None = None, step_tokens: int | None = None
) -> Need:
    """What a model takes.

    Args:
        dtype: Of weights and KV cache.
        kv_tokens: Tokens of the KV cache; None: those of one sequence.
        step_tokens: Of a step; None: as many.
    """
    tokens = min(model.max_context, _LEAST_TOKENS)
    layout = KvLayout(model.kv_heads, model.head_dim, model.windows, KV_BYTES[dtype])
    return Need(
        weight_bytes=weight_bytes(count_parameters(model), dtype),
        kv_bytes=layout.bytes_per_token * (tokens if kv_tokens is None else kv_tokens),
        kv_bytes_per_token=layout.bytes_per_token,
        step_bytes=activation_bytes(model, step_tokens or tokens, KV_BYTES[dtype]),
    )


def dtype_of(model: Architecture, dtype: str, device: str) -> str:
    """What ``auto`` is: float32 on a CPU, and otherwise as published."""
    if dtype != "auto":
        return dtype
    return "float32" if device == "cpu" else model.dtype


def why_too_large(models: Sequence[Asked], room_bytes: int, kv_tokens: int | None = None) -> str | None:
    """Why models do not fit beside each other, in one line; None when they do.

    Args:
        models: The first is the one in whose place a smaller one is named.
        room_bytes: Free memory.
        kv_tokens: Of the KV cache of each, see `need`.
    """
    needs = [need(sizes, dtype, kv_tokens) for _, sizes, dtype in models]
    total = sum(one.total_bytes for one in needs)
    if total <= room_bytes:
        return None
    named = " and ".join(f"{name} in {dtype}" for name, _, dtype in models)
    weights, kv = sum(one.weight_bytes for one in needs), sum(one.kv_bytes for one in needs)
    parts = f"weights {gib(weights)}, KV cache {gib(kv)}, a step {gib(total - weights - kv)}"
    instead = _instead(models, room_bytes - total + needs[0].total_bytes, kv_tokens)
    return f"{named}: {gib(total)} needed (predicted: {parts}), {gib(room_bytes)} free; {instead}"


def _instead(models: Sequence[Asked], room_bytes: int, kv_tokens: int | None) -> str:
    """The largest shape that fits in place of the first; beside a draft one of the same vocabulary."""
    _, sizes, dtype = models[0]
    fitting: dict[str, int] = {}
    for name, shape in SHAPES.items():
        other = architecture(shape.config)
        total = need(other, dtype, kv_tokens).total_bytes
        if total <= room_bytes and (len(models) == 1 or other.vocab == sizes.vocab):
            fitting[name] = total
    if not fitting:
        return "no named shape fits" + (" beside this draft" if len(models) > 1 else "")
    return f"the nearest that fits is {max(fitting, key=lambda name: fitting[name])}"


def gib(count: int) -> str:
    """``15.6 GiB``"""
    return f"{count / 2**30:.3g} GiB"
