"""Matrix products of few rows: torch's own, or oneDNN with packed weights, whichever is faster here."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = (1, 2, 4, 8)
_REPEATS, _PER_REPEAT = 5, 8


class Linear:
    """``x @ weight.T + bias`` for ``x [rows, in]``; ``weight [out, in]``.

    oneDNN's packed weights take a second copy of the weight, and pay from a number of rows on that is
    measured once for each shape (on one AMD machine: 2 to 3 times faster from 8 rows on, slower at 1).
    """

    __slots__ = ("_bias", "_crossover", "_packed", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None, pack: bool = True) -> None:
        self._weight, self._bias = weight, bias
        self._packed: Tensor | None = None
        self._crossover = 0
        if pack and packs(weight.dtype):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
            self._crossover = _crossover(tuple(weight.shape), weight.dtype, torch.get_num_threads())

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is None or x.shape[0] < self._crossover:
            return F.linear(x, self._weight, self._bias)
        return _product()(x, self._packed, self._bias, "none", [], "")


@cache
def packs(dtype: torch.dtype) -> bool:
    """This torch can pack weights of the dtype; the operators are its compiler's, not its public API."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(torch.ones(4, 4, dtype=dtype), None)
        return bool((_product()(torch.ones(2, 4, dtype=dtype), weight, None, "none", [], "") == 4).all())
    except (AttributeError, RuntimeError, TypeError):
        return False


@cache
def _product() -> Callable[..., Tensor]:
    return torch.ops.mkldnn._linear_pointwise.default


@cache
@torch.inference_mode()
def _crossover(shape: tuple[int, int], dtype: torch.dtype, num_threads: int) -> int:
    """The least number of rows at which the packed product is faster."""
    weight = torch.randn(shape, dtype=dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    for rows in _ROWS:
        x = torch.randn(rows, shape[1], dtype=dtype)
        plain = _fastest(F.linear, x, weight)
        if _fastest(_product(), x, packed, None, "none", [], "") < plain:
            return rows
    return _ROWS[-1] + 1


def _fastest(call: Callable[..., Any], *arguments: Any) -> float:
    call(*arguments)
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        for _ in range(_PER_REPEAT):
            call(*arguments)
        best = min(best, time.perf_counter() - start)
    return best
