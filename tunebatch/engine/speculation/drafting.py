"""Which sequences draft in a step, and how much: as many tokens as they can use and have blocks for."""

from __future__ import annotations

from tunebatch.engine.blocks import BlockPool
from tunebatch.engine.group import DecodeGroup
from tunebatch.engine.plan import StepPlan
from tunebatch.engine.sequence import Sequence
from tunebatch.engine.speculation.speculator import Speculator


def drafted(
    plan: StepPlan, decodes: DecodeGroup, kv: BlockPool, speculator: Speculator
) -> list[tuple[Sequence, tuple[int, ...]]]:
    """The members of the group that have drafts, with these; their blocks are allocated and in the plan."""
    depth = speculator.depth(len(decodes))
    if depth == 0:
        return []
    wanted = [
        (member, count)
        for member in decodes.members
        if (count := _room(plan, member, depth, decodes, kv)) > 0
    ]
    proposed = speculator.propose(wanted, kv.generation)
    return [(member, tuple(drafts)) for (member, _), drafts in zip(wanted, proposed, strict=True) if drafts]


def _room(plan: StepPlan, member: Sequence, depth: int, decodes: DecodeGroup, kv: BlockPool) -> int:
    """How many drafts a member can use, with blocks for them where no other will soon want these."""
    computed = decodes.num_computed(member)
    made = computed - member.num_computed
    count = min(depth, member.request.max_tokens - member.num_output - made - 1)
    table = member.block_table
    missing = kv.blocks_for(computed + 1 + count) - len(table)
    if missing <= 0:
        return count
    if missing + len(decodes) > kv.num_free:
        return len(table) * kv.block_size - computed - 1
    table += kv.allocate(missing)
    plan.grown.append(member)
    return count
