"""Shared beginnings of prompts: system prompts, or documents that are asked about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tunebatch.workload.prompts import PromptSource

if TYPE_CHECKING:
    from tunebatch.workload.spec import WorkloadSpec


def drawn_prefixes(
    spec: WorkloadSpec, n: int, prompts: PromptSource, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    """Beginnings of n prompts; nothing for each of them where the description shares none.

    Which one a prompt gets follows Zipf's law: the k-th is ``k ** -prefix_skew`` times as frequent as the
    first.
    """
    if spec.prefix_lengths is None:
        return [()] * n
    length_rng, text_rng, choice_rng = rng.spawn(3)
    lengths = spec.prefix_lengths.sample(spec.num_prefixes, length_rng).tolist()
    texts = [prompts.prompt(number, length, text_rng) for number, length in enumerate(lengths)]
    weights = np.arange(1, spec.num_prefixes + 1, dtype=np.float64) ** -spec.prefix_skew
    chosen = choice_rng.choice(spec.num_prefixes, n, p=weights / weights.sum())
    return [texts[one] for one in chosen.tolist()]


def with_prefix(prefix: tuple[int, ...], text: tuple[int, ...], length: int) -> tuple[int, ...]:
    """Both, cut to a length: the end of the text goes first, but one token of it stays behind the prefix."""
    kept = prefix[: max(0, length - 1)]
    return (*kept, *text[: length - len(kept)])
