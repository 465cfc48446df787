"""Shuffled windows of the training files."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from tunebatch.models.corpus import TokenDocuments


class Windows:
    """Endless shuffled windows of the training files, the files reordered in every epoch."""

    def __init__(self, files: list[TokenDocuments], seed: int):
        self.files, self.rng = files, np.random.default_rng(seed)
        self.length = 0
        self.pool: Iterator[np.ndarray] = iter(())

    def _epoch(self, length: int) -> Iterator[np.ndarray]:
        order = self.rng.permutation(len(self.files))
        stream = np.concatenate([self.files[i].tokens for i in order])[self.rng.integers(length) :]
        rows = stream[: len(stream) // length * length].reshape(-1, length)
        return iter(rows[self.rng.permutation(len(rows))])

    def batch(self, rows: int, length: int) -> torch.Tensor:
        """``rows`` windows of ``length`` tokens, as int64 (rows, length)."""
        if length != self.length:
            self.length, self.pool = length, self._epoch(length)
        taken: list[np.ndarray] = []
        while len(taken) < rows:
            row = next(self.pool, None)
            if row is None:
                self.pool = self._epoch(length)
            else:
                taken.append(row)
        return torch.from_numpy(np.stack(taken).astype(np.int64))
