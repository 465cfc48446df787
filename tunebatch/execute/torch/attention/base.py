"""What an attention backend is given, and the cache it works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pools = tuple[Tensor, Tensor]
NewPools = Callable[[Tensor, Tensor, int, int], Pools]


@dataclass(slots=True)
class KvCache:
    """Paged keys and values, one pair of pools per layer, made when a layer first writes.

    A layer's own first keys say how many heads of what size it has, so no model's config has to be
    understood. How a pool is laid out in memory is the attention backend's choice.

    Attributes:
        new_pools: ``(key, value, num_blocks, block_size)`` gives a layer's two pools.
    """

    num_blocks: int
    block_size: int
    new_pools: NewPools
    layers: dict[int, Pools] = field(default_factory=dict)

    def layer(self, index: int, key: Tensor, value: Tensor) -> Pools:
        """The pools of a layer; ``key`` and ``value`` are ``[tokens, kv_heads, head_dim]``."""
        pools = self.layers.get(index)
        if pools is None:
            pools = self.new_pools(key, value, self.num_blocks, self.block_size)
            self.layers[index] = pools
        return pools

    @property
    def bytes_per_token(self) -> int:
        """Of all layers together; known once every layer has written."""
        pools = [pool for pair in self.layers.values() for pool in pair]
        return sum(pool[0].numel() * pool.element_size() // self.block_size for pool in pools)

    @property
    def num_bytes(self) -> int:
        """Of the pools that are made."""
        return self.bytes_per_token * self.block_size * self.num_blocks


def pools_by_token(key: Tensor, value: Tensor, num_blocks: int, block_size: int) -> Pools:
    """Both pools ``[num_blocks, block_size, kv_heads, dim]``."""
    # Zeros, not garbage: a masked NaN is still a NaN after multiplication by zero.
    return (
        key.new_zeros(num_blocks, block_size, *key.shape[1:]),
        value.new_zeros(num_blocks, block_size, *value.shape[1:]),
    )


@dataclass(slots=True)
class StepContext:
    """One packed step, as attention sees it: slices first, then single decode tokens.

    In a step that was padded for a graph there are sequences that only pad: whatever tokens they have, their
    context has length 0, and their cache slots are negative.

    Attributes:
        positions: ``[tokens]`` of each token in its sequence.
        query_start: ``[sequences + 1]`` first token of each sequence in the packed step.
        context_lens: ``[sequences]`` tokens in the cache once this step has written.
        block_tables: ``[sequences, max_blocks]`` pool indices.
        cache_slots: ``[tokens]`` where each new token goes, ``block * block_size + offset``.
        slices: ``(first token, tokens, start position)`` of each slice, on the host.
        num_slice_tokens: Tokens of all slices; the decodes follow.
        max_context_len: The longest of ``context_lens``, on the host.
        context_sum: Of ``context_lens``, on the host.
        host_lens: ``context_lens`` on the host, where it laid the step out.
    """

    cache: KvCache
    positions: Tensor
    query_start: Tensor
    context_lens: Tensor
    block_tables: Tensor
    cache_slots: Tensor
    slices: list[tuple[int, int, int]]
    num_slice_tokens: int
    max_context_len: int
    context_sum: int
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    host_lens: NDArray[np.int64] | None = None

    @property
    def num_slices(self) -> int:
        return len(self.slices)


@dataclass(frozen=True, slots=True)
class Variant:
    """What a layer asks of attention beyond causality.

    Attributes:
        scale: Factor on the scores.
        window: A key is visible iff it is fewer than this many tokens back, the query's own included.
        softcap: Scores become ``softcap * tanh(score / softcap)``.
        sinks: ``[query_heads]`` logits that take part in the softmax and are then dropped.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        return self.window is None and self.softcap is None and self.sinks is None


class AttentionBackend(Protocol):
    """Writes a step's keys and values to the cache, and attends over what it holds then."""

    name: str

    def new_pools(self, key: Tensor, value: Tensor, num_blocks: int, block_size: int) -> Pools:
        """Empty pools for a layer with such keys and values, ``[tokens, kv_heads, dim]``."""
        ...

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, variant: Variant, step: StepContext
    ) -> Tensor:
        """``query [tokens, heads, dim]``, ``key``, ``value [tokens, kv_heads, dim]`` of this step;
        returns ``[tokens, heads, value_dim]``."""
        ...


def write(key: Tensor, value: Tensor, layer: int, step: StepContext) -> Pools:
    """Put the step's keys and values into their slots of pools that are laid out by token."""
    pools = step.cache.layer(layer, key, value)
    for pool, new in zip(pools, (key, value), strict=True):
        pool.view(-1, *pool.shape[2:]).index_copy_(0, step.cache_slots, new)
    return pools


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    step_context: StepContext | None = None,
    backend: AttentionBackend | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """The one function that transformers calls for every attention layer of a model.

    ``query [1, heads, tokens, dim]``; returns ``[1, tokens, heads, dim]``.
    """
    if step_context is None or backend is None:
        raise RuntimeError("this architecture does not pass keyword arguments on to its attention layers")
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    layer = int(module.layer_idx)
    scale = scaling if scaling is not None else float(q.shape[-1]) ** -0.5
    variant = Variant(scale, sliding_window, softcap, s_aux)
    return backend.attend(q, k, v, layer, variant, step_context)[None], None
