"""Attention backends, one file each, behind `base.AttentionBackend`."""

from __future__ import annotations

import torch

from tunebatch.execute.torch.attention.base import AttentionBackend
from tunebatch.execute.torch.attention.compiled import Compiled, refusal
from tunebatch.execute.torch.attention.packed import Packed
from tunebatch.execute.torch.attention.reference import Reference

BACKENDS: dict[str, type[AttentionBackend]] = {
    "reference": Reference,
    "packed": Packed,
    "compiled": Compiled,
}


def choose_backend(
    name: str, device: str, dtype: torch.dtype, head_dim: int, block_size: int
) -> AttentionBackend:
    """The backend asked for; ``auto`` is the fastest for the device.

    Raises:
        ValueError: No such backend, or it cannot serve such a model here.
    """
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"unknown attention backend {name!r}; one of auto, {', '.join(BACKENDS)}")
    if device != "cpu":
        if name == "compiled":
            raise ValueError("attention backend compiled: runs on a CPU only; use reference")
        return Reference() if name == "auto" else BACKENDS[name]()
    why = refusal(dtype, head_dim, block_size)
    if name == "auto":
        return Packed() if why else Compiled()
    if name == "compiled" and why:
        raise ValueError(f"attention backend compiled: {why}; use packed")
    return BACKENDS[name]()
