"""The KV cache as a pool of fixed-size blocks, counted by reference."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable


class BlockPool:
    """Hands out KV blocks by index; a block returns to the pool when its last owner lets go.

    Reference counts let several block tables share one block. The free list is a stack, so the
    blocks used last, and still warm in the CPU's caches, are used first.

    A block whose content is kept becomes idle instead, until somebody shares it again. Idle blocks count
    as free: when nothing else is, the one that has been idle longest is evicted and given away.

    Args:
        num_blocks: Blocks in the pool.
        block_size: Tokens per block.

    Attributes:
        generation: How often each block was allocated. What was computed for a block elsewhere (the
            cache of a draft model) is of its present content if this was the same then.
        kept: Blocks whose content is kept.
        idle: Those of them without an owner, idle longest first.
        on_evict: Told of every block whose content is given up.
    """

    __slots__ = ("_free", "_refs", "block_size", "generation", "idle", "kept", "num_blocks", "on_evict")

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs blocks and tokens in them, got {num_blocks} x {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._refs = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self.generation = [0] * num_blocks
        self.kept: set[int] = set()
        self.idle: OrderedDict[int, None] = OrderedDict()
        self.on_evict: Callable[[int], None] | None = None

    @property
    def num_free(self) -> int:
        """Blocks that nobody owns, idle ones included."""
        return len(self._free) + len(self.idle)

    @property
    def num_used(self) -> int:
        """Blocks that somebody owns."""
        return self.num_blocks - self.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` tokens occupy."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks, each with one owner.

        Raises:
            MemoryError: Fewer than ``count`` are free; nothing is taken then.
        """
        if count > self.num_free:
            raise MemoryError(f"{count} KV blocks wanted, {self.num_free} of {self.num_blocks} free")
        free = self._free
        taken = [free.pop() if free else self._evict() for _ in range(count)]
        for block in taken:
            self._refs[block] = 1
            self.generation[block] += 1
        return taken

    def share(self, block: int) -> None:
        """Add an owner to a block that has one, or that is idle."""
        if self._refs[block] < 1:
            if block not in self.idle:
                raise ValueError(f"block {block} has no owner to share it with, nor content that is kept")
            del self.idle[block]
        self._refs[block] += 1

    def keep(self, block: int) -> None:
        """Keep the content of a block when its last owner lets go."""
        if self._refs[block] < 1:
            raise ValueError(f"block {block} has no owner, so it has no content to keep")
        self.kept.add(block)

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of these blocks of kept content count as free until they are shared."""
        return sum(self._refs[block] == 0 for block in blocks)

    def release(self, blocks: list[int]) -> None:
        """Drop one owner of each block; tails first, so that the head of a prompt stays longest."""
        refs = self._refs
        for block in reversed(blocks):
            refs[block] -= 1
            if refs[block] == 0:
                if block in self.kept:
                    self.idle[block] = None
                else:
                    self._free.append(block)
            elif refs[block] < 0:
                raise ValueError(f"block {block} was released by somebody who did not own it")

    def num_owners(self, block: int) -> int:
        return self._refs[block]

    def check_integrity(self) -> None:
        """Assert that every block is either free and unowned, or owned and not free."""
        free = {*self._free, *self.idle}
        assert len(free) == self.num_free, "a block is free twice"
        assert self.kept.issuperset(self.idle) and self.kept.isdisjoint(self._free)
        for block, owners in enumerate(self._refs):
            assert (owners == 0) == (block in free), f"block {block}: {owners} owners, free={block in free}"

    def _evict(self) -> int:
        block, _ = self.idle.popitem(last=False)
        self.kept.remove(block)
        if self.on_evict is not None:
            self.on_evict(block)
        return block
