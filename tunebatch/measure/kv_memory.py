"""How many sequences a KV cache holds: arithmetic on bytes, before anything is loaded.

    bytes per token = 2 x layers x kv_heads x head_dim x bytes per element
    of a latent     =     layers x (rank + rope)       x bytes per element

A cache in pages wastes no more than the rest of each sequence's last block (Kwon et al., "PagedAttention",
SOSP 2023, arXiv:2309.06180).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tunebatch.models.architecture import Latent

Tokens = NDArray[np.int64]
Floats = NDArray[np.float64]
Bound = Literal["memory", "compute"]


@dataclass(frozen=True, slots=True)
class KvLayout:
    """What keys and values of a model take.

    Attributes:
        kv_heads: Of each layer.
        windows: For each layer how many tokens it sees back; None: all of them.
        element_bytes: Of one number.
        block_size: Tokens of a block.
        latent: What is kept in place of keys and values; None: those.
    """

    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    element_bytes: int
    block_size: int = 16
    latent: Latent | None = None

    @property
    def layers(self) -> int:
        return len(self.windows)

    @property
    def bytes_per_token(self) -> int:
        """Of a token that all layers keep."""
        return self.layers * self._layer_bytes

    @property
    def bytes_per_block(self) -> int:
        return self.bytes_per_token * self.block_size

    @property
    def _layer_bytes(self) -> int:
        numbers = 2 * self.kv_heads * self.head_dim if self.latent is None else self.latent.width
        return numbers * self.element_bytes

    @property
    def products(self) -> int:
        """Multiplications of a query head with a token that it sees: the key's, then the value's.

        Of a latent cache the query is brought to the latent's width instead, so that no keys are made.
        """
        return 2 * self.head_dim if self.latent is None else self.latent.width + self.latent.rank

    def with_heads(self, kv_heads: int) -> KvLayout:
        """The same layers with another number of heads."""
        return replace(self, kv_heads=kv_heads)

    def keeping_all(self) -> KvLayout:
        """A cache that keeps what lies beyond a window too, as one with a single block table has to."""
        return replace(self, windows=(None,) * self.layers)

    def bytes_of(self, tokens: Tokens) -> Tokens:
        """Of sequences with so many tokens, in whole blocks; a window bounds what its layers keep."""
        total = np.zeros(len(tokens), np.int64)
        for window, layers in self._layers_by_window():
            kept = tokens if window is None else np.minimum(tokens, window)
            total += layers * self._layer_bytes * self.block_size * -(-kept // self.block_size)
        return total

    def bytes_read(self, context: float) -> float:
        """Of one decode step of one sequence, which reads what it sees of its context."""
        return self._layer_bytes * self.visible(context)

    def visible(self, context: float) -> float:
        """Tokens that one token sees, summed over the layers."""
        return sum(
            layers * (context if window is None else min(context, window))
            for window, layers in self._layers_by_window()
        )

    def attended(self, start: Floats, num_tokens: Floats) -> Floats:
        """Tokens that those from ``start`` on see, themselves included, summed over them and the layers."""
        total = np.zeros(np.shape(start))
        for window, layers in self._layers_by_window():
            total += layers * (_ramp(start + num_tokens, window) - _ramp(start, window))
        return total

    def bytes_of_seen(self, start: Floats, num_tokens: Floats) -> Floats:
        """Of the keys and values that those tokens see between them, each counted once."""
        total = np.zeros(np.shape(start))
        for window, layers in self._layers_by_window():
            seen = start + num_tokens
            total += layers * (seen if window is None else np.minimum(seen, window - 1 + num_tokens))
        return self._layer_bytes * total

    def _layers_by_window(self) -> list[tuple[int | None, int]]:
        return [(window, self.windows.count(window)) for window in dict.fromkeys(self.windows)]


@dataclass(frozen=True, slots=True)
class SequenceLengths:
    """How long sequences get: a sample of them.

    Attributes:
        name: For people.
        tokens: Prompt and output together, of each.
        mean_context: Tokens before the one that is decoded, the mean over all that are: the prompt, and on
            average half of the output.
        notes: What was done to the lengths.
    """

    name: str
    tokens: Tokens
    mean_context: float
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        return float(self.tokens.mean())

    def percentile(self, q: float) -> int:
        """Rounded up: this share of the sequences is no longer."""
        return math.ceil(np.percentile(self.tokens, q))


@dataclass(frozen=True, slots=True)
class Batches:
    """Sequences that fit together, at their full length.

    Attributes:
        mean: When they are as long as sequences are on average: holds most of the time, with preemptions
            when several long ones meet.
        p95: When each is as long as the p95: safe.
    """

    mean: int
    p95: int


@dataclass(frozen=True, slots=True)
class Fits:
    """What a KV room holds, and the batch to begin with in it.

    Attributes:
        batch: Sequences that fit, each with its own copy of a prefix.
        keeping_all: The same in a cache that keeps what lies beyond a window, as TuneBatch's own does; None
            where no sequence is longer than a window.
        shared: With the prefix stored once; None without a prefix.
        max_batch_size: To begin with; 0: not one sequence fits.
        max_batch_size_shared: The same with the prefix stored once; None without a prefix.
        bound: What keeps ``max_batch_size`` from being larger.
    """

    batch: Batches
    keeping_all: Batches | None
    shared: Batches | None
    max_batch_size: int
    max_batch_size_shared: int | None
    bound: Bound

    @property
    def safe(self) -> int:
        """Sequences as long as the p95 in this engine's cache."""
        return (self.keeping_all or self.batch).p95


