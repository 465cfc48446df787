"""What the prompts say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

# Ids below this are special tokens in most vocabularies: end, begin, padding, unknown.
FIRST_ORDINARY_ID = 4


class PromptSource(Protocol):
    """Gives texts of a wanted length.

    An implementation draws from ``rng`` exactly once a text, whatever the length, so that a change
    of one request's length leaves the text of all others as it was.
    """

    def prompt(self, number: int, length: int, rng: np.random.Generator) -> tuple[int, ...]:
        """``length`` token ids.

        Texts with different numbers part at their first token, as long as there are tokens enough for
        all numbers, and at one of the next beyond: what requests share is then what a workload makes
        them share, and a prefix cache finds nothing else.
        """


class CorpusPrompts:
    """Real text: windows of a tokenized corpus, each from a place where the number's first token stands.

    A window runs from one document into the next, and from the end of the corpus to its beginning.

    Args:
        path: A safetensors file with ``tokens``, all documents in a row (int, 1-D).

    Raises:
        ValueError: The file is missing, unreadable or not such a corpus; one line.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            arrays = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"prompt corpus {path}: cannot be read: {error}") from error
        if "tokens" not in arrays:
            raise ValueError(f"prompt corpus {path}: no 'tokens'; expected an array of that name")
        tokens = arrays["tokens"]
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not (tokens >= FIRST_ORDINARY_ID).any():
            raise ValueError(
                f"prompt corpus {path}: 'tokens' is {tokens.dtype} {tokens.shape}; "
                f"expected a row of whole numbers, some from {FIRST_ORDINARY_ID} on"
            )
        if tokens.min() < 0:
            raise ValueError(f"prompt corpus {path}: 'tokens' has {tokens.min()}; expected ids from 0")
        ordinary = np.unique(tokens[tokens >= FIRST_ORDINARY_ID])
        self._openings: list[int] = np.random.default_rng(0).permutation(ordinary).tolist()
        self._by_token = np.argsort(tokens, kind="stable")
        self._sorted = tokens[self._by_token]
        # As objects, so that all texts share the few integers that there are.
        self._tokens = tokens.astype(object)

    def prompt(self, number: int, length: int, rng: np.random.Generator) -> tuple[int, ...]:
        opening = self._openings[number % len(self._openings)]
        first, last = np.searchsorted(self._sorted, [opening, opening + 1])
        start = int(self._by_token[first + int((last - first) * rng.random())])
        window = np.arange(start, start + length)
        return _told_apart(np.take(self._tokens, window, mode="wrap").tolist(), number, self._openings)


class RandomPrompts:
    """Ids drawn uniformly from a vocabulary, leaving out the special ones at its beginning.

    Right for speed, meaningless as text; a longer text of the same draw begins with the shorter.

    Args:
        vocab_size: Ids run from `FIRST_ORDINARY_ID` to one below this.
    """

    def __init__(self, vocab_size: int) -> None:
        if vocab_size <= FIRST_ORDINARY_ID:
            raise ValueError(f"vocabulary of {vocab_size} tokens, must have more than {FIRST_ORDINARY_ID}")
        self._openings = range(FIRST_ORDINARY_ID, vocab_size)
        self._ids = np.array(self._openings, dtype=object)

    def prompt(self, number: int, length: int, rng: np.random.Generator) -> tuple[int, ...]:
        own = np.random.default_rng(rng.integers(2**63))
        drawn = own.integers(0, len(self._ids), length)
        return _told_apart(self._ids[drawn].tolist(), number, self._openings)


def _told_apart(text: list[int], number: int, openings: Sequence[int]) -> tuple[int, ...]:
    """The text with the digits of its number, to the base of the openings, as its first tokens; leading
    zeros are left out but for the first token's."""
    left = number
    for place in range(len(text)):
        if place and not left:
            break
        left, digit = divmod(left, len(openings))
        text[place] = openings[digit]
    return tuple(text)
