"""The trie of cached blocks against the obvious model: a dictionary of token prefixes."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tunebatch.engine.blocks import BlockPool
from tunebatch.engine.prefix_cache import CachedBlock, PrefixCache

NUM_BLOCKS = 6
BLOCK_SIZE = 2

Tokens = tuple[int, ...]
# Two tokens and at most four blocks, so that beginnings are often alike.
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=4 * BLOCK_SIZE).map(tuple)


def packed(tokens: Tokens) -> list[bytes]:
    full = range(0, len(tokens) - BLOCK_SIZE + 1, BLOCK_SIZE)
    return [array("i", tokens[at : at + BLOCK_SIZE]).tobytes() for at in full]


@dataclass
class Owner:
    """A sequence: its tokens, how many of its blocks are full and its table."""

    tokens: Tokens
    node: CachedBlock
    num_full: int
    table: list[int]

    def prefix(self, depth: int) -> Tokens:
        return self.tokens[: depth * BLOCK_SIZE]


class CacheMachine(RuleBasedStateMachine):
    """Sequences come with hits, fill blocks, cache them and go.

    The model is ``cached``, from every prefix of whole blocks that is cached to its block; ``idle``, the
    prefixes whose blocks nobody owns, in the order in which they must be evicted; and ``memory``, which
    tokens each block was last written with.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
        self.cache = PrefixCache(self.pool)
        self.owners: list[Owner] = []
        self.cached: dict[Tokens, int] = {}
        self.idle: list[Tokens] = []
        self.memory: dict[int, Tokens] = {}

    def num_owners(self, block: int) -> int:
        return sum(owner.table.count(block) for owner in self.owners)

    @rule(tokens=TOKENS)
    def arrive(self, tokens: Tokens) -> None:
        count = (len(tokens) - 1) // BLOCK_SIZE
        node = self.cache.lookup(packed(tokens), count)
        depth = 0
        while depth < count and tokens[: (depth + 1) * BLOCK_SIZE] in self.cached:
            depth += 1
        assert node.depth == depth, "the hit is too short or too long"
        shared = node.path()
        assert shared == [self.cached[tokens[: d * BLOCK_SIZE]] for d in range(1, depth + 1)]
        assert [self.memory[b] for b in shared] == [tokens[: d * BLOCK_SIZE] for d in range(1, depth + 1)]

        missing = self.pool.blocks_for(len(tokens)) - depth
        idle_hits = [prefix for prefix in self.idle if self.cached[prefix] in shared]
        assert self.pool.num_idle(shared) == len(idle_hits)
        owned = {block for owner in self.owners for block in owner.table}
        left = NUM_BLOCKS - len(owned | set(shared))
        assert self.pool.num_free - len(idle_hits) == left, "a hit is counted as free, too"
        if missing > left:
            return
        self.idle = [prefix for prefix in self.idle if prefix not in idle_hits]
        for block in shared:
            self.pool.share(block)
        num_evicted = max(0, missing - (left - len(self.idle)))
        evicted, self.idle = self.idle[:num_evicted], self.idle[num_evicted:]
        before = list(self.pool.generation)
        taken = self.pool.allocate(missing)
        assert {self.cached.pop(prefix) for prefix in evicted} <= set(taken), "another one was evicted"
        assert not set(taken) & (owned | set(shared) | set(self.cached.values()))
        after = [number + (block in taken) for block, number in enumerate(before)]
        assert self.pool.generation == after
        self.owners.append(Owner(tokens, node, depth, shared + taken))

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def fill(self, data: st.DataObject) -> None:
        """Compute some more blocks; the model says which of them become cached."""
        owner = data.draw(st.sampled_from(self.owners))
        full = len(owner.tokens) // BLOCK_SIZE
        count = data.draw(st.integers(owner.num_full, full))
        for index in range(owner.num_full, count):
            block = owner.table[index]
            assert self.num_owners(block) == 1 and block not in self.cached.values(), "shared, but written"
            self.memory[block] = owner.prefix(index + 1)
        owner.num_full = count
        owner.node = self.cache.extend(owner.node, packed(owner.tokens), count, owner.table)
        depth = 0
        while depth < count:
            prefix = owner.prefix(depth + 1)
            if self.cached.setdefault(prefix, owner.table[depth]) != owner.table[depth]:
                break
            depth += 1
        assert owner.node.depth == depth

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        owner = self.owners.pop(data.draw(st.integers(0, len(self.owners) - 1)))
        self.cache.settle(owner.node, packed(owner.tokens), owner.num_full, owner.table)
        for depth in range(1, owner.num_full + 1):
            self.cached.setdefault(owner.prefix(depth), owner.table[depth - 1])
            assert owner.table[depth - 1] == self.cached[owner.prefix(depth)], "computed twice, kept twice"
        self.pool.release(owner.table)
        # What nobody owns any more, or was idle and is used again, is idle from now on, tails first.
        now_idle = [owner.prefix(depth) for depth in range(owner.num_full, 0, -1)]
        now_idle = [prefix for prefix in now_idle if self.num_owners(self.cached[prefix]) == 0]
        self.idle = [prefix for prefix in self.idle if prefix not in now_idle] + now_idle

    @invariant()
    def matches(self) -> None:
        self.pool.check_integrity()
        self.cache.check_integrity()
        assert len(self.cache) == len(self.cached)
        assert all(self.pool.num_owners(block) == self.num_owners(block) for block in range(NUM_BLOCKS))
        assert list(self.pool.idle) == [self.cached[prefix] for prefix in self.idle]
        for position, prefix in enumerate(self.idle):
            assert not any(prefix[: len(head)] == head for head in self.idle[:position]), "a head goes first"

    def teardown(self) -> None:
        while self.owners:
            self.pool.release(self.owners.pop().table)
        assert self.pool.num_free == NUM_BLOCKS, "a block leaked"


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_equal_hashes_are_no_hit() -> None:
    """The hash of packed tokens may collide; what decides is the tokens."""

    class Colliding(bytes):
        def __hash__(self) -> int:
            return 7

    pool = BlockPool(4, BLOCK_SIZE)
    cache = PrefixCache(pool)
    one, other = Colliding(b"aaaa"), Colliding(b"bbbb")
    table = pool.allocate(1)
    cache.extend(cache.root, [one], 1, table)
    assert cache.lookup([one], 1).path() == table
    assert cache.lookup([other], 1) is cache.root


