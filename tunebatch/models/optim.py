"""The optimizer of the bundled pair: Muon for the layers' matrices, AdamW for all else.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") replaces a
matrix's momentum by its nearest semi-orthogonal matrix. It wants roughly half the tokens AdamW
does, and tokens are what an hour on two CPU cores is short of.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(stack: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Approximate semi-orthogonal factor of each matrix of a (n, rows, columns) stack, rows <= columns."""
    a, b, c = _NEWTON_SCHULZ
    x = stack.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.float()


class Muon:
    """Muon over equal-shaped matrices stacked together: one batched product in place of dozens."""

    def __init__(self, matrices: list[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.02):
        self.momentum, self.weight_decay = momentum, weight_decay
        self.groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            self.groups[matrix.shape].append(matrix)
        self.buffers = {s: torch.zeros(len(g), *s) for s, g in self.groups.items()}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update from the gradients held by the parameters."""
        for shape, group in self.groups.items():
            grad = torch.stack([p.grad for p in group if p.grad is not None])
            buffer = self.buffers[shape].lerp_(grad, 1 - self.momentum)
            update = grad.lerp(buffer, self.momentum)
            tall = shape[0] > shape[1]
            update = orthogonalize(update.mT if tall else update)
            update = (update.mT if tall else update) * max(1.0, shape[0] / shape[1]) ** 0.5
            for parameter, change in zip(group, update, strict=True):
                parameter.mul_(1 - lr * self.weight_decay).add_(change, alpha=-lr)


class PairOptimizer:
    """Muon and AdamW stepped together, at rates that share one schedule factor."""

    def __init__(self, model: nn.Module, muon_lr: float, adam_lr: float):
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if p.ndim == 2 and ".layers." in n]
        others = [p for n, p in named if not (p.ndim == 2 and ".layers." in n)]
        self.muon, self.muon_lr = Muon(matrices), muon_lr
        self.adam = torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
        self.adam_lr = adam_lr
        self.parameters = [p for _, p in named]

    def step(self, factor: float) -> None:
        """One update at ``factor`` times the peak rates, gradients cleared after."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.muon.step(self.muon_lr * factor)
        self.adam.param_groups[0]["lr"] = self.adam_lr * factor
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        for parameter in self.parameters:
            parameter.grad = None


def schedule(progress: float, warmup: float = 0.02, decay: float = 0.5, floor: float = 0.02) -> float:
    """Rate factor at ``progress`` (0..1) of the budget: warm-up, plateau, linear fall to ``floor``."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    left = (1.0 - progress) / decay
    return max(min(1.0, left), floor)
