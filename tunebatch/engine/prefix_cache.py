"""Prompts that begin alike share the blocks of their beginning.

The cached blocks are a trie: a node is one full block, found under the block before it by its very
tokens. So a hit is a comparison of tokens, never of a hash alone, and a block is the same only after
the same beginning (the identity of vLLM's automatic prefix caching, 2023; a tree as in SGLang's
RadixAttention, 2023, but of whole blocks).
"""

from __future__ import annotations

from tunebatch.engine.blocks import BlockPool


class CachedBlock:
    """A full block of tokens after those of its parent.

    Attributes:
        tokens: Its token ids, packed.
        block: Its index in the pool; -1 for the root, which holds nothing.
        depth: Blocks from the beginning of the prompt to the end of this one.
    """

    __slots__ = ("block", "children", "depth", "parent", "tokens")

    def __init__(self, parent: CachedBlock | None, tokens: bytes, block: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.block = block
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: dict[bytes, CachedBlock] = {}

    def path(self) -> list[int]:
        """The pool's blocks from the beginning of the prompt to this one."""
        blocks: list[int] = []
        node = self
        while node.parent is not None:
            blocks.append(node.block)
            node = node.parent
        blocks.reverse()
        return blocks


class PrefixCache:
    """The trie of the blocks that the pool keeps.

    Whoever owns a cached block owns all those before it. So a block is idle no later than those before
    it, and the pool, which evicts what was idle first, evicts the tail of a chain before its head.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._nodes: dict[int, CachedBlock] = {}
        self.root = CachedBlock(None, b"", -1)
        pool.on_evict = self._forget

    def __len__(self) -> int:
        return len(self._nodes)

    def lookup(self, blocks: list[bytes], count: int) -> CachedBlock:
        """The last of the first ``count`` blocks of tokens that, with all before it, is cached."""
        node = self.root
        for tokens in blocks if count == len(blocks) else blocks[:count]:
            child = node.children.get(tokens)
            if child is None:
                break
            node = child
        return node

    def extend(self, node: CachedBlock, blocks: list[bytes], count: int, table: list[int]) -> CachedBlock:
        """Cache the blocks after ``node`` of a block table whose first ``count`` are full; return the last.

        Ends before a block whose tokens are cached in another one, computed by two at the same time: the
        owner of this one does not own the other, so it must not own cached blocks after it.
        """
        while node.depth < count:
            tokens, block = blocks[node.depth], table[node.depth]
            child = node.children.get(tokens)
            if child is None:
                child = self._add(node, tokens, block)
            elif child.block != block:
                break
            node = child
        return node

    def settle(self, node: CachedBlock, blocks: list[bytes], count: int, table: list[int]) -> None:
        """`extend` for a table that is about to be released: trades blocks that were computed twice for
        the cached ones, so that what comes after them is cached too."""
        while (node := self.extend(node, blocks, count, table)).depth < count:
            twin = node.children[blocks[node.depth]]
            self._pool.share(twin.block)
            self._pool.release([table[node.depth]])
            table[node.depth] = twin.block
            node = twin

    def check_integrity(self) -> None:
        """Assert what must hold at any time; for tests."""
        pool = self._pool
        assert set(self._nodes) == pool.kept
        idle_since = {block: i for i, block in enumerate(pool.idle)}
        todo, seen = [self.root], 0
        while todo:
            node = todo.pop()
            for tokens, child in node.children.items():
                assert child.tokens == tokens and child.parent is node and child.depth == node.depth + 1
                assert self._nodes[child.block] is child
                seen += 1
                if child.block in idle_since and node.block in idle_since:
                    assert idle_since[child.block] < idle_since[node.block], "a head before its tail"
            if node is not self.root:
                owners = sum(pool.num_owners(child.block) for child in node.children.values())
                assert pool.num_owners(node.block) >= owners, "a tail is owned without its head"
            todo += node.children.values()
        assert seen == len(self._nodes), "a cached block is out of reach"

    def _add(self, parent: CachedBlock, tokens: bytes, block: int) -> CachedBlock:
        node = parent.children[tokens] = self._nodes[block] = CachedBlock(parent, tokens, block)
        self._pool.keep(block)
        return node

    def _forget(self, block: int) -> None:
        node = self._nodes.pop(block)
        assert node.parent is not None
        del node.parent.children[node.tokens]


class Computing:
    """The blocks that prompts are about to cache, so that others that begin alike can wait for them.

    A prompt that is being computed announces the first block that it will add to the cache, and after each
    of its chunks the next. Who would compute that block too finds it in a later step, and with it what else
    the two share; SGLang puts such requests off as well (in-batch prefix caching, from 32 tokens on).
    """

    __slots__ = ("_keys", "_owners")

    def __init__(self) -> None:
        self._owners: dict[tuple[CachedBlock, bytes], list[bytes]] = {}
        self._keys: dict[int, tuple[CachedBlock, bytes]] = {}

    def announce(self, owner: int, node: CachedBlock, blocks: list[bytes]) -> None:
        """Sequence ``owner`` goes on after ``node`` with its ``blocks``, all that its prompt fills."""
        self.forget(owner)
        if node.depth < len(blocks):
            key = (node, blocks[node.depth])
            if key not in self._owners:
                self._owners[key] = blocks
                self._keys[owner] = key

    def forget(self, owner: int) -> None:
        """The sequence computes no prompt any more."""
        key = self._keys.pop(owner, None)
        if key is not None:
            del self._owners[key]

    def __contains__(self, owner: int) -> bool:
        return owner in self._keys

    def num_alike(self, node: CachedBlock, blocks: list[bytes], count: int) -> int:
        """How many of the first ``count`` blocks, from ``node`` on, are being computed for another."""
        count = min(count, len(blocks))
        if not self._owners or node.depth >= count:
            return 0
        theirs = self._owners.get((node, blocks[node.depth]), [])
        alike = node.depth
        while alike < min(count, len(theirs)) and blocks[alike] == theirs[alike]:
            alike += 1
        return alike - node.depth
