"""Attention backends, one file each, behind `base.AttentionBackend`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from tunebatch.execute.torch.attention.base import AttentionBackend
from tunebatch.execute.torch.attention.packed import Packed
from tunebatch.execute.torch.attention.reference import Reference

_LARGEST_HEAD = 256  # whose tiles fit into the registers and the shared memory of one multiprocessor


def _compiled() -> AttentionBackend:
    # Not above: a GPU is served without numba, which takes a second to import.
    from tunebatch.execute.torch.attention.compiled import Compiled

    return Compiled()


def _triton() -> AttentionBackend:
    # Not above: Triton is there where torch is built for CUDA, and takes a second to import.
    from tunebatch.execute.torch.attention.triton import Triton

    return Triton()


BACKENDS: dict[str, Callable[[], AttentionBackend]] = {
    "reference": Reference,
    "packed": Packed,
    "compiled": _compiled,
    "triton": _triton,
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
    if name == "auto":
        return BACKENDS[_fastest(device, dtype, head_dim, block_size)]()
    if name == "triton" and (why := triton_refusal(device, dtype, head_dim)):
        raise ValueError(
            f"attention backend triton: {why}; use {_fastest(device, dtype, head_dim, block_size)}"
        )
    if name == "compiled" and device != "cpu":
        raise ValueError(
            "attention backend compiled: runs on a CPU only; use "
            + _fastest(device, dtype, head_dim, block_size)
        )
    if name == "compiled" and (why := compiled_refusal(dtype, head_dim, block_size)):
        raise ValueError(f"attention backend compiled: {why}; use packed")
    return BACKENDS[name]()


def compiled_refusal(dtype: torch.dtype, head_dim: int, block_size: int) -> str | None:
    """Why the compiled kernels cannot serve such a model on a CPU, or None."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    from tunebatch.execute.torch.attention.compiled import refusal

    return refusal(dtype, head_dim, block_size)


def triton_refusal(device: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the Triton kernels cannot serve such a model, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if head_dim > _LARGEST_HEAD:
        return f"head size {head_dim} is more than {_LARGEST_HEAD}"
    if device == "cuda":
        return None
    from triton import knobs

    if not knobs.runtime.interpret:
        return "runs on a CUDA device, or with TRITON_INTERPRET=1 on a CPU, very slowly"
    if dtype == torch.bfloat16:
        return "Triton's interpreter takes bfloat16 for integers"
    return None


def _fastest(device: str, dtype: torch.dtype, head_dim: int, block_size: int) -> str:
    if device == "cpu":
        return "packed" if compiled_refusal(dtype, head_dim, block_size) else "compiled"
    return "reference" if triton_refusal(device, dtype, head_dim) else "triton"
