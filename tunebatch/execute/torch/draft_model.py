"""Drafts by a small model: all tokens of all sequences in one go, without a look at the host in between."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch

from tunebatch.engine.sequence import Sequence
from tunebatch.engine.speculation.drafter import Wanted
from tunebatch.execute.torch.attention.base import StepContext
from tunebatch.execute.torch.draft_room import DRAFT_DTYPE, MOST_TOKENS, checkpoint_of
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.load import load_executor
from tunebatch.execute.torch.model_error import ModelError
from tunebatch.execute.torch.out_of_memory import out_of_memory, ran_out
from tunebatch.execute.torch.staging import Ints


class DraftModel:
    """Proposes what a small model would say next, greedily.

    It has a KV cache of its own with the same blocks as the target's, so that a sequence's one block table
    holds for both. What it lacks of a sequence, be it a whole prompt or the two tokens after a step whose
    drafts were all accepted, it computes when it is asked next.

    Sequences that share blocks share them here too: of a block it remembers the generation in which it
    computed all of it, and as long as that is the present one, nobody computes it again. The target's word
    that a block is full would not do, as nobody may have been drafted for when the target filled it.

    Args:
        executor: The model, with as many blocks of the same size, and as many slots, as the target's.

    Attributes:
        num_computed: See `engine.speculation.drafter.Drafter`.
        num_reused: As well.
    """

    def __init__(self, executor: TorchExecutor) -> None:
        self.executor = executor
        self._slots = executor.slots
        self._computed = [0] * executor.max_slots
        self._ahead: list[list[int]] = [[]] * executor.max_slots
        self._num_full = [0] * executor.max_slots
        self._full_in = [0] * executor.num_blocks
        self.num_computed = self.num_reused = 0
        self._counting = torch.arange(executor.max_slots + 1, device=executor.device)

    def reset(self) -> None:
        """Forget all sequences and blocks; the pools keep their memory."""
        self._slots.reset()
        # A pool's generations begin at 1.
        self._full_in = [0] * self.executor.num_blocks
        self.num_computed = self.num_reused = 0

    @torch.inference_mode()
    def propose(self, wanted: SequenceOf[Wanted], generation: SequenceOf[int]) -> list[SequenceOf[int]]:
        """See `engine.speculation.drafter.Drafter`."""
        missing = [self._missing(sequence, generation) for sequence, _ in wanted]
        proposed: list[SequenceOf[int]] = [()] * len(wanted)
        chosen = self._that_fit(wanted, missing)
        if not chosen:
            return proposed
        chosen.sort(key=lambda i: -wanted[i][1])
        try:
            drafts = self._draft([wanted[i] for i in chosen], [missing[i] for i in chosen])
        except RuntimeError as error:
            if not ran_out(error):
                raise
            raise out_of_memory(self.executor.device, error, f"when drafting for {len(chosen)}") from error
        for i, tokens in zip(chosen, drafts, strict=True):
            self._has_computed(wanted[i][0], len(missing[i]), generation)
            self._ahead[wanted[i][0].slot] = tokens[:-1]
            proposed[i] = tokens
        return proposed

    def _missing(self, sequence: Sequence, generation: SequenceOf[int]) -> list[int]:
        """The tokens of a sequence whose keys and values the draft has not computed."""
        slot = sequence.slot
        if self._slots.take(slot, sequence.block_table):
            self._computed[slot], self._ahead[slot], self._num_full[slot] = 0, [], 0
        num_tokens = len(sequence.request.prompt) + len(sequence.output)
        computed = self._computed[slot]
        tokens = sequence.token_ids(computed, num_tokens - computed)
        # Its own drafts are computed already, as far as they came true. Never the last token, whose logits
        # give the first draft: where acceptance is drawn, a draft that was rejected may come true as well.
        true = 0
        for draft, token in zip(self._ahead[slot], tokens[:-1], strict=False):
            if draft != token:
                break
            true += 1
        true += self._shared(sequence.block_table, computed + true, num_tokens, generation)
        self._computed[slot] = computed + true
        self._ahead[slot] = []
        return tokens[true:]

    def _shared(self, table: list[int], computed: int, num_tokens: int, generation: SequenceOf[int]) -> int:
        """How many more tokens are in blocks that were computed for others, or before a preemption.

        The last token never is, since its logits give the first draft.
        """
        block_size = self.executor.block_size
        count, most = computed // block_size, (num_tokens - 1) // block_size
        while count < most and self._full_in[table[count]] == generation[table[count]]:
            count += 1
        shared = max(count * block_size - computed, 0)
        self.num_reused += shared
        return shared

    def _has_computed(self, sequence: Sequence, num_tokens: int, generation: SequenceOf[int]) -> None:
        """Tokens that are the sequence's own now; drafts, which may prove wrong, fill no block."""
        slot = sequence.slot
        self._computed[slot] += num_tokens
        self.num_computed += num_tokens
        num_full = self._computed[slot] // self.executor.block_size
        for block in sequence.block_table[self._num_full[slot] : num_full]:
            self._full_in[block] = generation[block]
        self._num_full[slot] = num_full

    def _that_fit(self, wanted: SequenceOf[Wanted], missing: list[list[int]]) -> list[int]:
        """Who drafts in this step: not who would compute a block that another is just computing, as it finds
        that in the next (within a step it could not, since a kernel may write what it reads as it goes)."""
        block_size = self.executor.block_size
        room, chosen, begun = MOST_TOKENS, list[int](), set[int]()
        for i, (sequence, count) in enumerate(wanted):
            computed, tokens = self._computed[sequence.slot], len(missing[i])
            if computed + tokens + count > self.executor.max_context:
                continue
            filled = sequence.block_table[computed // block_size : (computed + tokens) // block_size]
            if begun.isdisjoint(filled[:1]) and (tokens <= room or not chosen):
                chosen.append(i)
                room -= tokens
                begun.update(filled)
        return chosen

    def _draft(self, wanted: SequenceOf[Wanted], missing: list[list[int]]) -> list[list[int]]:
        """Drafts of sequences of which those that want most come first."""
        depths = [count for _, count in wanted]
        counts: Ints = np.array([len(tokens) for tokens in missing])
        packed, beside = self._slots.pack(
            slots=np.array([sequence.slot for sequence, _ in wanted]),
            starts=np.array([self._computed[sequence.slot] for sequence, _ in wanted]),
            counts=counts,
            tokens=np.array([token for tokens in missing for token in tokens]),
            sampled_at=np.cumsum(counts) - 1,
            num_slices=len(wanted),
            steps_after=depths[0] - 1,
        )
        first = packed[2]
        after = beside[-1].view(-1, 3, len(wanted)) if beside else ()
        found = [self.executor.highest(packed)]
        for drafted, (positions, cache_slots, lens) in enumerate(after, 1):
            going = len(depths) if depths[-1] > drafted else sum(depth > drafted for depth in depths)
            longest = first.max_context_len + drafted
            step = StepContext(
                cache=first.cache,
                positions=positions[:going],
                query_start=self._counting[: going + 1],
                context_lens=lens[:going],
                block_tables=first.block_tables[:going],
                cache_slots=cache_slots[:going],
                slices=[],
                num_slice_tokens=0,
                max_context_len=longest,
                context_sum=longest * going,
            )
            found.append(self.executor.highest((found[-1][:going], self._counting[:going], step)))
        return _by_sequence(torch.cat(found).tolist(), depths)


def _by_sequence(tokens: list[int], depths: list[int]) -> list[list[int]]:
    """Tokens that lie step by step as one list per sequence; those with the longest lists are first."""
    drafts: list[list[int]] = [[] for _ in depths]
    found = iter(tokens)
    for drafted in range(depths[0]):
        for draft, depth in zip(drafts, depths, strict=True):
            if depth > drafted:
                draft.append(next(found))
    return drafts


def load_draft(
    target: TorchExecutor,
    model: str,
    dtype: str = DRAFT_DTYPE,
    backend: str = "auto",
    graphs: bool = True,
) -> DraftModel:
    """Load a draft model beside a target, for which it then drafts.

    Args:
        model: As of ``load_executor``; ``bundled`` is the bundled target's draft.

    Raises:
        ModelError: It cannot be served, or its tokens are not the target's.
    """
    executor = load_executor(
        checkpoint_of(model),
        device=target.device.type,
        dtype=dtype,
        backend=backend,
        block_size=target.block_size,
        num_blocks=target.num_blocks,
        max_slots=target.max_slots,
        graphs=graphs,
    )
    if executor.vocab_size != target.vocab_size:
        raise ModelError(
            f"{model}: a vocabulary of {executor.vocab_size} tokens, the target's has {target.vocab_size}; "
            "a draft model needs the target's tokenizer"
        )
    facts = executor.model_info
    target.model_info["draft"] = {name: facts[name] for name in ("name", "parameters", "dtype")}
    target.drafter = DraftModel(executor)
    return target.drafter
