"""Matrix products of few rows: of torch's, oneDNN's and our own, the one that is fastest here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tunebatch.execute.torch.compiled.few_rows import MOST_ROWS, FewRows
from tunebatch.execute.torch.compiled.pointers import ELEMENTS
from tunebatch.execute.torch.sampler import highest

Product = Callable[[Tensor], Tensor]

# Numbers of rows at which products are compared; in between, the next larger one decides.
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_ROUNDS = 3
# Weights take turns, as they do in a model: one alone would stay in the processor's caches.
_LAYERS, _COLD_BYTES = 12, 2**27
_CLEARLY = 0.95  # of the time of torch's own: a copy of the weight must be worth its memory


class Linear:
    """``x @ weight.T + bias`` for ``x [rows, in]``; ``weight [out, in]``.

    Which product is fastest depends on the processor, the dtype, the shape and the rows: a weight that
    oneDNN packed takes a third of the time of torch's own on one AMD machine, and twice as long on an
    Intel one, where the transposed weight is best. So it is measured, once for each shape.

    Args:
        copy: There is memory for copies of the weight, transposed or packed.
    """

    __slots__ = ("_few_rows", "_products")

    def __init__(self, weight: Tensor, bias: Tensor | None = None, copy: bool = True) -> None:
        chosen = ["plain"] * len(ROWS)
        if copy:
            chosen = _chosen(tuple(weight.shape), weight.dtype, torch.get_num_threads())
        made = {name: PRODUCTS[name](weight, bias) for name in dict.fromkeys(chosen)}
        self._products = [made[name] for name in chosen]
        self._few_rows = next((one for one in made.values() if isinstance(one, FewRows)), None)

    def __call__(self, x: Tensor) -> Tensor:
        return self._products[min((x.shape[0] - 1).bit_length(), len(ROWS) - 1)](x)

    def highest(self, x: Tensor) -> Tensor:
        """Which output ``[rows]`` is largest in each row, see `sampler.highest`.

        Where our own product is at hand it searches as it goes, which saves more than another's being faster.
        """
        if self._few_rows is not None and x.shape[0] <= MOST_ROWS:
            return self._few_rows.highest(x)
        return highest(self(x))


def _plain(weight: Tensor, bias: Tensor | None) -> Product:
    return lambda x: F.linear(x, weight, bias)


def _transposed(weight: Tensor, bias: Tensor | None) -> Product:
    turned = weight.t().contiguous()
    if bias is None:
        return lambda x: torch.mm(x, turned)
    return lambda x: torch.addmm(bias, x, turned)


def _packed(weight: Tensor, bias: Tensor | None) -> Product:
    # oneDNN's operators, of torch's compiler: not its public API.
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: multiply(x, packed, bias, "none", [], "")


PRODUCTS: dict[str, Callable[[Tensor, Tensor | None], Product]] = {
    "plain": _plain,
    "transposed": _transposed,
    "packed": _packed,
    "panels": FewRows,
}


@cache
def packs(dtype: torch.dtype) -> bool:
    """This torch can pack weights of the dtype, and multiplies with them correctly."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        product = _packed(torch.ones(4, 4, dtype=dtype), None)
        return bool((product(torch.ones(2, 4, dtype=dtype)) == 4).all())
    except (AttributeError, RuntimeError, TypeError):
        return False


@cache
@torch.inference_mode()
def _chosen(shape: tuple[int, int], dtype: torch.dtype, num_threads: int) -> list[str]:
    """The name of the fastest product for each of `ROWS`."""
    size = shape[0] * shape[1] * dtype.itemsize
    weights = [torch.randn(shape, dtype=dtype) for _ in range(min(_LAYERS, -(-_COLD_BYTES // size)))]
    possible = {"packed": packs(dtype), "panels": dtype in ELEMENTS}
    products = {
        name: [make(weight, None) for weight in weights]
        for name, make in PRODUCTS.items()
        if possible.get(name, True)
    }
    chosen = []
    for rows in ROWS:
        x = torch.randn(rows, shape[1], dtype=dtype)
        times = {
            name: _fastest(layers, x)
            for name, layers in products.items()
            if name != "panels" or rows <= MOST_ROWS
        }
        best = min(times, key=lambda name: times[name])
        chosen.append(best if times[best] < _CLEARLY * times["plain"] else "plain")
    return chosen


def _fastest(layers: Sequence[Product], x: Tensor) -> float:
    """Seconds of a product, the best of some rounds over all layers."""
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for product in layers:
            product(x)
        best = min(best, (time.perf_counter() - start) / len(layers))
    return best
