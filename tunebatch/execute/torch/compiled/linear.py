"""Matrix products: of torch's, oneDNN's and our own, the one that is fastest here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from tunebatch.execute.torch.compiled.panels import MOST_ROWS, Panels
from tunebatch.execute.torch.compiled.pointers import ELEMENTS
from tunebatch.execute.torch.sampler import highest

Product = Callable[[Tensor], Tensor]

# Numbers of rows at which products are compared; in between, the next larger one decides.
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_ROUNDS, _ENOUGH_S = 5, 0.2  # at most so many, and no further one after so long
# Weights take turns, as they do in a model: one alone would stay in the processor's caches. With many rows
# that hardly matters, and fewer do.
_LAYERS, _COLD_BYTES, _LAYER_ROWS = 12, 2**27, 512
_CLEARLY = 0.95  # of the time without it: a copy of the weight must be worth its memory
_HOPELESS = 5  # times as slow as the fastest: not tried with more rows, where it would take most of the time


class Linear:
    """``x @ weight.T + bias`` for ``x [rows, in]``; ``weight [out, in]``.

    Which product is fastest depends on the processor, the dtype, the shape and the rows: a weight that
    oneDNN packed takes a third of the time of torch's own on one AMD machine, and twice as long on an
    Intel one, where the transposed weight is best. So it is measured, once for each shape.

    Args:
        copy: There is memory for copies of the weight, transposed or packed.
    """

    __slots__ = ("_panels", "_products")

    def __init__(self, weight: Tensor, bias: Tensor | None = None, copy: bool = True) -> None:
        chosen = ["plain"] * len(ROWS)
        if copy:
            chosen = _chosen(tuple(weight.shape), weight.dtype, torch.get_num_threads())
        made = {name: PRODUCTS[name](weight, bias) for name in dict.fromkeys(chosen)}
        self._products = [made[name] for name in chosen]
        self._panels = next((one for one in made.values() if isinstance(one, Panels)), None)

    def __call__(self, x: Tensor) -> Tensor:
        return self._products[min((x.shape[0] - 1).bit_length(), len(ROWS) - 1)](x)

    def highest(self, x: Tensor) -> Tensor:
        """Which output ``[rows]`` is largest in each row, see `sampler.highest`.

        Where our own product is at hand it searches as it goes, which saves more than another's being faster.
        """
        if self._panels is not None and x.shape[0] <= MOST_ROWS:
            return self._panels.highest(x)
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
    "panels": Panels,
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
    times = []
    for rows in ROWS:
        x = torch.randn(rows, shape[1], dtype=dtype)
        times.append(
            _times({name: made[: max(2, _LAYER_ROWS // rows)] for name, made in products.items()}, x)
        )
        slowest = _HOPELESS * min(times[-1].values())
        products = {name: made for name, made in products.items() if times[-1][name] < slowest}
    return _few_copies(times)


def _few_copies(times: Sequence[dict[str, float]]) -> list[str]:
    """For each number of rows the product that is fastest, or nearly so and needs no copy of its own.

    Copies take memory, and turn each other out of the processor's caches.
    """
    best = [min(at_rows, key=lambda name: at_rows[name]) for at_rows in times]
    wanted = ("plain", max(PRODUCTS, key=best.count))
    return [
        next((name for name in wanted if at_rows.get(name, inf) * _CLEARLY <= at_rows[fastest]), fastest)
        for fastest, at_rows in zip(best, times, strict=True)
    ]


def _times(products: dict[str, list[Product]], x: Tensor) -> dict[str, float]:
    """Seconds of all layers of each product, the best of some rounds, in which they take turns."""
    best = dict.fromkeys(products, inf)
    begin = time.perf_counter()
    for done in range(_ROUNDS):
        if done and time.perf_counter() - begin > _ENOUGH_S:
            break
        for name, layers in products.items():
            start = time.perf_counter()
            for product in layers:
                product(x)
            best[name] = min(best[name], time.perf_counter() - start)
    return best
