"""What proposes the tokens that may come next."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Protocol

from tunebatch.engine.sequence import Sequence

Wanted = tuple[Sequence, int]


class Drafter(Protocol):
    """Guesses how sequences go on; what it guesses changes the speed of serving, never the tokens.

    Attributes:
        num_computed: Tokens of prompts and answers that a model of its own has computed since `reset`; the
            drafts that it makes are not counted.
        num_reused: Those that it did not have to compute, as others begin alike.
    """

    num_computed: int
    num_reused: int

    def propose(self, wanted: SequenceOf[Wanted], generation: SequenceOf[int]) -> list[SequenceOf[int]]:
        """For each ``(sequence, count)`` up to ``count`` tokens that may follow all it has so far.

        The sequences have a batch slot, and blocks for their tokens and ``count`` more.

        Args:
            generation: Of every block, see `engine.blocks.BlockPool`.
        """
        ...

    def reset(self) -> None:
        """Forget all sequences."""
        ...
