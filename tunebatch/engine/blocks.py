"""The KV cache as a pool of fixed-size blocks, counted by reference."""

from __future__ import annotations


class BlockPool:
    """Hands out KV blocks by index; a block returns to the pool when its last owner lets go.

    Reference counts let several block tables share one block. The free list is a stack, so the
    blocks used last, and still warm in the CPU's caches, are used first.

    Args:
        num_blocks: Blocks in the pool.
        block_size: Tokens per block.
    """

    __slots__ = ("_free", "_refs", "block_size", "num_blocks")

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs blocks and tokens in them, got {num_blocks} x {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._refs = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` tokens occupy."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks, each with one owner.

        Raises:
            MemoryError: Fewer than ``count`` are free; nothing is taken then.
        """
        if count > len(self._free):
            raise MemoryError(f"{count} KV blocks wanted, {len(self._free)} of {self.num_blocks} free")
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._refs[block] = 1
        return taken

    def share(self, block: int) -> None:
        """Add an owner to a block that has one."""
        if self._refs[block] < 1:
            raise ValueError(f"block {block} has no owner to share it with")
        self._refs[block] += 1

    def release(self, blocks: list[int]) -> None:
        """Drop one owner of each block; tails first, so that the head of a prompt stays longest."""
        refs = self._refs
        for block in reversed(blocks):
            refs[block] -= 1
            if refs[block] == 0:
                self._free.append(block)
            elif refs[block] < 0:
                raise ValueError(f"block {block} was released by somebody who did not own it")

    def num_owners(self, block: int) -> int:
        return self._refs[block]

    def check_integrity(self) -> None:
        """Assert that every block is either free and unowned, or owned and not free."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is twice in the free list"
        for block, owners in enumerate(self._refs):
            assert (owners == 0) == (block in free), f"block {block}: {owners} owners, free={block in free}"
