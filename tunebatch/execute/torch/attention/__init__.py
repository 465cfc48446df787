"""Attention backends, one file each, behind `base.AttentionBackend`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from tunebatch.execute.torch.attention.asked import Asked
from tunebatch.execute.torch.attention.base import AttentionBackend
from tunebatch.execute.torch.attention.choice import OPTIONAL, Timer, fastest, why_not
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
    if name not in ("auto", *BACKENDS, *OPTIONAL):
        names = ", ".join((*BACKENDS, *OPTIONAL))
        raise ValueError(f"unknown attention backend {name!r}; one of auto, {names}")
    if name == "auto":
        return BACKENDS[_fastest(device, dtype, head_dim, block_size)]()
    if name == "triton" and (why := triton_refusal(device, dtype, head_dim)):
        raise ValueError(
            f"attention backend triton: {why}; use {_fastest(device, dtype, head_dim, block_size)}"
        )
    if name in OPTIONAL:
        instead = _fastest(device, dtype, head_dim, block_size)
        raise ValueError(f"attention backend {name}: runs on a CUDA device only; use {instead}")
    if name == "compiled" and device != "cpu":
        raise ValueError(
            "attention backend compiled: runs on a CPU only; use "
            + _fastest(device, dtype, head_dim, block_size)
        )
    if name == "compiled" and (why := compiled_refusal(dtype, head_dim, block_size)):
        raise ValueError(f"attention backend compiled: {why}; use packed")
    return BACKENDS[name]()


def choose_for_gpu(
    name: str,
    layers: Sequence[Asked],
    block_size: int,
    device: torch.device,
    capability: tuple[int, int],
    seconds: Timer | None = None,
    among: Collection[str] | None = None,
) -> tuple[AttentionBackend, dict[str, Any]]:
    """The backend asked for; ``auto`` is the fastest of those that can serve the layers, measured now.

    Args:
        layers: See `asked.asked_by`.
        capability: The GPU's compute capability.
        seconds, among: See `choice.fastest`.

    Returns:
        It, and ``attention_measured`` for result files, where there was a choice.

    Raises:
        ValueError: It cannot serve such a model here.
    """
    own = _fastest("cuda", layers[0].dtype, max(layer.dim for layer in layers), block_size)
    refused = {name: why_not(one, capability, layers) for name, one in OPTIONAL.items()}
    if name != "auto":
        if (why := refused[name]) is not None:
            raise ValueError(f"attention backend {name}: {why}; use {own}")
        return OPTIONAL[name].make(), {}
    backends = {own: BACKENDS[own]()}
    backends |= {name: OPTIONAL[name].make() for name, why in refused.items() if why is None}
    if len(backends) == 1:
        return backends[own], {}
    chosen, told = fastest(backends, layers, block_size, device, seconds, among)
    return backends[chosen], {"attention_measured": told}


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
