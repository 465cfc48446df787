"""The block pool: no leak, no double owner, no release by a stranger."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tunebatch.engine.blocks import BlockPool

NUM_BLOCKS = 7


class PoolMachine(RuleBasedStateMachine):
    """Random owners against the obvious model: a multiset of owned blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, 4)
        self.tables: list[list[int]] = []

    @rule(count=st.integers(0, NUM_BLOCKS + 1))
    def allocate(self, count: int) -> None:
        owned = {block for table in self.tables for block in table}
        if count > NUM_BLOCKS - len(owned):
            with pytest.raises(MemoryError):
                self.pool.allocate(count)
            return
        taken = self.pool.allocate(count)
        assert len(set(taken)) == count and not owned & set(taken)
        self.tables.append(taken)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        for block in table:
            self.pool.share(block)
        self.tables.append(list(table))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.pool.release(self.tables.pop(index))

    @invariant()
    def counts_match(self) -> None:
        self.pool.check_integrity()
        owners = [block for table in self.tables for block in table]
        assert all(self.pool.num_owners(block) == owners.count(block) for block in range(NUM_BLOCKS))
        assert self.pool.num_used == len(set(owners))
        assert self.pool.num_free == NUM_BLOCKS - len(set(owners))

    def teardown(self) -> None:
        for table in self.tables:
            self.pool.release(table)
        assert self.pool.num_free == NUM_BLOCKS


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_unowned_blocks_can_neither_be_released_nor_shared() -> None:
    pool = BlockPool(2, 4)
    with pytest.raises(ValueError, match="no owner"):
        pool.share(0)
    with pytest.raises(ValueError, match="did not own"):
        pool.release([0])


def test_a_second_release_is_noticed() -> None:
    pool = BlockPool(2, 4)
    taken = pool.allocate(1)
    pool.release(taken)
    with pytest.raises(ValueError, match="did not own"):
        pool.release(taken)


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_blocks_for_rounds_up(tokens: int, blocks: int) -> None:
    assert BlockPool(2, 4).blocks_for(tokens) == blocks


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_an_empty_pool_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="needs blocks"):
        BlockPool(*shape)
