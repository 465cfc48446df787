"""What one step computes, and what came of it: the seam between scheduler and executor."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from tunebatch.engine.group import DecodeGroup
from tunebatch.engine.sequence import Sequence
from tunebatch.engine.speculation.drafter import Drafter


@dataclass(frozen=True, slots=True)
class Slice:
    """Compute ``num_tokens`` tokens of a sequence from ``start`` on.

    A whole prefill, a chunk of one and a verification of drafts are all slices.

    Attributes:
        sample: Sample after the last token (a chunk that does not end the prompt does not).
        draft_tokens: Tokens proposed to follow; they are the slice's last ``len(draft_tokens)`` tokens.
        num_accepted: Of these so many are accepted, whatever is sampled in their place; None: those that are
            what was sampled.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    sample: bool = True
    draft_tokens: tuple[int, ...] = ()
    num_accepted: int | None = None


@dataclass(slots=True)
class StepPlan:
    """One step: slices, and, if ``decodes`` is given, one token of each of the group's members.

    ``grown`` lists the members whose block table has new blocks at its end for this step.
    """

    slices: list[Slice] = field(default_factory=list)
    decodes: DecodeGroup | None = None
    grown: list[Sequence] = field(default_factory=list)
    num_preempted: int = 0

    def __bool__(self) -> bool:
        """There is something to compute."""
        return bool(self.slices) or self.decodes is not None

    @property
    def num_decodes(self) -> int:
        return 0 if self.decodes is None else len(self.decodes)

    @property
    def num_slice_tokens(self) -> int:
        return sum(piece.num_tokens for piece in self.slices)

    @property
    def num_prefill_tokens(self) -> int:
        return sum(piece.num_tokens for piece in self.slices if not piece.draft_tokens)


@dataclass(slots=True)
class StepOutput:
    """What a step produced.

    Attributes:
        slice_tokens: For each slice the tokens sampled: none, one, or with drafts up to
            ``len(draft_tokens) + 1``.
        decode_tokens: For each member of the group, in row order, its token. None when the executor
            computes no tokens (a simulation); then sequences end by length alone.
        duration_s: The step's duration where the executor decides it (a simulation), else None.
    """

    slice_tokens: SequenceOf[SequenceOf[int]]
    decode_tokens: SequenceOf[int] | None = None
    duration_s: float | None = None


class Executor(Protocol):
    """Turns step plans into tokens and time."""

    @property
    def block_size(self) -> int: ...

    @property
    def num_blocks(self) -> int: ...

    @property
    def max_slots(self) -> int: ...

    @property
    def max_context(self) -> int: ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    @property
    def drafter(self) -> Drafter | None:
        """A draft model that was loaded beside the model, if one was."""
        ...

    def execute(self, plan: StepPlan) -> StepOutput:
        """Compute the plan's tokens; returns when they are on the host.

        Raises:
            OutOfDeviceMemoryError: The step did not fit; the executor stays usable.
        """
        ...

    def reset(self) -> None:
        """Forget everything of earlier runs."""
        ...


@runtime_checkable
class Overlapping(Protocol):
    """An executor whose device may compute a step while the host plans and prepares the next.

    What a step computes from the tokens of the one before stays on the device; so a step may be submitted
    before these are collected, but no more than one. Steps are computed in order, and collected in order.

    Attributes:
        overlaps: Worth it here, as the device computes by itself; if not it is done only where asked for.
    """

    @property
    def overlaps(self) -> bool: ...

    def submit(self, plan: StepPlan) -> Any:
        """Start to compute the plan's tokens; nothing of the plan is read later.

        Raises:
            OutOfDeviceMemoryError: As `execute`, of this step.
        """
        ...

    def collect(self, handle: Any) -> StepOutput:
        """Wait for the tokens of the step that ``submit`` gave the handle for."""
        ...


class OutOfDeviceMemoryError(RuntimeError):
    """A step needed more device memory than there is; carries the step that did."""
