"""What steps have to move and to compute at least, and what part of the ceilings that is."""

from __future__ import annotations

import numpy as np

from tunebatch.measure.decode_balance import Peaks
from tunebatch.measure.step_work import ModelWork


def decode_bytes(work: ModelWork, batch: int, context: int) -> float:
    """Of a decode step of so many sequences, whose token sees so many: weights, keys and values."""
    count, before, one = np.array([float(batch)]), np.array([context - 1.0]), np.ones(1)
    read = float(work.weights_read(count, count)[0]) * work.weight_bytes
    return read + batch * (float(work.layout.bytes_of_seen(before, one)[0]) + work.layout.bytes_per_token)


def prefill_flops(work: ModelWork, prompts: list[int]) -> float:
    """Of a step that computes whole prompts and one row of logits of each."""
    tokens = np.array(prompts, np.float64)
    attended = float(work.layout.attended(np.zeros(len(prompts)), tokens).sum())
    weights = 2.0 * (work.body_weights * float(tokens.sum()) + work.head_weights * len(prompts))
    return weights + 4.0 * work.heads * work.layout.head_dim * attended


def attention_bytes(batch: int, context: int, kv_heads: int, dim: int, element_bytes: int) -> float:
    """That one layer reads of its cache for so many decodes."""
    return 2.0 * batch * context * kv_heads * dim * element_bytes


def attention_flops(count: int, heads: int, dim: int) -> float:
    """Of one layer for a prompt of so many tokens, each of which sees those before it."""
    return 4.0 * heads * dim * count * (count + 1) / 2.0


def memory_floor_s(bytes_moved: float, ceilings: Peaks) -> float:
    return bytes_moved / ceilings.bytes_per_s


def compute_floor_s(flops: float, ceilings: Peaks) -> float:
    return flops / ceilings.flops_per_s
