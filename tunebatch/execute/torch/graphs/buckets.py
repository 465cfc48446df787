"""Which steps have a graph, and which graph serves a step: plain arithmetic, nothing is captured here."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Of steps with slices. Beyond, computing takes longer than launching, and padding would cost what it saves.
MOST_TOKENS = 640
# Verified tokens ``(of one sequence, of all on average)``: one for drafts of 2, 4 and 8 tokens, and, as few
# sequences may have found any (n-grams), one for 8 that most do not have.
_VERIFIED = ((3, 3), (5, 5), (9, 9), (9, 2))
# Tokens of all chunks in a mixed step, and prompts that they may be of: as many as a policy computes at a
# time, and one for padding. More tiles than there are prompts for would keep contexts from being split.
_CHUNKS = (32, 64, 128, 256, 384, 512)
_MOST_CHUNKS = 9


@dataclass(frozen=True, slots=True)
class Shape:
    """What the host knows of a step.

    Attributes:
        slices: Sequences that are slices, which come first.
        slice_tokens: Of all slices.
        most_tokens: Of the longest slice.
        decodes: Sequences of one token, which follow.
        sampled: Rows of logits that are wanted.
    """

    slices: int
    slice_tokens: int
    most_tokens: int
    decodes: int
    sampled: int

    @property
    def sequences(self) -> int:
        return self.slices + self.decodes

    @property
    def tokens(self) -> int:
        return self.slice_tokens + self.decodes

    @property
    def as_slices(self) -> Shape:
        """The same step with decodes as slices of one token."""
        if not self.decodes:
            return self
        return Shape(self.sequences, self.tokens, max(self.most_tokens, 1), 0, self.sampled)


@dataclass(frozen=True, slots=True)
class Bucket:
    """The steps that one graph serves: what a launch bakes in, and so the graph's key.

    Beside it only the width of the block tables is baked in, which is the same for all; see
    `attention.launch.launches`.

    Attributes:
        shape: Of the padded step. Without decodes it serves those of a step as slices of one token.
    """

    shape: Shape

    def taken(self, step: Shape) -> Shape:
        """The step as this bucket has it."""
        return step if self.shape.decodes else step.as_slices

    def fits(self, step: Shape) -> bool:
        """Whether padding makes the step this bucket's.

        Tokens that pad slices belong to a slice of their own, the last: a step that has none left for it
        must have all tokens.
        """
        step, full = self.taken(step), self.shape
        return (
            step.decodes <= full.decodes
            and step.slices <= full.slices
            and step.slice_tokens <= full.slice_tokens
            and (step.slices < full.slices or step.slice_tokens == full.slice_tokens)
            and step.most_tokens <= full.most_tokens
            and step.sampled <= full.sampled
        )


def decode_bucket(sequences: int) -> Bucket:
    """One token of each sequence."""
    return Bucket(Shape(0, 0, 0, sequences, sequences))


class Buckets:
    """Buckets, of which the smallest that fits serves a step.

    Args:
        buckets: Each captured; what no bucket fits runs without a graph.
    """

    def __init__(self, buckets: Iterable[Bucket]) -> None:
        self._ascending = sorted(
            buckets, key=lambda one: (one.shape.tokens, one.shape.sequences, one.shape.most_tokens)
        )
        self._tokens = [one.shape.tokens for one in self._ascending]
        decodes = [one.shape.decodes for one in self._ascending if not one.shape.slices]
        # Most steps decode, and of them a table knows.
        self._decoding: list[Bucket | None] = [None] * (max(decodes, default=0) + 1)
        for sequences in range(1, len(self._decoding)):
            self._decoding[sequences] = self._first(Shape(0, 0, 0, sequences, sequences))

    def __iter__(self) -> Iterator[Bucket]:
        """Ascending by tokens."""
        return iter(self._ascending)

    def __len__(self) -> int:
        return len(self._ascending)

    def smallest(self, step: Shape) -> Bucket | None:
        """The bucket with the fewest tokens that fits, if any does."""
        if not step.slices and step.sampled == step.decodes < len(self._decoding):
            return self._decoding[step.decodes]
        return self._first(step)

    def _first(self, step: Shape) -> Bucket | None:
        begin = bisect_left(self._tokens, step.tokens)
        return next((one for one in self._ascending[begin:] if one.fits(step)), None)


def buckets_for(max_slots: int) -> list[Bucket]:
    """Those worth a graph: all decode steps, verifications and mixed steps of few tokens.

    Between powers of two, decodes go up by what costs next to nothing to pad: 8, later 16 (vLLM).
    """
    found = [decode_bucket(count) for count in _decodes(max_slots)]
    found += [
        Bucket(Shape(count, count * average, min(most, count * average), 0, count * average))
        for count in _verifying(max_slots)
        for most, average in _VERIFIED
        if count * average <= MOST_TOKENS
    ]
    for decodes in _beside_chunks(max_slots):
        for tokens in _CHUNKS:
            slices = min(_MOST_CHUNKS, 2 + tokens // 32)
            if tokens + decodes <= MOST_TOKENS:
                found.append(Bucket(Shape(slices, tokens, tokens, decodes, slices + decodes)))
    return list(dict.fromkeys(found))


def _decodes(max_slots: int) -> list[int]:
    counts = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_slots, 32), max_slots]
    return sorted({count for count in counts if count <= max_slots})


def _verifying(max_slots: int) -> list[int]:
    """Powers of two; and all slots, once without padding and once with a slice for it."""
    powers = (2**i for i in range(max_slots.bit_length()))
    return sorted({*powers, max_slots, max_slots + 1})


def _beside_chunks(max_slots: int) -> list[int]:
    return sorted({count for count in (8, 32, 128) if count < max_slots} | {max_slots})
