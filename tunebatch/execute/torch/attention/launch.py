"""How a step is cut into programs for the attention kernels: by nothing that only the device knows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tunebatch.execute.torch.attention.base import StepContext

# Rows of a tile: 16, the least that tensor cores take, for decodes, which wait for memory whatever they
# compute; 128 for prompts, which compute. In float32 tensor cores do not help, and registers are short.
_ROWS, _ROWS_FLOAT32 = (16, 64, 128), (16, 32)
# Bytes of keys that are read at a time, and as many of values; in float32 half, or registers spill.
_KEY_BYTES, _KEY_BYTES_FLOAT32 = 16 * 2**10, 8 * 2**10
# Of the loop over keys, as Triton counts: with 5, blocks are looked up four steps ahead, and keys and values
# loaded two; with 3, two and one, which leaves float32 its registers.
_STAGES, _STAGES_FLOAT32 = 5, 3
# Programs for each multiprocessor below which contexts are split: of those that wait, several take turns.
_FILL_WAITING, _FILL_COMPUTING = 4, 1
MOST_PARTS = 64


@dataclass(frozen=True, slots=True)
class Kind:
    """What a layer's kernels are compiled for.

    Attributes:
        group: Query heads of each KV head.
        windowed, capped, sinks: See `base.Variant`.
    """

    dtype: torch.dtype
    kv_heads: int
    group: int
    dim: int
    value_dim: int
    block_size: int
    windowed: bool
    capped: bool
    sinks: bool

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows that a tile may have, ascending; the heads of a token are never parted."""
        wide = max(self.dim, self.value_dim) > 128
        allowed = _ROWS_FLOAT32 if self.dtype == torch.float32 else _ROWS[:2] if wide else _ROWS
        return tuple(sorted({max(rows, padded(self.group)) for rows in allowed}))

    @property
    def keys(self) -> int:
        """Keys that a program reads at a time."""
        row_bytes = padded(max(self.dim, self.value_dim)) * self.dtype.itemsize
        at_a_time = _KEY_BYTES_FLOAT32 if self.dtype == torch.float32 else _KEY_BYTES
        return min(128, max(16, at_a_time // row_bytes))


@dataclass(frozen=True, slots=True)
class Tiling:
    """Which compiled kernel: rows of its tiles, and whether no sequence has more tokens than a tile."""

    rows: int
    one_tile: bool
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch, of ``num_sequences`` of a step from the ``first_sequence`` on.

    Attributes:
        grid: Tiles (at most), KV heads, and parts of each context.
    """

    first_sequence: int
    num_sequences: int
    first_token: int
    num_tokens: int
    tiling: Tiling
    grid: tuple[int, int, int]

    @property
    def parts(self) -> int:
        return self.grid[2]


def launches(step: StepContext, num_tokens: int, kind: Kind, processors: int) -> list[Launch]:
    """A step's launches: one, or two where prompts want other tiles than the decodes beside them.

    What a captured graph bakes in, and its key must therefore hold: the numbers of sequences, tokens, slices
    and slice tokens, the most tokens of a slice, and the width of the block tables.

    Args:
        processors: Multiprocessors that should be busy.
    """
    most = max((count for _, count, _ in step.slices), default=1)
    total, slices = len(step.context_lens), step.num_slices
    if slices in (0, total) or _tiling(most, kind).one_tile:
        return [_launch(0, total, 0, num_tokens, most, kind, processors)]
    first_decode = step.num_slice_tokens
    return [
        _launch(0, slices, 0, first_decode, most, kind, processors),
        _launch(slices, total - slices, first_decode, num_tokens - first_decode, 1, kind, processors),
    ]


def one_of_each(kind: Kind) -> list[Launch]:
    """Launches that need every kernel that `launches` may ask for, of a step with one token."""
    return [
        Launch(0, 1, 0, 1, tiling, (1, kind.kv_heads, parts)) for tiling in _tilings(kind) for parts in (1, 2)
    ]


def padded(count: int) -> int:
    """A power of two, as all shapes in Triton are, and not below what its products take."""
    return max(16, 1 << (count - 1).bit_length())


def _tilings(kind: Kind) -> list[Tiling]:
    in_float32 = kind.dtype == torch.float32
    return [
        Tiling(
            rows,
            one_tile=rows < kind.rows[-1],
            num_warps=8 if rows > (16 if in_float32 else 64) else 4,
            num_stages=_STAGES_FLOAT32 if in_float32 else _STAGES,
        )
        for rows in kind.rows
    ]


def _tiling(most_tokens: int, kind: Kind) -> Tiling:
    """The smallest tiles that hold a sequence's tokens, else the largest."""
    fitting = (found for found in _tilings(kind) if most_tokens <= found.rows // kind.group)
    return next(fitting, _tilings(kind)[-1])


def _launch(
    first_sequence: int,
    num_sequences: int,
    first_token: int,
    num_tokens: int,
    most_tokens: int,
    kind: Kind,
    processors: int,
) -> Launch:
    tiling = _tiling(most_tokens, kind)
    tiles = num_sequences if tiling.one_tile else num_tokens // (tiling.rows // kind.group) + num_sequences
    fill = processors * (_FILL_WAITING if tiling.one_tile else _FILL_COMPUTING)
    parts = 1
    while parts < MOST_PARTS and 2 * parts * tiles * kind.kv_heads <= fill:
        parts *= 2
    return Launch(
        first_sequence, num_sequences, first_token, num_tokens, tiling, (tiles, kind.kv_heads, parts)
    )
