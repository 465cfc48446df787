"""Attention backends, one file each, behind `base.AttentionBackend`."""

from __future__ import annotations

from tunebatch.execute.torch.attention.base import AttentionBackend
from tunebatch.execute.torch.attention.packed import Packed
from tunebatch.execute.torch.attention.reference import Reference

BACKENDS: dict[str, type[AttentionBackend]] = {"reference": Reference, "packed": Packed}


def choose_backend(name: str, device: str) -> AttentionBackend:
    """The backend asked for; ``auto`` is the fastest for the device.

    Raises:
        ValueError: No such backend.
    """
    if name == "auto":
        return Packed() if device == "cpu" else Reference()
    if name not in BACKENDS:
        raise ValueError(f"unknown attention backend {name!r}; one of auto, {', '.join(BACKENDS)}")
    return BACKENDS[name]()