def test_the_same_block_after_another_beginning_is_another_block() -> None:
    pool = BlockPool(4, BLOCK_SIZE)
    cache = PrefixCache(pool)
    cache.extend(cache.root, packed((1, 1, 2, 2)), 2, pool.allocate(2))
    assert cache.lookup(packed((2, 2)), 1).depth == 0
    assert cache.lookup(packed((1, 1, 2, 2)), 2).depth == 2
    assert cache.lookup(packed((1, 1, 2, 2)), 1).depth == 1


def test_what_was_computed_twice_is_kept_once_and_what_follows_it_is_kept() -> None:
    pool = BlockPool(6, BLOCK_SIZE)
    cache = PrefixCache(pool)
    tokens = packed((1, 1, 2, 2, 3, 3))
    first, second = pool.allocate(2), pool.allocate(3)
    node = cache.extend(cache.root, tokens, 2, first)
    stopped = cache.extend(cache.root, tokens, 3, second)
    assert stopped is cache.root and len(cache) == 2
    last = second[2]
    cache.settle(stopped, tokens, 3, second)
    assert second == [*first, last] and pool.num_free == 3
    pool.release(second)
    cache.settle(node, tokens, 2, first)
    pool.release(first)
    assert cache.lookup(tokens, 3).path() == [*first, last]
    assert pool.allocate(4)[-1] == last, "the tail is evicted first"
    cache.check_integrity()


def test_only_what_has_an_owner_can_be_kept() -> None:
    with pytest.raises(ValueError, match="no owner"):
        BlockPool(2, 4).keep(0)
