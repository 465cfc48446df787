"""How much memory an executor takes for its KV cache where the memory is not its alone.

Plain arithmetic, so that what will be taken can be told before anything is loaded.
"""

from __future__ import annotations

# On a CPU: so much, or a few of the longest sequences, and never more than a share of what is free.
CPU_KV_BYTES = 512 * 2**20
CONTEXTS, CPU_SHARE = 4, 0.25


def cpu_kv_bytes(free_bytes: int, context_bytes: int) -> int:
    """What is taken on a CPU.

    Args:
        free_bytes: Memory that is available once the weights are loaded.
        context_bytes: Keys and values of one sequence as long as the model's context.
    """
    return min(max(CPU_KV_BYTES, CONTEXTS * context_bytes), int(max(0, free_bytes) * CPU_SHARE))


def blocks_of_slots(max_slots: int, max_context: int, block_size: int) -> int:
    """The most blocks that all batch slots could fill."""
    return max_slots * -(-max_context // block_size)
