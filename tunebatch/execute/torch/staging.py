"""Pinned memory on the host, from which numbers travel to the device while the host goes on."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


class Pinned:
    """One buffer, which must not be written again while it is copied.

    Attributes:
        numbers: What the host writes.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._device = device
        self._memory = torch.zeros(size, dtype=torch.int64, pin_memory=on_gpu)
        self.numbers: Ints = self._memory.numpy()
        self._copied = torch.cuda.Event() if on_gpu else None

    def wait(self) -> None:
        """Until the last copy of it is made."""
        if self._copied is not None:
            self._copied.synchronize()

    def send(self, count: int) -> Tensor:
        """The first ``count`` numbers on the device, on a CPU this very memory; nobody waits for the copy."""
        sent = self._memory[:count].to(self._device, non_blocking=True)
        self._note()
        return sent

    def send_to(self, landed: Tensor, count: int) -> None:
        """The same, in memory that is there."""
        landed[:count].copy_(self._memory[:count], non_blocking=True)
        self._note()

    def _note(self) -> None:
        if self._copied is not None:
            self._copied.record()


class Staging:
    """Two buffers by turns: the host writes one while the other may still be copied.

    That a buffer is free is known from an event of its own, not from who has collected which step: a step
    may be submitted, and another after it, before anybody waits for the device.

    Args:
        size: Numbers that each holds at first.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._device = device
        self._turns = [Pinned(size, device) for _ in range(2)]

    def to_write(self, count: int) -> Ints:
        """Room for so many numbers; waits for nothing but the copy before last."""
        self._turns.reverse()
        self._turns[0].wait()
        if count > len(self._turns[0].numbers):
            self._turns[0] = Pinned(2 * count, self._device)
        return self._turns[0].numbers[:count]

    def send(self, count: int) -> Tensor:
        """See `Pinned.send`; of what was written last."""
        return self._turns[0].send(count)

    def send_to(self, landed: Tensor, count: int) -> None:
        """See `Pinned.send_to`; of what was written last."""
        self._turns[0].send_to(landed, count)
