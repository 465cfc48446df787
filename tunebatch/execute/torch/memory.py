"""The memory that a loaded model takes, as it is: beside what was predicted from its config."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from tunebatch.engine.plan import Slice, StepPlan
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.execute.torch.executor import TorchExecutor

# Of a step whose activations are measured: so many tokens first, to see how many the time allows.
_FIRST_TOKENS, _STEP_S = 64, 3.0
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class MeasuredMemory:
    """What a loaded model takes.

    Attributes:
        weight_bytes: Memory of the parameters, tied ones once; without copies that kernels keep.
        kv_bytes_per_token: Of all layers, as their pools are.
        num_blocks: KV blocks that the executor took.
        max_slots: Batch slots, which bound the blocks that it takes.
        activation_tokens: Of the step in which ``activation_bytes`` was the most that existed at once beside
            weights and KV cache.
        activation_rows: Tokens that the step sampled.
    """

    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    num_blocks: int
    block_size: int
    dtype: str
    device: str
    max_slots: int
    activation_tokens: int
    activation_rows: int
    activation_bytes: int


def measure_memory(executor: TorchExecutor, batched_tokens: int = 2048) -> MeasuredMemory:
    """Runs a few steps, in the first of which every layer makes its pools, and reads sizes off tensors.

    Args:
        batched_tokens: Of the step whose activations are measured; fewer where the device would take seconds
            for so many, or the cache does not hold them.
    """
    graphs = executor.slots.graphs
    executor.use_graphs(None)  # whose temporaries were allocated before
    room = executor.num_blocks * executor.block_size
    first = min(_FIRST_TOKENS, batched_tokens, room)
    executor.logits(prefills(executor, first))
    started = time.perf_counter()
    executor.logits(prefills(executor, first)).sum().item()
    affordable = int(first * _STEP_S / (time.perf_counter() - started))
    step = prefills(executor, min(batched_tokens, room, max(first, affordable)))
    activations = _peak_bytes(executor, step)
    executor.use_graphs(graphs)
    executor.reset()
    parameters = list(executor.model.parameters())
    memory = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in parameters}
    return MeasuredMemory(
        parameters=sum(p.numel() for p in parameters),
        weight_bytes=sum(memory.values()),
        kv_bytes_per_token=executor.cache.bytes_per_token,
        num_blocks=executor.num_blocks,
        block_size=executor.block_size,
        dtype=str(executor.model.dtype).removeprefix("torch."),
        device=executor.device.type,
        max_slots=executor.max_slots,
        activation_tokens=step.num_slice_tokens,
        activation_rows=len(step.slices),
        activation_bytes=activations,
    )


def prefills(executor: TorchExecutor, num_tokens: int) -> StepPlan:
    """Prompts of so many tokens together; in as many as there are slots, none longer than it has to be."""
    length = max(_CHUNK, -(-num_tokens // executor.max_slots))
    # A prompt takes whole blocks, and leaves its context one token to generate.
    length = min(length // executor.block_size * executor.block_size, executor.max_context - 1)
    blocks = -(-length // executor.block_size)
    slices: list[Slice] = []
    for slot in range(min(executor.max_slots, -(-num_tokens // length), executor.num_blocks // blocks or 1)):
        count = min(length, num_tokens - slot * length)
        sequence = Sequence(Request(id=slot, prompt=(0,) * count, max_tokens=1))
        needed = -(-count // executor.block_size)
        sequence.block_table, sequence.slot = list(range(slot * blocks, slot * blocks + needed)), slot
        slices.append(Slice(sequence, 0, count))
    return StepPlan(slices)


def _peak_bytes(executor: TorchExecutor, step: StepPlan) -> int:
    """The most that exists at once within a step, beyond what was there before, as allocators count it."""
    if executor.device.type == "cuda":
        before = torch.cuda.memory_allocated(executor.device)
        torch.cuda.reset_peak_memory_stats(executor.device)
        executor.logits(step)
        return torch.cuda.max_memory_allocated(executor.device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes when it starts and stops to stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        executor.logits(step)
    recorded = profiled.profiler
    assert recorded is not None and recorded.kineto_results is not None
    events = [one for one in recorded.kineto_results.events() if one.name() == "[memory]"]
    sizes = [one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())]
    return max(0, int(np.cumsum(sizes).max(initial=0)))
