"""What the prompts say."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

# Ids below this are special tokens in most vocabularies: end, begin, padding, unknown.
FIRST_ORDINARY_ID = 4


class PromptSource(Protocol):
    """Gives prompts of a wanted length.

    An implementation draws from ``rng`` exactly once a prompt, whatever the length, so that a change
    of one request's length leaves the text of all others as it was.
    """

    def prompt(self, length: int, rng: np.random.Generator) -> tuple[int, ...]:
        """``length`` token ids."""


class CorpusPrompts:
    """Real text: windows of a tokenized corpus, each from the start of a document.

    A window runs on into the documents that follow, and from the end of the corpus to its beginning.

    Args:
        path: A safetensors file with ``tokens``, all documents in a row (int, 1-D), and ``starts``,
            the offset of each document (int32, 1-D).

    Raises:
        ValueError: The file is missing, unreadable or not such a corpus; one line.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            arrays = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"prompt corpus {path}: cannot be read: {error}") from error
        missing = [name for name in ("tokens", "starts") if name not in arrays]
        if missing:
            raise ValueError(
                f"prompt corpus {path}: no {missing[0]!r}; expected arrays 'tokens' and 'starts'"
            )
        self._tokens = arrays["tokens"]
        self._starts = arrays["starts"]
        for name, array in (("tokens", self._tokens), ("starts", self._starts)):
            if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu" or array.min() < 0:
                raise ValueError(
                    f"prompt corpus {path}: {name!r} is {array.dtype} {array.shape}; "
                    "expected a row of whole numbers from 0"
                )
        if self._starts.max() >= len(self._tokens):
            raise ValueError(
                f"prompt corpus {path}: a document starts at {self._starts.max()}, "
                f"beyond the {len(self._tokens)} tokens"
            )

    def prompt(self, length: int, rng: np.random.Generator) -> tuple[int, ...]:
        start = int(self._starts[rng.integers(len(self._starts))])
        window = np.arange(start, start + length)
        return tuple(np.take(self._tokens, window, mode="wrap").tolist())


class RandomPrompts:
    """Ids drawn uniformly from a vocabulary, leaving out the special ones at its beginning.

    Right for speed, meaningless as text; a longer prompt of the same draw begins with the shorter.

    Args:
        vocab_size: Ids run from `FIRST_ORDINARY_ID` to one below this.
    """

    def __init__(self, vocab_size: int) -> None:
        if vocab_size <= FIRST_ORDINARY_ID:
            raise ValueError(f"vocabulary of {vocab_size} tokens, must have more than {FIRST_ORDINARY_ID}")
        self._vocab_size = vocab_size

    def prompt(self, length: int, rng: np.random.Generator) -> tuple[int, ...]:
        own = np.random.default_rng(rng.integers(2**63))
        return tuple(own.integers(FIRST_ORDINARY_ID, self._vocab_size, length).tolist())
