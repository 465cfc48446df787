"""Parts of a model that compute in one launch what its own code computes in several."""

from __future__ import annotations

import torch
from torch import nn

from tunebatch.execute.torch import fused_gates, fused_norms, fused_rotary

FACTS = ("fused_norms", "fused_rotary", "fused_gates")


def pays(device: torch.device, backend: str) -> bool:
    """Whether to look for them: they save launches on a GPU, where there is Triton for the kernels."""
    return device.type == "cuda" and backend == "triton"


def fuse(model: nn.Module) -> dict[str, int]:
    """All that is known; how many modules of each kind, as result files tell."""
    counts = fused_norms.fuse_norms(model), fused_rotary.fuse_rotary(model), fused_gates.fuse_gates(model)
    return dict(zip(FACTS, counts, strict=True))


def take_apart(model: nn.Module) -> None:
    """Each module computes by its own code again."""
    for kind in (fused_norms, fused_rotary, fused_gates):
        kind.take_apart(model)
