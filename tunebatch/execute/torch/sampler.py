"""From logits to token ids."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tunebatch.engine.request import Sampling
from tunebatch.execute.torch.noise import exponential, stream_of


def sample(logits: Tensor, samplings: list[tuple[int, Sampling, int]]) -> Tensor:
    """The next token of each row of ``logits [rows, vocabulary]``.

    Args:
        samplings: ``(row, sampling, position)`` of the rows that are not greedy. Noise is drawn from
            the request's seed and the token's position alone, so it does not depend on the batch.
    """
    tokens = highest(logits)
    if samplings:
        rows = torch.tensor([row for row, _, _ in samplings]).to(logits.device, non_blocking=True)
        tokens[rows] = _drawn(logits[rows].float(), samplings)
    return tokens


def highest(logits: Tensor) -> Tensor:
    """The most probable token of each row of ``logits [rows, vocabulary]``, of equals the first."""
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    # torch's takes ten times as long on a CPU.
    return torch.from_numpy(logits.float().numpy().argmax(-1))


def _drawn(logits: Tensor, samplings: list[tuple[int, Sampling, int]]) -> Tensor:
    """One draw from each row, each by its own sampling."""
    chosen = [sampling for _, sampling, _ in samplings]
    scores = logits / _column([one.temperature for one in chosen], logits)
    if any(one.top_k for one in chosen):
        scores = _only_top_k(scores, [one.top_k or scores.shape[1] for one in chosen])
    if any(one.top_p < 1 for one in chosen):
        scores = _only_top_p(scores, [one.top_p for one in chosen])
    streams = np.array([stream_of(one.seed, position) for _, one, position in samplings])
    noise = exponential(torch.from_numpy(streams).to(logits.device, non_blocking=True), scores.shape[1])
    # argmax(p / Exp(1)) is a draw from p: the exponential race, as gpt-fast samples without a sync.
    return (scores.softmax(-1) / noise.float()).argmax(-1)


def _only_top_k(scores: Tensor, top_k: list[int]) -> Tensor:
    most = [min(count, scores.shape[1]) for count in top_k]
    best = scores.topk(max(most)).values
    return scores.masked_fill(scores < best.gather(1, _column([k - 1 for k in most], scores)), -torch.inf)


def _only_top_p(scores: Tensor, top_p: list[float]) -> Tensor:
    ordered, order = scores.softmax(-1).sort(descending=True)
    # A sum of all shares may be above 1 by rounding.
    limits = _column([limit if limit < 1 else 2.0 for limit in top_p], scores)
    outside = ordered.cumsum(-1) - ordered >= limits
    return scores.masked_fill(outside.scatter(1, order, outside), -torch.inf)


def _column(values: list[float] | list[int], like: Tensor) -> Tensor:
    return torch.tensor(values).to(like.device, non_blocking=True)[:, None]
