"""A packed step of real tokens through a Hugging Face decoder."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tunebatch.engine.group import DecodeGroup
from tunebatch.engine.plan import OutOfDeviceMemoryError, StepOutput, StepPlan
from tunebatch.engine.request import Sampling
from tunebatch.engine.sequence import Sequence
from tunebatch.execute.torch.attention.base import KvCache, NewPools, StepContext
from tunebatch.execute.torch.forward import Forward
from tunebatch.execute.torch.sampler import sample

Ints = NDArray[np.int64]


class TorchExecutor:
    """Runs step plans on a model whose attention layers call `attention.base.attention_forward`.

    The host keeps one row of state per batch slot (last token, position, block table), so a decode
    step gathers rows instead of visiting sequences. All inputs of a step travel to the device in one
    copy, and the sampled tokens come back in one.

    Args:
        model: A causal language model, switched to the registered attention function.
        forward: Turns a packed step into logits.
        new_pools: Makes a layer's KV pools; see `attention.base.KvCache`.
        num_blocks: KV blocks in the pool.
        max_slots: Batch slots.
        max_context: Most tokens a sequence may have.
        model_info: Facts for result files.
    """

    def __init__(
        self,
        model: Any,
        forward: Forward,
        new_pools: NewPools,
        *,
        num_blocks: int,
        block_size: int,
        max_slots: int,
        max_context: int,
        eos_token_ids: frozenset[int],
        model_info: dict[str, Any],
    ) -> None:
        self.model = model
        self._forward = forward
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_slots = max_slots
        self.max_context = max_context
        self.eos_token_ids = eos_token_ids
        self.model_info = model_info
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self.device = next(model.parameters()).device
        self.cache = KvCache(num_blocks, block_size, new_pools)
        self._last_token: Ints = np.zeros(max_slots, np.int64)
        self._position: Ints = np.zeros(max_slots, np.int64)
        self._tables: Ints = np.zeros((max_slots, -(-max_context // block_size)), np.int64)
        self._staging = self._new_staging(1 << 14)
        self._random: dict[int, Sampling] = {}
        self._rows: Ints = np.zeros(0, np.int64)
        self._rows_of: tuple[DecodeGroup, int] | None = None

    def reset(self) -> None:
        """Forget all sequences; the pools keep their memory."""
        self._rows_of = None
        self._random.clear()

    def execute(self, plan: StepPlan) -> StepOutput:
        """Compute the plan's tokens; see `engine.plan.Executor`."""
        try:
            tokens = self._sampled(plan)
        except torch.OutOfMemoryError as error:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfDeviceMemoryError(
                f"out of device memory in a step of {plan.num_slice_tokens} prefill tokens "
                f"and {plan.num_decodes} decodes"
            ) from error
        sampled = iter(tokens)
        slice_tokens = [(next(sampled),) if piece.sample else () for piece in plan.slices]
        decode_tokens = list(sampled)
        self._remember(plan, slice_tokens, decode_tokens)
        return StepOutput(slice_tokens, decode_tokens)

    @torch.inference_mode()
    def logits(self, plan: StepPlan) -> torch.Tensor:
        """Logits of every token that the plan samples, ``[sampled, vocabulary]``: slices, then decodes."""
        for piece in plan.slices:
            self._take_table(piece.sequence)
        for sequence in plan.grown:
            last = len(sequence.block_table) - 1
            self._tables[sequence.slot, last] = sequence.block_table[last]
        rows = self._decode_rows(plan.decodes)
        input_ids, sampled_at, step = self._stage(plan, rows)
        return self._forward(input_ids, sampled_at, step)

    @torch.inference_mode()
    def _sampled(self, plan: StepPlan) -> list[int]:
        logits = self.logits(plan)
        return sample(logits, self._not_greedy(plan)).tolist()

    def _stage(self, plan: StepPlan, rows: Ints) -> tuple[torch.Tensor, torch.Tensor, StepContext]:
        """Lay the step out in one buffer, copy it, and hand out views of the copy."""
        slices = [(piece.start, piece.num_tokens) for piece in plan.slices]
        slots = np.concatenate([np.array([p.sequence.slot for p in plan.slices], np.int64), rows])
        counts = np.ones(len(slots), np.int64)
        counts[: len(slices)] = [count for _, count in slices]
        starts = self._position[slots]
        starts[: len(slices)] = [start for start, _ in slices]
        ends = np.cumsum(counts)
        total = int(ends[-1])
        context_lens = starts + counts
        longest = int(context_lens.max())
        width = -(-longest // self.block_size)
        tables = self._tables[slots, :width]
        position = np.arange(total) - np.repeat(ends - counts, counts) + np.repeat(starts, counts)
        owner = np.repeat(np.arange(len(slots)), counts)
        block = tables[owner, position // self.block_size]
        ids = [token for p in plan.slices for token in p.sequence.token_ids(p.start, p.num_tokens)]
        keep = [i for i, piece in enumerate(plan.slices) if piece.sample]
        keep += range(len(slices), len(slots))
        parts = (
            np.concatenate([np.array(ids, np.int64), self._last_token[rows]]),
            position,
            block * self.block_size + position % self.block_size,
            ends[keep] - 1,
            np.concatenate([np.zeros(1, np.int64), ends]),
            context_lens,
            tables.ravel(),
        )
        ids_t, position_t, cache_slots, sampled_at, query_start, lens, flat = self._copy(parts)
        first = ends - counts
        step = StepContext(
            cache=self.cache,
            positions=position_t,
            query_start=query_start,
            context_lens=lens,
            block_tables=flat.view(len(slots), width),
            cache_slots=cache_slots,
            slices=[(int(first[i]), count, start) for i, (start, count) in enumerate(slices)],
            num_slice_tokens=sum(count for _, count in slices),
            max_context_len=longest,
            decode_context_sum=0 if plan.decodes is None else plan.decodes.context_sum,
        )
        return ids_t, sampled_at, step

    def _copy(self, parts: SequenceOf[Ints]) -> list[torch.Tensor]:
        sizes = [len(part) for part in parts]
        total = sum(sizes)
        if total > len(self._staging):
            self._staging = self._new_staging(2 * total)
        np.concatenate(parts, out=self._staging.numpy()[:total])
        return list(self._staging[:total].to(self.device, non_blocking=True).split(sizes))

    def _new_staging(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int64, pin_memory=self.device.type == "cuda")

    def _decode_rows(self, group: DecodeGroup | None) -> Ints:
        if group is None:
            return np.zeros(0, np.int64)
        if self._rows_of != (group, group.version):
            self._rows = np.array([member.slot for member in group.members], np.int64)
            self._rows_of = (group, group.version)
        return self._rows

    def _take_table(self, sequence: Sequence) -> None:
        self._tables[sequence.slot, : len(sequence.block_table)] = sequence.block_table
        if sequence.request.sampling.greedy:
            self._random.pop(sequence.slot, None)
        else:
            self._random[sequence.slot] = sequence.request.sampling

    def _not_greedy(self, plan: StepPlan) -> list[tuple[int, Sampling, int]]:
        if not self._random:
            return []
        found: list[tuple[int, Sampling, int]] = []
        row = 0
        for piece in plan.slices:
            if piece.sample and piece.sequence.slot in self._random:
                end = piece.start + piece.num_tokens
                found.append((row, self._random[piece.sequence.slot], end))
            row += piece.sample
        if plan.decodes is not None:
            for offset, slot in enumerate(self._rows.tolist()):
                if slot in self._random:
                    found.append((row + offset, self._random[slot], int(self._position[slot]) + 1))
        return found

    def set_slot(self, slot: int, last_token: int, position: int) -> None:
        """Say which token a slot computes next, and where; decodes go on from there by themselves."""
        self._last_token[slot] = last_token
        self._position[slot] = position

    def _remember(
        self, plan: StepPlan, slice_tokens: SequenceOf[SequenceOf[int]], decode_tokens: list[int]
    ) -> None:
        for piece, tokens in zip(plan.slices, slice_tokens, strict=True):
            if tokens:
                self.set_slot(piece.sequence.slot, tokens[-1], piece.start + piece.num_tokens)
        if decode_tokens:
            self._last_token[self._rows] = decode_tokens
            self._position[self._rows] += 1
