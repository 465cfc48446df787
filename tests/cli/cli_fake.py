"""An executor that takes no time to load and serves in virtual seconds."""

from __future__ import annotations

from typing import Any

from tunebatch.engine.plan import StepOutput, StepPlan


class FakeExecutor:
    """A step costs 10 ms and a bit for each sequence and prompt token."""

    block_size, num_blocks, max_slots, max_context, vocab_size = 16, 4096, 64, 2048, 4096
    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self.model_info: dict[str, Any] = {"name": "fake", "dtype": "float32", "device": "cpu"}

    def execute(self, plan: StepPlan) -> StepOutput:
        tokens = [[*piece.draft_tokens[: piece.num_accepted or 0], 5] for piece in plan.slices]
        seconds = 0.01 + 0.0003 * plan.num_decodes + 0.0001 * plan.num_slice_tokens
        return StepOutput(tokens, [5] * plan.num_decodes if plan.num_decodes else None, seconds)

    def reset(self) -> None:
        pass
