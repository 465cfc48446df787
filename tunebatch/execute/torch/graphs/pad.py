"""A step becomes one of its bucket's: where its parts lie in the buffer that graphs read, and what pads them.

Padding rows are sequences like others, of one or more tokens, but with a context of length 0 and negative
cache slots: nothing is written for them, they attend to nothing, and no other row sees them. Tokens that pad
slices belong to the last slice of the bucket; where it has more of them than a tile of the kernel has rows,
nobody writes what the rest attended to, which then is whatever was there, in rows that nobody reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tunebatch.execute.torch.graphs.buckets import Bucket, Buckets, Shape

Ints = NDArray[np.int64]

# Numbers that may travel beside a step's inputs, for each sequence: its slot, what the host tells of it, and
# where its drafts go; and for each sampled row how it is drawn.
_BESIDE_A_SEQUENCE, _BESIDE_A_SAMPLE = 32, 4


@dataclass(frozen=True, slots=True)
class Step:
    """A step as it is laid out for the device, before padding; see `attention.base.StepContext`.

    Attributes:
        tables: ``[sequences, blocks]``, as wide as the step needs them.
    """

    shape: Shape
    tokens: Ints
    positions: Ints
    cache_slots: Ints
    sampled_at: Ints
    query_start: Ints
    context_lens: Ints
    tables: Ints


@dataclass(frozen=True)
class Layout:
    """The one buffer: six parts, each as long as the largest bucket's, the block tables, and more.

    As a part begins at the same place for all buckets, what a graph reads is a prefix of each. Tables are as
    wide as their step needs them, lest all columns of the longest context travel in every step.

    Attributes:
        tokens, sampled, sequences: Of the largest buckets.
        columns: Blocks of the longest context.
    """

    tokens: int
    sampled: int
    sequences: int
    columns: int

    @classmethod
    def of(cls, buckets: Buckets, columns: int) -> Layout:
        """The least that has room for each of them."""
        shapes = [one.shape for one in buckets]
        return cls(
            tokens=max(shape.tokens for shape in shapes),
            sampled=max(shape.sampled for shape in shapes),
            sequences=max(shape.sequences for shape in shapes),
            columns=columns,
        )

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each begins: tokens, positions, cache slots, sampled rows, query starts, context lengths,
        block tables."""
        sizes = (self.tokens,) * 3 + (self.sampled, self.sequences + 1, self.sequences)
        return (0, *np.cumsum(sizes).tolist())

    @property
    def beside(self) -> int:
        """The most that may travel beside a step, behind its tables."""
        return _BESIDE_A_SEQUENCE * self.sequences + _BESIDE_A_SAMPLE * self.sampled

    @property
    def size(self) -> int:
        return self.starts[-1] + self.sequences * self.columns + self.beside


def lay_out(out: Ints, layout: Layout, bucket: Bucket, step: Step) -> int:
    """Write a step, padded, into ``out``; returns how many rows of block tables it has there."""
    full, real = bucket.shape, bucket.taken(step.shape)
    at = layout.starts
    for begin, part, padding in (
        (at[0], step.tokens, 0),
        (at[1], step.positions, 0),
        (at[2], step.cache_slots, -1),
    ):
        _two(out[begin : begin + full.tokens], part, real.slice_tokens, full.slice_tokens, padding)
    sampled = out[at[3] : at[3] + full.sampled]
    behind = step.sampled_at >= real.slice_tokens
    sampled[: real.sampled] = step.sampled_at + behind * (full.slice_tokens - real.slice_tokens)
    sampled[real.sampled :] = 0
    begins = out[at[4] : at[4] + full.sequences + 1]
    begins[: real.slices] = step.query_start[: real.slices]
    begins[real.slices : full.slices] = real.slice_tokens
    begins[full.slices :] = np.arange(full.slice_tokens, full.tokens + 1)
    _two(out[at[5] : at[5] + full.sequences], step.context_lens, real.slices, full.slices, 0)
    rows = full.slices + real.decodes if real.decodes else real.slices
    width = step.tables.shape[1]
    tables = out[at[6] : at[6] + rows * width].reshape(rows, width)
    tables[: real.slices] = step.tables[: real.slices]
    if real.decodes:
        tables[real.slices : full.slices] = 0
        tables[full.slices :] = step.tables[real.slices :]
    return rows


def _two(out: Ints, part: Ints, first: int, then_at: int, padding: int) -> None:
    """The first so many of a part, the others from ``then_at`` on, and padding behind both."""
    end = then_at + len(part) - first
    out[:first] = part[:first]
    out[first:then_at] = padding
    out[then_at:end] = part[first:]
    out[end:] = padding


def empty_step() -> Step:
    """No sequence at all: padded, it is padding alone."""
    none = np.zeros(0, np.int64)
    return Step(Shape(0, 0, 0, 0, 0), none, none, none, none, np.zeros(1, np.int64), none, none.reshape(0, 0))
