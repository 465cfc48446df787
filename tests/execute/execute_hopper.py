"""Compile what a step launches for a Hopper GPU, without one: run as a script, prints one JSON line a kernel.

Launches are real to the last argument, so that what is compiled, and how often, is what a GPU would see; only
the driver is not there.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from tunebatch.execute.torch.attention.base import KvCache, StepContext, Variant
from tunebatch.execute.torch.attention.triton import Triton
from tunebatch.execute.torch.fused_gates import silu_times
from tunebatch.execute.torch.fused_norms import FORMS, rms_norm
from tunebatch.execute.torch.fused_rotary import rotate


class NoGpu:
    """As much of a driver as compiling needs."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def compiled() -> dict[str, Any]:
    """Kernels by name and hash, as they are compiled from now on; nothing is launched."""
    triton.runtime.driver.set_active(NoGpu())
    found: dict[str, Any] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **constants)
        found.setdefault(f"{kernel.metadata.name} {kernel.hash[:8]}", kernel)
        return kernel

    JITFunction.run = compile_only
    return found


def attend(
    backend: Triton, shape: dict[str, Any], counts: list[int], misaligned: int = 0, width: int = 7
) -> None:
    """One step of sequences with so many new tokens each; prompts first, then decodes."""
    dtype = getattr(torch, shape["dtype"])
    block_size, heads, kv_heads = shape["block_size"], shape["heads"], shape["kv_heads"]
    sinks = torch.zeros(heads, dtype=dtype) if shape.get("sinks") else None
    tokens = sum(counts)
    prompts = [count for count in counts if count > 1]

    def ints(*size: int) -> torch.Tensor:  # views into one buffer begin anywhere
        return torch.ones(misaligned + torch.Size(size).numel(), dtype=torch.int64)[misaligned:].view(size)

    step = StepContext(
        cache=KvCache(8, block_size, backend.new_pools),
        positions=ints(tokens),
        query_start=ints(len(counts) + 1),
        context_lens=ints(len(counts)),
        block_tables=ints(len(counts), width),
        cache_slots=ints(tokens),
        slices=[(0, count, 0) for count in prompts],
        num_slice_tokens=sum(prompts),
        max_context_len=1,
        context_sum=1,
    )
    backend.attend(
        torch.zeros(tokens, heads, shape["dim"], dtype=dtype),
        torch.zeros(tokens, kv_heads, shape["dim"], dtype=dtype),
        torch.zeros(tokens, kv_heads, shape.get("value_dim", shape["dim"]), dtype=dtype),
        0,
        Variant(0.1, shape.get("window"), shape.get("softcap"), sinks),
        step,
    )


def norm(shape: dict[str, Any], tokens: int) -> None:
    """Of hidden states, and of the queries that are a part of a merged projection."""
    dtype, heads, dim = getattr(torch, shape["dtype"]), shape["heads"], shape["dim"]
    hidden = torch.zeros(1, tokens, heads * dim, dtype=dtype)
    queries = torch.zeros(1, tokens, 2 * heads * dim, dtype=dtype)[..., : heads * dim]
    for form in FORMS:
        for x in (hidden, queries.view(1, tokens, heads, dim)):
            rms_norm(torch.ones(x.shape[-1], dtype=dtype), 1e-6, form, x)


def rotary(shape: dict[str, Any], tokens: int) -> None:
    """Of parts of a merged projection, by whole heads and by a half of them."""
    dtype, heads, kv_heads, dim = (
        getattr(torch, shape["dtype"]),
        shape["heads"],
        shape["kv_heads"],
        shape["dim"],
    )
    parts = torch.zeros(1, tokens, (heads + kv_heads) * dim, dtype=dtype).split(
        [heads * dim, kv_heads * dim], -1
    )
    q, k = (part.view(1, tokens, -1, dim).transpose(1, 2) for part in parts)
    for rotated in (dim, dim // 2):
        cos = torch.zeros(1, tokens, rotated, dtype=dtype)
        rotate(NotImplemented, False, q, k, cos, cos)


def gate(shape: dict[str, Any], tokens: int) -> None:
    both = torch.zeros(1, tokens, 4 * shape["heads"] * shape["dim"], dtype=getattr(torch, shape["dtype"]))
    silu_times(*both.chunk(2, -1))


def resources(kernel: Any) -> dict[str, int]:
    """Registers of a thread and bytes on its stack, as the assembler tells."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    (usage,) = re.findall(r"REG:(\d+) STACK:(\d+)", told.stdout)
    return {"registers": int(usage[0]), "stack_bytes": int(usage[1])}


# New tokens of each sequence in a step: one decode, then steps of all sorts, whose numbers and addresses are
# multiples of 16 at times.
STEPS = ([1], [1] * 9, [1] * 16, [1] * 300, [700, 40, 1, 1, 1], [3, 3, 1], [16] * 16, [2000], [128])


def main(shape: dict[str, Any]) -> None:
    found = compiled()
    backend = Triton(132)
    foreseen: set[str] = set()
    for tokens in (1, 9, 16):
        norm(shape, tokens)
        rotary(shape, tokens)
        gate(shape, tokens)
    for i, counts in enumerate(STEPS):
        for width in (1, 7, 16):
            attend(backend, shape, counts, misaligned=i % 3, width=width)
            foreseen = foreseen or set(found)
    for name, kernel in found.items():
        ptx = kernel.asm["ptx"]
        told = {
            "kernel": name.split()[0],
            "after_warmup": name not in foreseen,
            "for_hopper": ".target sm_90" in ptx,
            "shared_bytes": kernel.metadata.shared,
            "tensor_cores": "mma.sync" in ptx or "wgmma.mma_async" in ptx,
            "loads_ahead": "cp.async" in ptx,
            **resources(kernel),
        }
        print(json.dumps(told))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
