"""Draws hang on seed and position alone, and follow the distribution that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tunebatch.engine.request import Sampling
from tunebatch.execute.torch.noise import exponential, stream_of
from tunebatch.execute.torch.sampler import sample

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.floats(0.1, 2),
    top_p=st.sampled_from((0.3, 0.9, 1.0)),
    top_k=st.sampled_from((0, 1, 5, 1000)),
    seed=st.integers(0, 2**40),
)


def streams(seeds: range, positions: range) -> torch.Tensor:
    return torch.tensor([stream_of(seed, position) for seed in seeds for position in positions])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(SAMPLINGS, st.integers(0, 10**6)), min_size=1, max_size=6), st.integers(0, 2**32))
def test_a_row_is_drawn_as_it_would_be_alone(rows: list[tuple[Sampling, int]], seed: int) -> None:
    logits = torch.randn(2 * len(rows), 40, generator=torch.Generator().manual_seed(seed))
    among = [(2 * i + 1, *row) for i, row in enumerate(rows)]
    together = sample(logits.clone(), among).tolist()
    alone = [sample(logits[row : row + 1], [(0, one, position)]).item() for row, one, position in among]
    assert together[1::2] == alone
    assert together[::2] == logits[::2].argmax(-1).tolist()


@settings(max_examples=50, deadline=None)
@given(SAMPLINGS, st.integers(0, 10**6), st.integers(0, 2**32))
def test_what_top_k_and_top_p_leave_out_is_never_drawn(one: Sampling, position: int, seed: int) -> None:
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(seed))
    order = sorted(range(30), key=lambda token: -logits[0, token].item())
    order = order[: one.top_k or 30]
    weights = [np.exp(logits[0, token].item() / one.temperature) for token in order]
    before = np.cumsum([0.0, *weights[:-1]]) / sum(weights)
    allowed = {token for token, mass in zip(order, before, strict=True) if mass < one.top_p + 1e-6}
    assert sample(logits, [(0, one, position)]).item() in allowed


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "num_left"),
    [(1.0, 0, 1.0, 7), (0.6, 0, 1.0, 7), (1.5, 4, 1.0, 4), (1.0, 0, 0.8, 4), (0.8, 5, 0.9, 4)],
)
def test_tokens_are_drawn_as_often_as_they_are_probable(
    temperature: float, top_k: int, top_p: float, num_left: int
) -> None:
    """Many draws from one row: that the draws with drafts are those without says nothing of these."""
    count = 40_000
    probabilities = np.array([0.3, 0.22, 0.18, 0.13, 0.09, 0.05, 0.03])
    chosen = [Sampling(temperature, top_p, top_k, seed=seed) for seed in range(count)]
    logits = torch.tensor(probabilities).log().float().expand(count, -1)
    drawn = sample(logits, [(row, one, 5) for row, one in enumerate(chosen)])
    left = probabilities[:num_left] ** (1 / temperature)
    found = np.bincount(drawn.numpy(), minlength=7)
    assert not found[num_left:].any()
    assert stats.chisquare(found[:num_left], count * left / left.sum()).pvalue > 1e-3


@pytest.mark.parametrize("axis", ["seeds", "positions", "tokens"])
def test_noise_is_exponential_and_independent_along(axis: str) -> None:
    count = 1 << 14
    one, many = range(7, 8), range(count)
    drawn = {
        "seeds": lambda: exponential(streams(many, one), 2)[:, 0],
        "positions": lambda: exponential(streams(one, many), 2)[:, 0],
        "tokens": lambda: exponential(streams(one, one), count)[0],
    }[axis]()
    found = drawn.numpy()
    assert found.min() > 0 and np.isfinite(found).all()
    assert stats.kstest(found, "expon").pvalue > 1e-3
    # Neighbours, which share all but a few bits, must have nothing to do with each other.
    for lag in (1, 2, 64):
        assert abs(np.corrcoef(found[:-lag], found[lag:])[0, 1]) < 4 / count**0.5


def test_neighbouring_streams_are_not_shifted_copies() -> None:
    found = exponential(streams(range(50), range(50)), 20)
    assert len(found.flatten().unique()) == found.numel()
