"""What stands in for a GPU where graphs are tested: captures that replay, and attention to be captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten

from tunebatch.execute.torch.attention.base import Pools, StepContext, Variant, pools_by_token

# Of torch's operations, those for which the host waits: a capture refuses them.
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal.", "item.")


class Again:
    """Calls the function again, on the same buffers."""

    def __init__(self) -> None:
        self.replays = 0

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        function()

        def replay() -> None:
            self.replays += 1
            function()

        return replay

    def taken_bytes(self) -> int:
        return 0


class Recorded(Again):
    """Repeats what the function launched, with the same arguments, in the same memory: what it made of host
    values, it makes again, be they right or not."""

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        function()
        launched: list[Callable[[], None]] = []
        with _Recording(launched), _recorded_kernels(launched):
            function()

        def replay() -> None:
            self.replays += 1
            for launch in launched:
                launch()

        return replay


class _Recording(TorchDispatchMode):
    def __init__(self, launched: list[Callable[[], None]]) -> None:
        super().__init__()
        self._launched = launched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(str(func).startswith(f"aten.{name}") for name in WAITS):
            raise RuntimeError(f"{func} waits for the device")
        made = func(*args, **(kwargs or {}))

        def launch() -> None:
            for old, new in zip(_tensors(made), _tensors(func(*args, **(kwargs or {}))), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)

        self._launched.append(launch)
        return made


class _recorded_kernels:  # noqa: N801 - reads as a statement
    """Kernels of Triton's interpreter, which know nothing of torch's operations."""

    def __init__(self, launched: list[Callable[[], None]]) -> None:
        self._launched = launched

    def __enter__(self) -> None:
        try:
            from triton.runtime.interpreter import InterpretedFunction
        except ImportError:
            self._kernels = None
            return
        self._kernels, self._run = InterpretedFunction, InterpretedFunction.run
        run, launched = self._run, self._launched

        def recording(kernel: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> None:
            def launch() -> None:
                run(kernel, *args, grid=grid, warmup=False, **constants)

            if not warmup:
                launched.append(launch)
                with _disable_current_modes():
                    launch()

        InterpretedFunction.run = recording

    def __exit__(self, *_: object) -> None:
        if self._kernels is not None:
            self._kernels.run = self._run


def _tensors(made: Any) -> list[Tensor]:
    return [part for part in tree_flatten(made)[0] if isinstance(part, Tensor)]


class Dense:
    """Every token meets all columns of its block table, whatever they hold, under a mask that is made on the
    device. A token that only pads is given NaN, which nobody else may see."""

    name = "dense"

    def new_pools(self, key: Tensor, value: Tensor, num_blocks: int, block_size: int) -> Pools:
        """One block more than there are, in which padding writes."""
        return pools_by_token(key, value, num_blocks + 1, block_size)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, variant: Variant, step: StepContext
    ) -> Tensor:
        pools = step.cache.layer(layer, key, value)
        slots = torch.where(
            step.cache_slots < 0, step.cache.num_blocks * step.cache.block_size, step.cache_slots
        )
        token = torch.arange(len(query))
        owner = torch.searchsorted(step.query_start[1:], token, right=True)
        position = step.context_lens[owner] - (step.query_start[1:][owner] - token)
        gathered = []
        for pool, new in zip(pools, (key, value), strict=True):
            pool.view(-1, *pool.shape[2:]).index_copy_(0, slots, new)
            gathered.append(pool[step.block_tables[owner]].flatten(1, 2))
        keys, values = gathered
        grouped = query.reshape(len(query), key.shape[1], -1, query.shape[2])
        scores = torch.einsum("tkgd,tckd->tkgc", grouped, keys) * variant.scale
        at = torch.arange(keys.shape[1])[None]
        seen = at <= position[:, None]
        if variant.window is not None:
            seen = seen & (at > position[:, None] - variant.window)
        weights = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
        return torch.einsum("tkgc,tckd->tkgd", weights, values).flatten(1, 2)
