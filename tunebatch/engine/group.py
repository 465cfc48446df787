"""The sequences that decode, as one group that changes little from step to step.

Every member computes one token in a decode step, so positions, contexts and remaining lengths
all move together. The group keeps them relative to its own step count and sorts members by the
step at which something happens to them: a step then costs what changed, not what runs.
"""

from __future__ import annotations

from collections import defaultdict

from tunebatch.engine.sequence import Sequence, Status


class DecodeGroup:
    """Members in row order, the sum of their contexts, and who is due for what.

    Attributes:
        members: ``members[i].row == i``; leaving moves the last member into the gap.
        step: Decode steps that the group has made.
        context_sum: KV tokens that the next decode step attends to, over all members.
        version: Changes when the membership does.
    """

    __slots__ = (
        "_block_size",
        "_crossing",
        "_finishing",
        "_seen",
        "_seen_version",
        "context_sum",
        "members",
        "step",
        "version",
    )

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._crossing: list[dict[int, Sequence]] = [{} for _ in range(block_size)]
        self._finishing: defaultdict[int, dict[int, Sequence]] = defaultdict(dict)
        self.members: list[Sequence] = []
        self.step = 0
        self.context_sum = 0
        self.version = 0
        self._seen: tuple[Sequence, ...] = ()
        self._seen_version = 0

    def __len__(self) -> int:
        return len(self.members)

    def join(self, sequence: Sequence) -> None:
        """Add a sequence whose every token but the last is computed."""
        sequence.status = Status.DECODE
        sequence.joined_step = self.step
        sequence.row = len(self.members)
        self.members.append(sequence)
        self.context_sum += sequence.num_computed + 1
        self._crossing[self._residue(sequence)][sequence.id] = sequence
        self._finishing[self._last_step(sequence)][sequence.id] = sequence
        self.version += 1

    def leave(self, sequence: Sequence) -> None:
        """Remove a member and write its counters back."""
        del self._crossing[self._residue(sequence)][sequence.id]
        last_step = self._last_step(sequence)
        due = self._finishing[last_step]
        del due[sequence.id]
        if not due:
            del self._finishing[last_step]
        self.context_sum -= self.num_computed(sequence) + 1
        made = self.step - sequence.joined_step
        sequence.num_computed += made
        sequence.num_output += made
        last = self.members.pop()
        if last is not sequence:
            last.row = sequence.row
            self.members[last.row] = last
        sequence.row = -1
        self.version += 1

    def advance(self) -> None:
        """Every member has computed one token."""
        self.step += 1
        self.context_sum += len(self.members)

    def snapshot(self) -> tuple[Sequence, ...]:
        """The members as they are now, whoever joins or leaves later; made once for each membership."""
        if self._seen_version != self.version:
            self._seen, self._seen_version = tuple(self.members), self.version
        return self._seen

    def num_computed(self, member: Sequence) -> int:
        return member.num_computed + self.step - member.joined_step

    def crossing(self) -> list[Sequence]:
        """Members whose next token is the first of a block."""
        return list(self._crossing[self.step % self._block_size].values())

    def finishing(self) -> list[Sequence]:
        """Members whose token of the step just made was the last they asked for."""
        return list(self._finishing.get(self.step - 1, {}).values())

    def _residue(self, sequence: Sequence) -> int:
        return (sequence.joined_step - sequence.num_computed) % self._block_size

    def _last_step(self, sequence: Sequence) -> int:
        return sequence.joined_step + sequence.request.max_tokens - sequence.num_output - 1
