"""Plan and duration of every step that was timed, for cost models that will be fitted to them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

from tunebatch.engine.records import STEP_COLUMNS, RunRecord

COLUMNS = ("model", "run", *STEP_COLUMNS, "slices", "verifications")


@dataclass(slots=True)
class StepRows:
    """The rows of one part.

    ``slices`` are ``start:tokens`` of each prompt or chunk, ``verifications`` ``drafts:rejected``, with
    blanks between them; the other columns are those of `StepLog`.
    """

    rows: list[tuple[object, ...]] = field(default_factory=list)

    def add_run(self, model: str, run: str, record: RunRecord) -> None:
        """All steps of a run of the engine."""
        steps = record.steps
        facts = zip(*(getattr(steps, column) for column in STEP_COLUMNS), strict=True)
        for row, slices, verifications in zip(facts, steps.slices, steps.verifications, strict=True):
            self.rows.append(
                (
                    model,
                    run,
                    *row,
                    " ".join(f"{start}:{num}" for _, _, start, num in slices),
                    " ".join(f"{drafts}:{rejected}" for _, _, drafts, rejected in verifications),
                )
            )

    def add_step(
        self,
        model: str,
        run: str,
        duration_s: float,
        *,
        contexts: Sequence[int] = (),
        slices: Sequence[tuple[int, int]] = (),
        block_size: int,
    ) -> None:
        """A step that was planned by hand.

        Args:
            contexts: Tokens that each decode attends to.
            slices: ``(start, tokens)`` of each prompt or chunk.
        """
        lens = [*contexts, *(start + num for start, num in slices)]
        facts = {
            "start_s": "",
            "duration_s": duration_s,
            "num_prefills": len(slices),
            "num_prefill_tokens": sum(num for _, num in slices),
            "num_decodes": len(contexts),
            "context_sum": sum(contexts),
            "slots_active": len(lens),
            "slots_held": len(lens),
            "blocks_used": sum(-(-length // block_size) for length in lens),
        }
        self.rows.append(
            (
                model,
                run,
                *(facts.get(column, 0) for column in STEP_COLUMNS),
                " ".join(f"{start}:{num}" for start, num in slices),
                "",
            )
        )

    def write(self, file: TextIO) -> None:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(self.rows)
