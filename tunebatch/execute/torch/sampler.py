"""From logits to token ids."""

from __future__ import annotations

import torch
from torch import Tensor

from tunebatch.engine.request import Sampling


def sample(logits: Tensor, samplings: list[tuple[int, Sampling, int]]) -> Tensor:
    """The next token of each row of ``logits [rows, vocabulary]``.

    Args:
        samplings: ``(row, sampling, position)`` of the rows that are not greedy. Noise is drawn from
            the request's seed and the token's position alone, so it does not depend on the batch.
    """
    tokens = highest(logits)
    for row, sampling, position in samplings:
        tokens[row] = _draw(logits[row], sampling, position)
    return tokens


def highest(logits: Tensor) -> Tensor:
    """The most probable token of each row of ``logits [rows, vocabulary]``, of equals the first."""
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    # torch's takes ten times as long on a CPU.
    return torch.from_numpy(logits.float().numpy().argmax(-1))


def _draw(logits: Tensor, sampling: Sampling, position: int) -> Tensor:
    scores = logits.float() / sampling.temperature
    if sampling.top_k:
        kept = min(sampling.top_k, len(scores))
        scores = scores.masked_fill(scores < scores.topk(kept).values[-1], -torch.inf)
    if sampling.top_p < 1:
        ordered, order = scores.softmax(-1).sort(descending=True)
        outside = order[ordered.cumsum(-1) - ordered >= sampling.top_p]
        scores[outside] = -torch.inf
    generator = torch.Generator().manual_seed((sampling.seed * 1_000_003 + position) % 2**63)
    noise = torch.empty(len(scores)).exponential_(generator=generator).to(scores.device)
    # argmax(p / Exp(1)) is a draw from p: the exponential race, as gpt-fast samples without a sync.
    return (scores.softmax(-1) / noise).argmax()
