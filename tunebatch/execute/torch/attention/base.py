"""What an attention backend is given, and the cache it works on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


@dataclass(slots=True)
class KvCache:
    """Paged keys and values, one pair of pools per layer, made when a layer first writes.

    A layer's own first keys say how many heads of what size it has, so no model's config has to be
    understood. Pools are ``[num_blocks, block_size, kv_heads, head_dim]``.
    """

    num_blocks: int
    block_size: int
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The pools of a layer; ``key`` and ``value`` are ``[tokens, kv_heads, head_dim]``."""
        pools = self.layers.get(index)
        if pools is None:
            pools = (self._pool(key), self._pool(value))
            self.layers[index] = pools
        return pools

    @property
    def bytes_per_token(self) -> int:
        """Of all layers together; known once every layer has written."""
        pools = [pool for pair in self.layers.values() for pool in pair]
        return sum(pool[0, 0].numel() * pool.element_size() for pool in pools)

    def _pool(self, like: Tensor) -> Tensor:
        # Zeros, not garbage: a masked NaN is still a NaN after multiplication by zero.
        return like.new_zeros(self.num_blocks, self.block_size, *like.shape[1:])


@dataclass(slots=True)
class StepContext:
    """One packed step, as attention sees it: slices first, then single decode tokens.

    Attributes:
        query_start: ``[sequences + 1]`` first token of each sequence in the packed step.
        context_lens: ``[sequences]`` tokens in the cache once this step has written.
        block_tables: ``[sequences, max_blocks]`` pool indices.
        cache_slots: ``[tokens]`` where each new token goes, ``block * block_size + offset``.
        slices: ``(first token, tokens, start position)`` of each slice, on the host.
        num_slice_tokens: Tokens of all slices; the decodes follow.
        max_context_len: The longest of ``context_lens``, on the host.
    """

    cache: KvCache
    query_start: Tensor
    context_lens: Tensor
    block_tables: Tensor
    cache_slots: Tensor
    slices: list[tuple[int, int, int]]
    num_slice_tokens: int
    max_context_len: int
    masks: dict[int | None, Tensor] = field(default_factory=dict)

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
    """Attend over what the cache holds; the step's own keys and values are already written."""

    name: str

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, variant: Variant, step: StepContext
    ) -> Tensor:
        """``query [tokens, heads, dim]``, ``key``, ``value [tokens, kv_heads, dim]`` of this step;
        returns ``[tokens, heads, value_dim]``."""
        ...


def write(key: Tensor, value: Tensor, layer: int, step: StepContext) -> None:
    """Put the step's keys and values into their cache slots."""
    for pool, new in zip(step.cache.layer(layer, key, value), (key, value), strict=True):
        pool.view(-1, *pool.shape[2:]).index_copy_(0, step.cache_slots, new)


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
    write(k, v, layer, step_context)
    scale = scaling if scaling is not None else float(q.shape[-1]) ** -0.5
    variant = Variant(scale, sliding_window, softcap, s_aux)
    return backend.attend(q, k, v, layer, variant, step_context)[None], None
