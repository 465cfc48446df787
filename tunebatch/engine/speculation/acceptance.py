"""Acceptance by chance, for models with random weights, whose tokens no drafter could guess."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from tunebatch.engine.sequence import Sequence
from tunebatch.engine.speculation.drafter import Drafter, Wanted

_64_BITS = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SyntheticAcceptance:
    """Draws how many drafts are accepted; the verification itself is computed as ever.

    Whether a draft for a position would be accepted hangs on the seed, the request and the position alone:
    every strategy meets the same luck, whatever its batches, and a run can be repeated.

    Args:
        rates: The probability that the first draft is accepted, that the second is when the first was, and
            so on; the last one holds for all further ones.
    """

    rates: tuple[float, ...]
    seed: int = 0

    def num_accepted(self, request_id: int, position: int, num_drafts: int) -> int:
        """Of ``num_drafts`` drafts of a request, of which the first would be its token ``position``."""
        rates = self.rates
        for i in range(num_drafts):
            if _uniform(self.seed, request_id, position + i) >= rates[min(i, len(rates) - 1)]:
                return i
        return num_drafts


class AlwaysDrafts:
    """A drafter that looks its drafts up, and makes them up where it finds none: tokens of the prompt.

    In random text nothing occurs twice, so that without this no draft would ever be verified.
    """

    num_computed = num_reused = 0

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter

    def propose(self, wanted: SequenceOf[Wanted], generation: SequenceOf[int] = ()) -> list[SequenceOf[int]]:
        """See `Drafter`."""
        found = self._drafter.propose(wanted, generation)
        return [
            drafts or _of_the_prompt(sequence, count)
            for drafts, (sequence, count) in zip(found, wanted, strict=True)
        ]

    def reset(self) -> None:
        """Forget all sequences."""
        self._drafter.reset()


def _of_the_prompt(sequence: Sequence, count: int) -> list[int]:
    prompt, at = sequence.request.prompt, len(sequence.output)
    return [prompt[(at + i) % len(prompt)] for i in range(count)]


def _uniform(*keys: int) -> float:
    """A number in [0, 1) that is the same for the same keys; SplitMix64's finalizer (Steele et al., 2014)."""
    mixed = 0
    for key in keys:
        mixed = (mixed + key + 0x9E3779B97F4A7C15) & _64_BITS
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _64_BITS
        mixed ^= mixed >> 31
    return (mixed >> 11) / (1 << 53)
