"""Sampled tokens stay on the device, where the next step takes them from; the host reads them when it can."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunebatch.engine.plan import Slice
from tunebatch.execute.torch.staging import Ints


class LastTokens:
    """Of every batch slot the token that it computes next, on the device.

    So a step can be prepared while the one that samples its inputs still runs (mini-sglang's token pool, but
    of one token a slot). What only the host knows, such as the last of the accepted drafts, it tells when a
    step decodes such a slot.
    """

    def __init__(self, max_slots: int, device: torch.device) -> None:
        self._tokens = torch.zeros(max_slots, dtype=torch.int64, device=device)
        self._told: dict[int, int] = {}

    def reset(self) -> None:
        """Forget what was told for earlier runs."""
        self._told.clear()

    def tell(self, slot: int, token: int) -> None:
        """The host's word on a slot; the next sample of it counts again."""
        self._told[slot] = token

    def take_told(self) -> Ints:
        """Slots of which the host has told something, then their tokens; `fill` wants them on the device."""
        told = np.array([*self._told, *self._told.values()], np.int64)
        self._told.clear()
        return told

    def fill(self, ids: Tensor, slots: Tensor, told: Tensor) -> None:
        """Write the tokens of ``slots [rows]`` into a step's inputs ``ids [rows]``; all on the device."""
        if len(told):
            self._tokens.index_copy_(0, *told.view(2, -1))
        torch.index_select(self._tokens, 0, slots, out=ids)

    def sampled(self, slots: Tensor, tokens: Tensor) -> None:
        """A step has sampled ``tokens [rows]`` for ``slots [rows]``; all on the device."""
        self._tokens.index_copy_(0, slots, tokens)

    def untell(self, slot: int) -> None:
        """A slot is another sequence's now, or will be sampled for."""
        self._told.pop(slot, None)


@dataclass(slots=True)
class Reading:
    """The sampled tokens of a step on their way to the host.

    Attributes:
        slices: The step's; then its decodes follow.
        tokens: On the host, but not before ``arrived``; None: they are there.
    """

    slices: list[Slice]
    tokens: Tensor | list[int]
    arrived: torch.cuda.Event | None = None

    def wait(self) -> list[int]:
        """The tokens; waits for this step, and for nothing that was submitted after it."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tokens if isinstance(self.tokens, list) else self.tokens.tolist()


def read(tokens: Tensor, slices: list[Slice]) -> Reading:
    """Begin to bring a step's tokens ``[sampled]`` to the host, which goes on meanwhile."""
    if tokens.device.type != "cuda":
        # At once, since a later step may write over them.
        return Reading(slices, tokens.tolist())
    on_host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
    on_host.copy_(tokens, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return Reading(slices, on_host, arrived)
