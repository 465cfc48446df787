"""Prompts from hashes of their blocks: equal hashes become equal tokens, so that sharing is reproduced."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tunebatch.workload.clip import Room
from tunebatch.workload.prompts import PromptSource
from tunebatch.workload.traces.row import HASHED_BLOCK_TOKENS, TraceRow


class HashedPrompts:
    """Gives each hash a text; those of hashes with the same one before them part at their first token.

    Args:
        block_tokens: Tokens that a hash stands for; the last block of a prompt may have fewer.
    """

    def __init__(self, prompts: PromptSource, block_tokens: int, rng: np.random.Generator) -> None:
        self._prompts = prompts
        self._block_tokens = block_tokens
        self._rng = rng
        self._texts: dict[int, tuple[int, ...]] = {}
        self._followers: Counter[int | None] = Counter()

    def prompt(self, hashes: Sequence[int], length: int) -> tuple[int, ...]:
        """The blocks one after another, cut to a length."""
        texts = [self._text(*pair) for pair in itertools.pairwise((None, *hashes))]
        return tuple(itertools.chain.from_iterable(texts))[:length]

    def _text(self, before: int | None, block: int | None) -> tuple[int, ...]:
        assert block is not None
        if block not in self._texts:
            number = self._followers[before]
            self._texts[block] = self._prompts.prompt(number, self._block_tokens, self._rng)
            self._followers[before] += 1
        return self._texts[block]


def scaled_blocks(
    rows: list[TraceRow], limit: Room, kv_block_size: int
) -> tuple[list[TraceRow], int, str | None]:
    """The rows with blocks, and with them all lengths, shrunk until the p99 of the totals fits.

    The size is a multiple of the KV cache's own blocks, and at least one of them: what was shared in
    the trace is shared in whole KV blocks again. What then still is too long is for `build` to clip.

    Returns:
        The rows, the tokens of a block, and what was done, if anything.
    """
    totals = [row.prompt_tokens + row.output_tokens for row in rows]
    fit = limit.tokens / float(np.percentile(totals, 99))
    if fit >= 1:
        return rows, HASHED_BLOCK_TOKENS, None
    size = max(1, math.floor(HASHED_BLOCK_TOKENS * fit / kv_block_size)) * kv_block_size
    if size >= HASHED_BLOCK_TOKENS:
        return rows, HASHED_BLOCK_TOKENS, None
    scaled = [
        replace(
            row,
            prompt_tokens=-(-row.prompt_tokens * size // HASHED_BLOCK_TOKENS),
            output_tokens=-(-row.output_tokens * size // HASHED_BLOCK_TOKENS),
        )
        for row in rows
    ]
    return (
        scaled,
        size,
        f"hashed blocks of {HASHED_BLOCK_TOKENS} tokens scaled to {size}, and all lengths with them, to fit "
        f"a {limit}; requests share the same blocks as in the trace",
    )