def _ramp(tokens: Floats, window: int | None) -> Floats:
    """What the first tokens of a sequence see, summed: 1, 2, 3, up to the window and on with it."""
    rising = tokens if window is None else np.minimum(tokens, window)
    return rising * (rising + 1) / 2 + (0.0 if window is None else (tokens - rising) * window)


def batches(
    kv_room_bytes: int,
    layout: KvLayout,
    lengths: SequenceLengths,
    prefix_tokens: int = 0,
    shared: bool = False,
) -> Batches:
    """How many sequences the room holds.

    Args:
        prefix_tokens: Tokens in front of every sequence, the same for all.
        shared: They are stored once; only whole blocks can be, the rest stays each sequence's own.
    """
    shared_tokens = prefix_tokens // layout.block_size * layout.block_size if shared else 0
    prefix_bytes = int(layout.bytes_of(np.array([shared_tokens]))[0])
    own_tokens = prefix_tokens - shared_tokens
    safe = layout.bytes_of(np.array([own_tokens + lengths.percentile(95)]))[0]
    mean = layout.bytes_of(own_tokens + lengths.tokens).mean()
    room = max(0, kv_room_bytes - prefix_bytes)
    return Batches(int(room // mean), int(room // safe))


def fits(
    kv_room_bytes: int,
    layout: KvLayout,
    lengths: SequenceLengths,
    prefix_tokens: int,
    compute_bound_batch: float | None,
) -> Fits:
    """What the room holds.

    Args:
        compute_bound_batch: More sequences than these only add delay; None: not so, or not known.
    """
    by_compute = math.inf if compute_bound_batch is None else max(1.0, compute_bound_batch)
    longest = prefix_tokens + int(lengths.tokens.max())
    windowed = any(window is not None and window < longest for window in layout.windows)
    kept = layout.keeping_all()
    in_memory = batches(kv_room_bytes, kept, lengths, prefix_tokens)
    sharing = batches(kv_room_bytes, kept, lengths, prefix_tokens, shared=True).p95 if prefix_tokens else None
    return Fits(
        batch=batches(kv_room_bytes, layout, lengths, prefix_tokens),
        keeping_all=in_memory if windowed else None,
        shared=batches(kv_room_bytes, layout, lengths, prefix_tokens, shared=True) if prefix_tokens else None,
        max_batch_size=rounded_down(min(in_memory.p95, by_compute)),
        max_batch_size_shared=None if sharing is None else rounded_down(min(sharing, by_compute)),
        bound="compute" if by_compute < in_memory.p95 else "memory",
    )


def rounded_down(count: float) -> int:
    """To three leading bits (5, 10, 40, 96, 448): a number that looks chosen, and loses less than a fifth."""
    whole = int(count)
    spare = max(0, whole.bit_length() - 3)
    return whole >> spare << spare


def head_counts(heads: int, kv_heads: int) -> Sequence[tuple[str, int]]:
    """The same model's attention in its three forms, most heads first; its own number stands once."""
    forms = [("MHA", heads)]
    if kv_heads not in (1, heads):
        forms.append(("GQA", kv_heads))
    return [*forms, ("MQA", 1)] if heads > 1 else forms
