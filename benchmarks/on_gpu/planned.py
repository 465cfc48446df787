"""Steps planned by hand, to be timed one by one: decodes at a context, and prompts."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence

import torch

from tunebatch.engine.group import DecodeGroup
from tunebatch.engine.plan import Slice, StepPlan
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence as Served
from tunebatch.execute.torch.executor import TorchExecutor

WARM_UPS = 3


@torch.inference_mode()
def fill_cache(executor: TorchExecutor) -> None:
    """Random keys and values: of zeros a GPU computes faster than of anything else."""
    decode_steps_s(executor, 1, 1, 1)  # makes the pools
    for pools in executor.cache.layers.values():
        for pool in pools:
            pool.normal_()


def fits(executor: TorchExecutor, batch: int, context: int, steps: int) -> str | None:
    """Why so many sequences of so many tokens, and so many steps of each, cannot be held; or None."""
    if batch > executor.max_slots:
        return f"only {executor.max_slots} slots"
    if context + steps > executor.max_context:
        return f"beyond the context of {executor.max_context:,} tokens"
    blocks = batch * _blocks(executor, context + steps)
    if blocks > executor.num_blocks:
        held = executor.num_blocks * executor.block_size
        return f"the KV cache holds {held:,} tokens"
    return None


def decode_steps_s(
    executor: TorchExecutor, batch: int, context: int, steps: int
) -> list[tuple[float, list[int]]]:
    """Seconds of each decode step, with the context of each sequence in it.

    As the engine has it: a step is submitted while the one before computes, and takes from the tokens of that
    one on the host to its own. Every sequence has blocks of its own, and they lie scattered, as after hours
    of service.
    """
    executor.reset()
    group = DecodeGroup(executor.block_size)
    each = _blocks(executor, context + WARM_UPS + steps)
    blocks = list(range(batch * each))
    random.Random(0).shuffle(blocks)
    prompt = (4,) * context
    for slot in range(batch):
        sequence = Served(Request(slot, prompt, WARM_UPS + steps + 1))
        sequence.num_computed, sequence.slot = context - 1, slot
        sequence.block_table = blocks[slot * each : (slot + 1) * each]
        executor.set_slot(slot, 4 + slot % (executor.vocab_size - 4), context - 1)
        group.join(sequence)
    ends_s: list[float] = []
    in_flight = executor.submit(StepPlan(decodes=group, grown=list(group.members)))
    for _ in range(WARM_UPS + steps - 1):
        group.advance()
        following = executor.submit(StepPlan(decodes=group))
        executor.collect(in_flight)
        ends_s.append(time.perf_counter())
        in_flight = following
    executor.collect(in_flight)
    ends_s.append(time.perf_counter())
    executor.reset()
    return [
        (ends_s[step] - ends_s[step - 1], [context + step] * batch)
        for step in range(WARM_UPS, WARM_UPS + steps)
    ]


def prefill_steps_s(executor: TorchExecutor, prompts: Sequence[int], steps: int) -> list[float]:
    """Seconds of a step that computes prompts of so many random tokens, again and again."""
    found: list[float] = []
    draw = random.Random(1)
    for _ in range(1 + steps):
        executor.reset()
        slices, used = [], 0
        for slot, count in enumerate(prompts):
            text = tuple(draw.choices(range(4, executor.vocab_size), k=count))
            sequence = Served(Request(slot, text, 1))
            blocks = _blocks(executor, count)
            sequence.slot, sequence.block_table = slot, list(range(used, used + blocks))
            used += blocks
            slices.append(Slice(sequence, 0, count))
        began_s = time.perf_counter()
        executor.execute(StepPlan(slices))
        found.append(time.perf_counter() - began_s)
    executor.reset()
    return found[1:]


def middle(seconds: Sequence[float]) -> float:
    return statistics.median(seconds)


def _blocks(executor: TorchExecutor, tokens: int) -> int:
    return -(-tokens // executor.block_size)
