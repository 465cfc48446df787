"""A packed step of real tokens through a Hugging Face decoder."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from tunebatch.engine.group import DecodeGroup
from tunebatch.engine.plan import Slice, StepOutput, StepPlan
from tunebatch.engine.request import Sampling
from tunebatch.engine.sequence import Sequence
from tunebatch.engine.speculation.drafter import Drafter
from tunebatch.execute.torch.attention.base import KvCache, NewPools
from tunebatch.execute.torch.forward import Forward, finds_highest
from tunebatch.execute.torch.graphs.graphs import Graphs
from tunebatch.execute.torch.last_tokens import LastTokens, Reading, read
from tunebatch.execute.torch.out_of_memory import out_of_memory, ran_out
from tunebatch.execute.torch.sampler import Draw, highest, numbers_of, sample
from tunebatch.execute.torch.slots import Packed, Slots
from tunebatch.execute.torch.staging import Ints

_NONE: Ints = np.zeros(0, np.int64)


class TorchExecutor:
    """Runs step plans on a model whose attention layers call `attention.base.attention_forward`.

    The host keeps one row of state per batch slot (position, block table), so a decode step gathers rows
    instead of visiting sequences; last tokens are kept so on the device. All inputs of a step travel to the
    device in one copy, and the sampled tokens come back in one, which only `collect` waits for.

    Args:
        model: A causal language model, switched to the registered attention function.
        forward: Turns a packed step into logits.
        new_pools: Makes a layer's KV pools; see `attention.base.KvCache`.
        num_blocks: KV blocks in the pool.
        max_slots: Batch slots.
        max_context: Most tokens a sequence may have.
        model_info: Facts for result files.

    Attributes:
        drafter: A draft model beside this one.
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
        self.forward = forward
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_slots = max_slots
        self.max_context = max_context
        self.eos_token_ids = eos_token_ids
        self.model_info = model_info
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self.device = next(model.parameters()).device
        self.cache = KvCache(num_blocks, block_size, new_pools)
        self.slots = Slots(self.cache, max_slots, max_context, self.device)
        self._last_tokens = LastTokens(max_slots, self.device)
        self._position: Ints = np.zeros(max_slots, np.int64)
        self.drafter: Drafter | None = None
        self._graphs: Graphs | None = None
        self._random: dict[int, Sampling] = {}
        self._rows = _NONE
        self._rows_of: tuple[DecodeGroup, int] | None = None

    def reset(self) -> None:
        """Forget all sequences; the pools keep their memory."""
        if self.device.type == "cuda":
            # A run that broke off may have left a step in flight, whose inputs must not be written over.
            torch.cuda.synchronize(self.device)
        self.slots.reset()
        self._last_tokens.reset()
        self._rows_of = None
        self._random.clear()

    @property
    def overlaps(self) -> bool:
        """See `engine.plan.Overlapping`."""
        return self.device.type == "cuda"

    def execute(self, plan: StepPlan) -> StepOutput:
        """Compute the plan's tokens; see `engine.plan.Executor`."""
        return self.collect(self.submit(plan))

    def submit(self, plan: StepPlan) -> Reading:
        """See `engine.plan.Overlapping`; a CPU computes at once."""
        try:
            return self._sampled(plan)
        except RuntimeError as error:
            if not ran_out(error):
                raise
            step = f"in a step of {plan.num_slice_tokens} prefill tokens and {plan.num_decodes} decodes"
            raise out_of_memory(self.device, error, step) from error

    def collect(self, handle: Reading) -> StepOutput:
        """See `engine.plan.Overlapping`."""
        sampled = iter(handle.wait())
        slice_tokens = [_accepted(piece, sampled) for piece in handle.slices]
        if _verifies(handle.slices):
            for piece, tokens in zip(handle.slices, slice_tokens, strict=True):
                if tokens:
                    rejected = len(piece.draft_tokens) + 1 - len(tokens)
                    self.set_slot(piece.sequence.slot, tokens[-1], piece.start + piece.num_tokens - rejected)
        return StepOutput(slice_tokens, list(sampled))

    @torch.inference_mode()
    def logits(self, plan: StepPlan) -> torch.Tensor:
        """Logits ``[sampled, vocabulary]`` of every token that the plan samples: slices, then decodes; of a
        slice with drafts those of the token before each draft, and of the last."""
        self._take_tables(plan)
        logits, replayed = self._run(self._stage(plan, []).packed)
        return logits if replayed is None else logits.clone()

    def use_graphs(self, graphs: Graphs | None) -> None:
        """From here on replay the steps that have a graph."""
        self._graphs = self.slots.graphs = graphs

    def highest(self, packed: Packed) -> torch.Tensor:
        """The most probable token of each sampled row of a step that is laid out."""
        if self._graphs is None and finds_highest(self.forward):
            return self.forward.highest(*packed)
        logits, tokens = self._run(packed)
        return highest(logits) if tokens is None else tokens.clone()

    def _run(self, packed: Packed) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits, and the highest of each row where a graph has found them."""
        replayed = self._graphs.replay(*packed) if self._graphs is not None else None
        return replayed or (self.forward(*packed), None)

    @torch.inference_mode()
    def _sampled(self, plan: StepPlan) -> Reading:
        self._take_tables(plan)
        draws = self._draws(plan)
        staged = self._stage(plan, draws)
        logits, tokens = self._run(staged.packed)
        if tokens is None or draws:
            tokens = sample(logits, draws, staged.draws)
        self._remember(plan, tokens, staged)
        return read(tokens, plan.slices)

    def _stage(self, plan: StepPlan, draws: list[Draw]) -> _Staged:
        """Lay the step out in one buffer, copy it, and hand out views of the copy."""
        rows = self._decode_rows(plan.decodes)
        told = self._last_tokens.take_told() if len(rows) else rows
        beside = (rows, _goes_on(plan.slices), told, numbers_of(draws) if draws else _NONE)
        packed, there = (
            self._pack(plan, rows, beside)
            if plan.slices
            # In the place of what decodes compute travels their slot: the host may not know the token yet.
            else self.slots.pack_decodes(rows, rows, self._position[rows], beside)
        )
        staged = _Staged(packed, *there)
        if len(rows):
            tokens, _, step = packed
            # A graph may compute decodes as slices of one token each, which follow the others without a gap.
            apart = len(step.context_lens) > len(step.slices)
            begin = step.num_slice_tokens if apart else plan.num_slice_tokens
            self._last_tokens.fill(tokens[begin : begin + len(rows)], staged.rows, staged.told)
        return staged

    def _pack(
        self, plan: StepPlan, rows: Ints, beside: SequenceOf[Ints]
    ) -> tuple[Packed, SequenceOf[torch.Tensor]]:
        ids: list[int] = []
        keep: list[int] = []
        for piece in plan.slices:
            ids += piece.sequence.token_ids(piece.start, piece.num_tokens - len(piece.draft_tokens))
            ids += piece.draft_tokens
            if piece.sample:
                keep += range(len(ids) - 1 - len(piece.draft_tokens), len(ids))
        keep += range(len(ids), len(ids) + len(rows))
        return self.slots.pack(
            slots=np.concatenate([np.array([piece.sequence.slot for piece in plan.slices], np.int64), rows]),
            starts=np.concatenate([np.array([piece.start for piece in plan.slices]), self._position[rows]]),
            counts=np.array([*(piece.num_tokens for piece in plan.slices), *[1] * len(rows)]),
            tokens=np.concatenate([np.array(ids, np.int64), rows]),
            sampled_at=np.array(keep, np.int64),
            num_slices=len(plan.slices),
            beside=beside,
        )

    def _decode_rows(self, group: DecodeGroup | None) -> Ints:
        if group is None:
            return _NONE
        if self._rows_of != (group, group.version):
            self._rows = np.array([member.slot for member in group.members], np.int64)
            self._rows_of = (group, group.version)
        return self._rows

    def _take_tables(self, plan: StepPlan) -> None:
        for piece in plan.slices:
            self._take_table(piece.sequence)
        for sequence in plan.grown:
            self.slots.take(sequence.slot, sequence.block_table)

    def _take_table(self, sequence: Sequence) -> None:
        if not self.slots.take(sequence.slot, sequence.block_table):
            return
        if sequence.request.sampling.greedy:
            self._random.pop(sequence.slot, None)
        else:
            self._random[sequence.slot] = sequence.request.sampling

    def _draws(self, plan: StepPlan) -> list[Draw]:
        """Of the rows that are not greedy."""
        if not self._random:
            return []
        found: list[Draw] = []
        row = 0
        for piece in plan.slices:
            if piece.sample:
                drafts = len(piece.draft_tokens)
                sampling = self._random.get(piece.sequence.slot)
                if sampling is not None:
                    first = piece.start + piece.num_tokens - drafts
                    found += [(row + i, sampling, first + i) for i in range(drafts + 1)]
                row += drafts + 1
        if plan.decodes is not None:
            for offset, slot in enumerate(self._decode_rows(plan.decodes).tolist()):
                if slot in self._random:
                    found.append((row + offset, self._random[slot], int(self._position[slot]) + 1))
        return found

    def set_slot(self, slot: int, last_token: int, position: int) -> None:
        """Say which token a slot computes next, and where; decodes go on from there by themselves."""
        self._last_tokens.tell(slot, last_token)
        self._position[slot] = position

    def _remember(self, plan: StepPlan, tokens: torch.Tensor, staged: _Staged) -> None:
        """What the next step goes on from; after drafts that hangs on the tokens, see `collect`."""
        if len(staged.goes_on):
            for piece in plan.slices:
                if piece.sample:
                    self._last_tokens.untell(piece.sequence.slot)
                    self._position[piece.sequence.slot] = piece.start + piece.num_tokens
            self._last_tokens.sampled(staged.goes_on, tokens[: len(staged.goes_on)])
        if plan.decodes is not None:
            self._position[self._rows] += 1
            self._last_tokens.sampled(staged.rows, tokens[len(tokens) - len(self._rows) :])


class _Staged(NamedTuple):
    """A step that is laid out, and what travelled beside it; all on the device.

    Attributes:
        rows: Slots that decode.
        goes_on: Slots of slices whose sampled token the next step computes.
        told: See `LastTokens.take_told`.
        draws: See `sampler.numbers_of`.
    """

    packed: Packed
    rows: torch.Tensor
    goes_on: torch.Tensor
    told: torch.Tensor
    draws: torch.Tensor


def _goes_on(slices: list[Slice]) -> Ints:
    if _verifies(slices):
        return _NONE
    return np.array([piece.sequence.slot for piece in slices if piece.sample], np.int64)


def _verifies(slices: list[Slice]) -> bool:
    return any(piece.draft_tokens for piece in slices)


def _accepted(piece: Slice, sampled: Iterator[int]) -> list[int]:
    """The tokens that a slice's samples give: drafts as long as they are what was sampled in their place,
    and the one sampled after them.

    For a draft that is a single guess this is rejection sampling: it is kept with the probability that the
    target gives it, and otherwise the token is drawn from what the target gives the others (Leviathan et
    al., ICML 2023). As noise hangs on seed and position alone, the tokens are even those without drafts.
    Where the plan says how many drafts are accepted, they stay, since their keys and values do.
    """
    if not piece.sample:
        return []
    own = list(islice(sampled, len(piece.draft_tokens) + 1))
    if piece.num_accepted is not None:
        return [*piece.draft_tokens[: piece.num_accepted], own[piece.num_accepted]]
    kept = next((i for i, draft in enumerate(piece.draft_tokens) if draft != own[i]), len(own) - 1)
    return own[: kept + 1]
