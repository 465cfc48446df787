"""What proposes the tokens that may come next."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Protocol

from tunebatch.engine.sequence import Sequence

Wanted = tuple[Sequence, int]


class Drafter(Protocol):
    """Guesses how sequences go on; what it guesses changes the speed of serving, never the tokens."""

    def propose(self, wanted: SequenceOf[Wanted]) -> list[SequenceOf[int]]:
        """For each ``(sequence, count)`` up to ``count`` tokens that may follow all it has so far.

        The sequences have a batch slot, and blocks for their tokens and ``count`` more.
        """
        ...

    def reset(self) -> None:
        """Forget all sequences."""
        ...
