"""A step for an attention kernel alone: queries, a paged cache that holds its contexts, and what is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunebatch.execute.torch.attention.base import AttentionBackend, KvCache, StepContext, Variant


@dataclass(frozen=True, slots=True)
class Heads:
    """An attention layer's sizes."""

    kv_heads: int
    group: int
    dim: int

    @property
    def query_heads(self) -> int:
        return self.kv_heads * self.group


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """One step of one layer.

    Attributes:
        starts: Tokens of each sequence that are in the cache before; ``counts``: those that the step adds.
        context_keys, context_values: ``[context, kv_heads, dim]`` of each sequence, new tokens included.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    variant: Variant
    step: StepContext
    starts: list[int]
    counts: list[int]
    context_keys: list[Tensor]
    context_values: list[Tensor]

    def attend(self, backend: AttentionBackend) -> Tensor:
        return backend.attend(self.query, self.key, self.value, 0, self.variant, self.step)

    def exact(self) -> Tensor:
        """What attention gives in float64, one sequence at a time, straight from its definition."""
        outs = []
        first = 0
        for start, count, keys, values in zip(
            self.starts, self.counts, self.context_keys, self.context_values, strict=True
        ):
            outs.append(_attended(self.query[first : first + count], keys, values, start, self.variant))
            first += count
        return torch.cat(outs)

    def wrong_slots(self) -> int:
        """Tokens of the step whose keys or values are not where the cache should hold them."""
        kept = [pool.flatten(0, 1)[self.step.cache_slots] for pool in self.step.cache.layers[0]]
        wrong = (kept[0] != self.key).flatten(1).any(1) | (kept[1] != self.value).flatten(1).any(1)
        return int(wrong.sum())


def attention_step(
    backend: AttentionBackend,
    heads: Heads,
    starts: Sequence[int],
    counts: Sequence[int],
    variant: Variant,
    *,
    dtype: torch.dtype,
    device: str,
    block_size: int,
    seed: int,
    keep_contexts: bool = True,
) -> AttentionStep:
    """Random numbers in scattered pages; sequences of more than one token first.

    Args:
        keep_contexts: Only for `AttentionStep.exact`, which holds them once more; the cache is random either
            way.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device, dtype=torch.float32).to(dtype)

    lens = [start + count for start, count in zip(starts, counts, strict=True)]
    width = -(-max(lens) // block_size)
    num_blocks = len(lens) * width
    tables = torch.randperm(num_blocks, generator=generator, device=device).view(len(lens), width)
    pools = tuple(randn(num_blocks, block_size, heads.kv_heads, heads.dim).contiguous() for _ in range(2))
    ends = torch.tensor([0, *counts]).cumsum(0)
    total = int(ends[-1])
    key, value = (randn(total, heads.kv_heads, heads.dim) for _ in range(2))
    context_keys: list[Tensor] = []
    context_values: list[Tensor] = []
    slots, positions = [], []
    for row, (start, length) in enumerate(zip(starts, lens, strict=True)):
        place = torch.arange(length, device=device)
        where = tables[row, place // block_size] * block_size + place % block_size
        slots.append(where[start:])
        positions.append(place[start:])
        if keep_contexts:
            new = slice(int(ends[row]), int(ends[row + 1]))
            for pool, added, kept in ((pools[0], key, context_keys), (pools[1], value, context_values)):
                kept.append(torch.cat([pool.flatten(0, 1)[where[:start]], added[new]]))
    several = [i for i, count in enumerate(counts) if count > 1]
    return AttentionStep(
        query=randn(total, heads.query_heads, heads.dim),
        key=key,
        value=value,
        variant=variant,
        step=StepContext(
            cache=KvCache(num_blocks, block_size, backend.new_pools, {0: pools}),
            positions=torch.cat(positions),
            query_start=ends.to(device),
            context_lens=torch.tensor(lens, device=device),
            block_tables=tables.contiguous(),
            cache_slots=torch.cat(slots),
            slices=[(int(ends[i]), counts[i], starts[i]) for i in several],
            num_slice_tokens=sum(counts[i] for i in several),
            max_context_len=max(lens),
            context_sum=sum(lens),
        ),
        starts=list(starts),
        counts=list(counts),
        context_keys=context_keys,
        context_values=context_values,
    )


def _attended(query: Tensor, keys: Tensor, values: Tensor, start: int, variant: Variant) -> Tensor:
    group = query.shape[1] // keys.shape[1]
    q = query.double()
    k, v = (part.double().repeat_interleave(group, 1) for part in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", q, k) * variant.scale
    if variant.softcap is not None:
        scores = variant.softcap * torch.tanh(scores / variant.softcap)
    rows = torch.arange(start, start + len(query), device=query.device)[:, None]
    columns = torch.arange(len(keys), device=query.device)[None, :]
    hidden = columns > rows
    if variant.window is not None:
        hidden |= columns <= rows - variant.window
    scores = scores.masked_fill(hidden, -torch.inf)
    highest = scores.amax(-1, keepdim=True)
    sinks = None if variant.sinks is None else variant.sinks.double().view(-1, 1, 1)
    if sinks is not None:
        highest = torch.maximum(highest, sinks)
    weights = (scores - highest).exp()
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + (sinks - highest).exp()
    return torch.einsum("hqk,khd->qhd", weights / total, v)
