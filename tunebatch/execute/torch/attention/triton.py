"""The fast backend on a GPU: Triton kernels that read the pages through the block tables."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunebatch.execute.torch.attention.base import Pools, StepContext, Variant, pools_by_token
from tunebatch.execute.torch.attention.launch import (
    MOST_PARTS,
    Kind,
    Launch,
    launches,
    one_of_each,
    padded,
)
from tunebatch.execute.torch.kernels.attend import attend_kernel
from tunebatch.execute.torch.kernels.merge import merge_kernel
from tunebatch.execute.torch.kernels.write import write_kernel

# Of a CPU, whose interpreter runs one program after the other.
_INTERPRETED_PROCESSORS = 4


class Triton:
    """Writes a step's keys and values, attends in one launch or two, and merges the parts of split contexts.

    Nothing is read back from the device and no launch depends on lengths, so that a CUDA graph of a step
    replays for any other with the same host values; `launch.launches` lists them. Every token must belong to
    a sequence: one that is there for padding has a context of length 0 and negative cache slots; it writes
    nothing and is given zeros.

    Args:
        processors: Multiprocessors to keep busy; by default the device's.
    """

    name = "triton"

    def __init__(self, processors: int | None = None) -> None:
        self._processors = processors
        self._compiled: set[Kind] = set()

    def new_pools(self, key: Tensor, value: Tensor, num_blocks: int, block_size: int) -> Pools:
        return pools_by_token(key, value, num_blocks, block_size)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, variant: Variant, step: StepContext
    ) -> Tensor:
        """See `AttentionBackend`.

        Raises:
            RuntimeError: Triton cannot compile kernels for such a layer.
        """
        query, key, value = (
            part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value)
        )
        pools = step.cache.layer(layer, key, value)
        kind = _kind(query, key, value, variant, step)
        out = query.new_empty(*query.shape[:2], kind.value_dim)
        if kind not in self._compiled:
            _compile(kind, query, pools, out, variant, step)
            self._compiled.add(kind)
        _write(key, value, pools, step)
        for launch in launches(step, len(query), kind, self._processors_of(query.device)):
            for kernel, grid, arguments, constants in _calls(launch, kind, query, pools, out, variant, step):
                kernel[grid](*arguments, **constants)
        return out

    def _processors_of(self, device: torch.device) -> int:
        if self._processors is None:
            self._processors = _INTERPRETED_PROCESSORS
            if device.type == "cuda":
                self._processors = int(torch.cuda.get_device_properties(device).multi_processor_count)
        return self._processors


class _Call(NamedTuple):
    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


def _kind(query: Tensor, key: Tensor, value: Tensor, variant: Variant, step: StepContext) -> Kind:
    return Kind(
        dtype=key.dtype,
        kv_heads=key.shape[1],
        group=query.shape[1] // key.shape[1],
        dim=key.shape[2],
        value_dim=value.shape[2],
        block_size=step.cache.block_size,
        windowed=variant.window is not None,
        capped=variant.softcap is not None,
        sinks=variant.sinks is not None,
    )


def _compile(
    kind: Kind, query: Tensor, pools: Pools, out: Tensor, variant: Variant, step: StepContext
) -> None:
    """Compile all kernels that a step of such a layer may need, lest one be compiled in mid-measurement."""
    for launch in one_of_each(kind):
        for kernel, grid, arguments, constants in _calls(launch, kind, query, pools, out, variant, step):
            try:
                kernel.warmup(*arguments, grid=grid, **constants)
            except Exception as error:  # of Triton's compiler, of the assembler, of a driver
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise RuntimeError(f"Triton cannot compile attention for {kind}: {first}") from error


def _write(key: Tensor, value: Tensor, pools: Pools, step: StepContext) -> None:
    kv_heads, dim = key.shape[1:]
    write_kernel[len(key),](
        *pools,
        key,
        value,
        step.cache_slots,
        *key.stride()[:2],
        *value.stride()[:2],
        KV_HEADS=kv_heads,
        KV_HEADS_PADDED=1 << (kv_heads - 1).bit_length(),
        DIM=dim,
        VALUE_DIM=value.shape[-1],
        DIM_PADDED=padded(dim),
        VALUE_DIM_PADDED=padded(value.shape[-1]),
    )


def _calls(
    launch: Launch,
    kind: Kind,
    query: Tensor,
    pools: Pools,
    out: Tensor,
    variant: Variant,
    step: StepContext,
) -> list[_Call]:
    """The attention of one launch, and the merge of its parts if there are several."""
    first, heads, parts = launch.first_sequence, query.shape[1], launch.parts
    part_out = part_lse = None
    if parts > 1:
        # Not kept for the next step: what a captured graph works in must stay its own.
        part_lse = torch.empty(launch.num_tokens, heads, parts, dtype=torch.float32, device=query.device)
        part_out = part_lse.new_empty(*part_lse.shape, kind.value_dim)
    arguments = (
        out,
        part_out,
        part_lse,
        query,
        *pools,
        variant.sinks,
        step.block_tables[first:],
        step.context_lens[first:],
        step.query_start[first:],
        step.block_tables.stride(0),
        launch.num_sequences,
        variant.window or 0,
        variant.scale,
        variant.softcap or 1.0,
        *query.stride()[:2],
    )
    constants = {
        "KV_HEADS": kind.kv_heads,
        "GROUP": kind.group,
        "DIM": kind.dim,
        "VALUE_DIM": kind.value_dim,
        "DIM_PADDED": padded(kind.dim),
        "VALUE_DIM_PADDED": padded(kind.value_dim),
        "BLOCK_SIZE": kind.block_size,
        "ROWS": launch.tiling.rows,
        "KEYS": kind.keys,
        "ONE_TILE": launch.tiling.one_tile,
        "SPLIT": parts > 1,
        # Where memory is waited for, masks cost nothing, and a second loop would begin to wait anew.
        "SKIP_MASKS": not launch.tiling.one_tile,
        "WINDOWED": kind.windowed,
        "CAPPED": kind.capped,
        "SINKS": kind.sinks,
        "PRECISION": "ieee",
        "num_warps": launch.tiling.num_warps,
        "num_stages": launch.tiling.num_stages,
    }
    calls = [_Call(attend_kernel, launch.grid, arguments, constants)]
    if parts > 1:
        arguments = (out[launch.first_token :], part_out, part_lse, parts)
        constants = {
            "VALUE_DIM": kind.value_dim,
            "VALUE_DIM_PADDED": padded(kind.value_dim),
            "MOST_PARTS": MOST_PARTS,
        }
        calls.append(_Call(merge_kernel, (launch.num_tokens, heads), arguments, constants))
    return calls
