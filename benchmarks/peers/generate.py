"""transformers' ``generate`` on padded static batches."""

from __future__ import annotations

import torch

from tunebatch.engine.request import Request

from .work import Case, Side, Turn, load, timed


def generate(case: Case) -> Side:
    """Batches in order of arrival; each runs to its longest, and only the tokens asked for count."""
    model = load(case)

    def turn(requests: list[Request]) -> Turn:
        outputs: list[list[int]] = []
        with torch.inference_mode(), timed() as span:
            for first in range(0, len(requests), case.batch):
                part = requests[first : first + case.batch]
                ids = torch.tensor([request.prompt for request in part])
                made = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=max(request.max_tokens for request in part),
                    do_sample=False,
                    pad_token_id=0,
                )
                rows = made[:, ids.shape[1] :].tolist()
                outputs += [row[: request.max_tokens] for row, request in zip(rows, part, strict=True)]
        return Turn(span.seconds, outputs, span.foreign_cores)

    return turn
