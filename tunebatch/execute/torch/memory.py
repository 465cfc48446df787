"""The memory that a loaded model takes, as it is: beside what was predicted from its config."""

from __future__ import annotations

from dataclasses import dataclass

from tunebatch.engine.plan import Slice, StepPlan
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.execute.torch.executor import TorchExecutor


@dataclass(frozen=True, slots=True)
class MeasuredMemory:
    """What a loaded model takes.

    Attributes:
        weight_bytes: Memory of the parameters, tied ones once; without copies that kernels keep.
        kv_bytes_per_token: Of all layers, as their pools are.
        num_blocks: KV blocks that the executor took.
    """

    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    num_blocks: int
    block_size: int
    dtype: str
    device: str


def measure_memory(executor: TorchExecutor) -> MeasuredMemory:
    """Runs one step, in which every layer makes its pools, and reads sizes off tensors."""
    sequence = Sequence(Request(id=0, prompt=(0,), max_tokens=1))
    sequence.block_table, sequence.slot = [0], 0
    executor.logits(StepPlan([Slice(sequence, 0, 1)]))
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
    )
