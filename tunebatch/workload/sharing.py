"""How much of its prompts a workload shares."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tunebatch.engine.request import Request
from tunebatch.workload.turns import Turn


def shared_share(
    requests: Iterable[Request], block_size: int, turns: tuple[Turn, ...] | None = None
) -> float:
    """Prompt tokens that a prefix cache which never forgets would not compute, 0 to 1 of all of them.

    An upper bound: every request finds all that those with smaller ids have had, answers of a conversation
    included. Only whole blocks are shared, and of no prompt the last token, which gives the first of
    the output.

    Args:
        block_size: Tokens of a KV block.
        turns: What each request adds to its conversation, by id.
    """
    seen: set[int] = set()
    total = shared = 0
    for request in requests:
        prompt = request.prompt
        # The last token of an answer is only returned, so it is in no cache.
        computed = prompt if turns is None else (*prompt, *turns[request.id].answer[:-1])
        total += len(prompt)
        chain, found = 0, True
        for end in range(block_size, len(computed) + 1, block_size):
            # Of a block with everything before it; two chains do not meet in 64 bits.
            chain = hash((chain, computed[end - block_size : end]))
            found = found and end < len(prompt) and chain in seen
            shared += block_size if found else 0
            seen.add(chain)
    return shared / total if total else 0.0


def sharing_text(share: float) -> str:
    """Words for the share, rounded up as an upper bound is."""
    if not share:
        return "no prompt tokens shared"
    return f"up to {math.ceil(round(100 * share, 6))} % of prompt tokens shared with an earlier request"
