"""From logits to token ids."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tunebatch.engine.request import Sampling
from tunebatch.execute.torch.noise import exponential, stream_of
from tunebatch.execute.torch.staging import Ints

# (row, sampling, position) of a row of logits that is not greedy
Draw = tuple[int, Sampling, int]

_NO_TOP_K = 2**62


def sample(logits: Tensor, draws: list[Draw], numbers: Tensor | None = None) -> Tensor:
    """The next token of each row of ``logits [rows, vocabulary]``.

    Args:
        draws: Noise is drawn from the request's seed and the token's position alone, so it does not depend
            on the batch.
        numbers: What `numbers_of` gives for these draws, where it is on the device already.
    """
    tokens = highest(logits)
    if draws:
        if numbers is None:
            numbers = torch.from_numpy(numbers_of(draws)).to(logits.device)
        asked = [sampling for _, sampling, _ in draws]
        rows, streams, top_k, packed = numbers.view(4, -1)
        temperature, top_p = packed.view(torch.float32).view(-1, 2).split(1, dim=1)
        scores = logits[rows].float() / temperature
        if any(one.top_k for one in asked):
            most = max(one.top_k or scores.shape[1] for one in asked)
            scores = _only_top_k(scores, top_k[:, None], most)
        if any(one.top_p < 1 for one in asked):
            scores = _only_top_p(scores, top_p)
        noise = exponential(streams, scores.shape[1])
        # argmax(p / Exp(1)) is a draw from p: the exponential race, as gpt-fast samples without a sync.
        tokens[rows] = (scores.softmax(-1) / noise.float()).argmax(-1)
    return tokens


def numbers_of(draws: list[Draw]) -> Ints:
    """What a device must know of draws, to travel with the inputs of their step: rows, streams of noise, most
    tokens, and in 32 bits each temperature and share, ``[4 * draws]``."""
    asked = [sampling for _, sampling, _ in draws]
    # A sum of all shares may be above 1 by rounding.
    floats = [(one.temperature, one.top_p if one.top_p < 1 else 2.0) for one in asked]
    return np.concatenate(
        [
            np.array([row for row, _, _ in draws], np.int64),
            np.array([stream_of(one.seed, position) for _, one, position in draws], np.int64),
            np.array([one.top_k or _NO_TOP_K for one in asked], np.int64),
            np.array(floats, np.float32).reshape(-1).view(np.int64),
        ]
    )


def highest(logits: Tensor) -> Tensor:
    """The most probable token of each row of ``logits [rows, vocabulary]``, of equals the first."""
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    # torch's takes ten times as long on a CPU.
    return torch.from_numpy(logits.float().numpy().argmax(-1))


def _only_top_k(scores: Tensor, top_k: Tensor, most: int) -> Tensor:
    vocabulary = scores.shape[1]
    best = scores.topk(min(most, vocabulary)).values
    return scores.masked_fill(scores < best.gather(1, top_k.clamp(max=vocabulary) - 1), -torch.inf)


def _only_top_p(scores: Tensor, limits: Tensor) -> Tensor:
    ordered, order = scores.softmax(-1).sort(descending=True)
    outside = ordered.cumsum(-1) - ordered >= limits
    return scores.masked_fill(outside.scatter(1, order, outside), -torch.inf)
