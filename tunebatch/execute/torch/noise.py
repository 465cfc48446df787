"""Noise that hangs on a request's seed and a token's position alone, made where it is needed."""

from __future__ import annotations

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a counter, and a mixer of its bits.
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ALL = 2**64 - 1


def stream_of(seed: int, position: int) -> int:
    """The stream of random numbers of one token of one request, as a signed 64-bit integer."""
    return _signed(_mixed_int(_mixed_int(seed & _ALL) + position & _ALL))


def exponential(streams: Tensor, count: int) -> Tensor:
    """The first ``count`` draws from Exp(1) of each of ``streams [rows]``; float64 ``[rows, count]``.

    A hash of stream and counter, so that all rows are drawn at once, on any device alike, and none depends on
    its neighbours.
    """
    counter = torch.arange(1, count + 1, device=streams.device) * _signed(_GOLDEN)
    bits = _mixed(streams[:, None] + counter)
    # 53 bits, and never 0 or 1: of the smallest draws, which win the race, none is 0.
    uniform = (_shifted(bits, 11).double() + 0.5) * 2.0**-53
    return -uniform.log_()


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shifted(x, 27)) * _signed(_MIX_2)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """To the right as if there were no sign; torch copies it into the bits above."""
    return (x >> by) & (2 ** (64 - by) - 1)


def _mixed_int(x: int) -> int:
    x = (x + _GOLDEN) & _ALL
    x = (x ^ (x >> 30)) * _MIX_1 & _ALL
    x = (x ^ (x >> 27)) * _MIX_2 & _ALL
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
