"""Drafts by a small model: all tokens of all sequences in one go, without a look at the host in between."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch
from torch import Tensor

from tunebatch.engine.plan import OutOfDeviceMemoryError
from tunebatch.engine.sequence import Sequence
from tunebatch.engine.speculation.drafter import Wanted
from tunebatch.execute.torch.attention.base import StepContext
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.load import ModelError, load_executor
from tunebatch.execute.torch.sampler import highest
from tunebatch.execute.torch.slots import Ints, Packed
from tunebatch.models import bundled_draft

# Of new prompts, in one step; who does not fit has no drafts in this step.
_MOST_TOKENS = 8192


class DraftModel:
    """Proposes what a small model would say next, greedily.

    It has a KV cache of its own with the same blocks as the target's, so that a sequence's one block table
    holds for both. What it lacks of a sequence, be it a whole prompt or the two tokens after a step whose
    drafts were all accepted, it computes when it is asked next.

    Args:
        executor: The model, with as many blocks of the same size, and as many slots, as the target's.
    """

    def __init__(self, executor: TorchExecutor) -> None:
        self.executor = executor
        self._slots = executor.slots
        self._computed = [0] * executor.max_slots
        self._ahead: list[list[int]] = [[]] * executor.max_slots
        self._counting = torch.arange(executor.max_slots + 1, device=executor.device)

    def reset(self) -> None:
        """Forget all sequences; the pools keep their memory."""
        self._slots.reset()

    @torch.inference_mode()
    def propose(self, wanted: SequenceOf[Wanted]) -> list[SequenceOf[int]]:
        """See `engine.speculation.drafter.Drafter`."""
        missing = [self._missing(sequence) for sequence, _ in wanted]
        proposed: list[SequenceOf[int]] = [()] * len(wanted)
        chosen = self._that_fit(wanted, missing)
        if not chosen:
            return proposed
        # In a packed step slices come before single tokens.
        chosen.sort(key=lambda i: len(missing[i]) == 1)
        try:
            drafts = self._draft([wanted[i] for i in chosen], [missing[i] for i in chosen])
        except torch.OutOfMemoryError as error:
            if self.executor.device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfDeviceMemoryError(f"out of device memory when drafting for {len(chosen)}") from error
        for i, tokens in zip(chosen, drafts, strict=True):
            slot = wanted[i][0].slot
            self._computed[slot] += len(missing[i])
            self._ahead[slot] = tokens[:-1]
            proposed[i] = tokens
        return proposed

    def _missing(self, sequence: Sequence) -> list[int]:
        """The tokens of a sequence whose keys and values the draft has not computed."""
        slot = sequence.slot
        if self._slots.take(slot, sequence.block_table):
            self._computed[slot], self._ahead[slot] = 0, []
        num_tokens = len(sequence.request.prompt) + len(sequence.output)
        computed = self._computed[slot]
        tokens = sequence.token_ids(computed, num_tokens - computed)
        # Its own drafts are computed already, as far as they came true.
        true = 0
        for draft, token in zip(self._ahead[slot], tokens, strict=False):
            if draft != token:
                break
            true += 1
        self._computed[slot] += true
        self._ahead[slot] = []
        return tokens[true:]

    def _that_fit(self, wanted: SequenceOf[Wanted], missing: list[list[int]]) -> list[int]:
        room, chosen = _MOST_TOKENS, list[int]()
        for i, (sequence, count) in enumerate(wanted):
            tokens = len(missing[i])
            if self._computed[sequence.slot] + tokens + count > self.executor.max_context:
                continue
            if tokens <= room or not chosen:
                chosen.append(i)
                room -= tokens
        return chosen

    def _draft(self, wanted: SequenceOf[Wanted], missing: list[list[int]]) -> list[list[int]]:
        depths = np.array([count for _, count in wanted])
        packed = self._packed(wanted, missing, int(depths.max()))
        step = packed[2]
        tokens = highest(self.executor.forward(*packed))
        # From here on every sequence computes one token, and those that draft longest come first.
        order = np.argsort(-depths, kind="stable")
        rows = torch.from_numpy(order).to(tokens.device)
        tokens, positions, tables = tokens[rows], step.context_lens[rows], step.block_tables[rows]
        found = [tokens]
        for drafted in range(1, int(depths.max())):
            going = int((depths > drafted).sum())
            step = self._next(step, positions[:going], tables[:going])
            tokens = highest(self.executor.forward(tokens[:going], self._counting[:going], step))
            found.append(tokens)
            positions = positions + 1
        return _by_sequence(torch.cat(found).tolist(), depths, order)

    def _packed(self, wanted: SequenceOf[Wanted], missing: list[list[int]], room: int) -> Packed:
        slots: Ints = np.array([sequence.slot for sequence, _ in wanted])
        counts: Ints = np.array([len(tokens) for tokens in missing])
        starts: Ints = np.array([self._computed[slot] for slot in slots])
        num_slices = int((counts > 1).sum())
        return self._slots.pack(
            slots=slots,
            starts=starts,
            counts=counts,
            tokens=np.array([token for tokens in missing for token in tokens]),
            sampled_at=np.cumsum(counts) - 1,
            num_slices=num_slices,
            context_sum=int((starts + counts)[num_slices:].sum()),
            room=room,
        )

    def _next(self, before: StepContext, positions: Tensor, tables: Tensor) -> StepContext:
        """One more token of each sequence, prepared on the device."""
        block_size = before.cache.block_size
        blocks = tables.gather(1, (positions // block_size)[:, None])[:, 0]
        longest = before.max_context_len + 1
        return StepContext(
            cache=before.cache,
            positions=positions,
            query_start=self._counting[: len(positions) + 1],
            context_lens=positions + 1,
            block_tables=tables,
            cache_slots=blocks * block_size + positions % block_size,
            slices=[],
            num_slice_tokens=0,
            max_context_len=longest,
            decode_context_sum=longest * len(positions),
        )


def _by_sequence(tokens: list[int], depths: Ints, order: Ints) -> list[list[int]]:
    """Tokens that lie depth by depth, those of the longest drafts first, as one list per sequence."""
    drafts: list[list[int]] = [[] for _ in depths]
    first = 0
    for drafted in range(int(depths.max())):
        going = int((depths > drafted).sum())
        for row, token in zip(order[:going].tolist(), tokens[first : first + going], strict=True):
            drafts[row].append(token)
        first += going
    return drafts


def load_draft(
    target: TorchExecutor, model: str, dtype: str = "bfloat16", backend: str = "auto"
) -> DraftModel:
    """Load a draft model beside a target, for which it then drafts.

    Args:
        model: A local folder in Hugging Face format, or a hub id; ``bundled`` is the bundled target's draft.
        dtype: Half the bytes make a draft step cheaper, and what it rounds costs no token.

    Raises:
        ModelError: It cannot be served, or its tokens are not the target's.
    """
    executor = load_executor(
        str(bundled_draft()) if model == "bundled" else model,
        device=target.device.type,
        dtype=dtype,
        backend=backend,
        block_size=target.block_size,
        num_blocks=target.num_blocks,
        max_slots=target.max_slots,
    )
    if executor.vocab_size != target.vocab_size:
        raise ModelError(
            f"{model}: a vocabulary of {executor.vocab_size} tokens, the target's has {target.vocab_size}; "
            "a draft model needs the target's tokenizer"
        )
    target.drafter = DraftModel(executor)
    return target.drafter
