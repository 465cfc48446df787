"""What sequences share of their beginnings: which blocks they find, wait for and leave to others."""

from __future__ import annotations

from collections.abc import Iterable

from tunebatch.engine.blocks import BlockPool
from tunebatch.engine.group import DecodeGroup
from tunebatch.engine.prefix_cache import CachedBlock, Computing, PrefixCache
from tunebatch.engine.sequence import Sequence

# A request waits for blocks that another prompt is just computing, if there are so many that it shares.
LEAST_AWAITED_BLOCKS = 2


class PrefixSharing:
    """The prefix cache as sequences see it.

    Args:
        pool: Whose blocks keep their content.
        decodes: Knows how far the sequences are that decode.

    Attributes:
        cache: The blocks that prompts to come may share.
    """

    __slots__ = ("_block_size", "_computing", "_decodes", "cache")

    def __init__(self, pool: BlockPool, decodes: DecodeGroup) -> None:
        self.cache = PrefixCache(pool)
        self._computing = Computing()
        self._decodes = decodes
        self._block_size = pool.block_size

    def hit(self, sequence: Sequence) -> CachedBlock:
        """The end of what is cached of a sequence's tokens.

        The last token is never a hit, since what follows it is sampled from its logits. Its whole block is
        computed again then, in a block of its own: a shared one is never written.
        """
        count = (sequence.num_tokens - 1) // self._block_size
        return self.cache.lookup(sequence.block_tokens(count, self._block_size), count)

    def is_awaited(self, sequence: Sequence, hit: CachedBlock) -> bool:
        """Another prompt computes much of what comes after the hit."""
        count = (sequence.num_tokens - 1) // self._block_size
        blocks = sequence.block_tokens(count, self._block_size)
        return self._computing.num_alike(hit, blocks, count) >= LEAST_AWAITED_BLOCKS

    def begin(self, sequence: Sequence, hit: CachedBlock) -> None:
        """A sequence has the blocks of its hit, and computes what comes after them."""
        sequence.cached = hit
        blocks = sequence.block_tokens(sequence.num_tokens // self._block_size, self._block_size)
        self._computing.announce(sequence.id, hit, blocks)

    def extend(self, sequence: Sequence) -> None:
        """Let prompts to come share the blocks that a running sequence has filled."""
        if sequence.cached is None:
            return
        tokens, count = self._filled(sequence)
        sequence.cached = self.cache.extend(sequence.cached, tokens, count, sequence.block_table)
        if sequence.id in self._computing:
            if sequence.num_uncomputed:
                self._computing.announce(sequence.id, sequence.cached, tokens)
            else:
                self._computing.forget(sequence.id)

    def leave(self, sequence: Sequence) -> None:
        """Keep what a sequence has filled, before its blocks are released."""
        self._computing.forget(sequence.id)
        if sequence.cached is not None:
            tokens, count = self._filled(sequence)
            self.cache.settle(sequence.cached, tokens, count, sequence.block_table)
            sequence.cached = None

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Assert that those that run begin with the blocks that they share; for tests."""
        self.cache.check_integrity()
        for sequence in running:
            assert sequence.cached is not None
            assert sequence.cached.path() == sequence.block_table[: sequence.cached.depth]

    def _filled(self, sequence: Sequence) -> tuple[list[bytes], int]:
        """Tokens of a sequence's blocks, and how many of those blocks are computed to their end."""
        computed = sequence.num_computed
        if sequence.row >= 0:
            computed = self._decodes.num_computed(sequence)
        count = computed // self._block_size
        tokens = sequence.block_tokens(count, self._block_size)
        return tokens, min(count, len(tokens))
