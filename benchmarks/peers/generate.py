"""transformers' ``generate`` on padded static batches."""

from __future__ import annotations

import torch

from tunebatch.engine.request import Request

from .work import Case, Side, Turn, load, timed


def generate(case: Case) -> Side:
    """Batches in order of arrival, padded on the left; each runs to its longest, and only the tokens asked
    for count."""
    model = load(case)

    def turn(requests: list[Request]) -> Turn:
        outputs: list[list[int]] = []
        with torch.inference_mode(), timed() as span:
            for first in range(0, len(requests), case.batch):
                part = requests[first : first + case.batch]
                longest = max(len(request.prompt) for request in part)
                short = [longest - len(request.prompt) for request in part]
                rows = [[0] * pad + list(request.prompt) for pad, request in zip(short, part, strict=True)]
                ids = torch.tensor(rows, device=case.device)
                mask = torch.arange(longest) >= torch.tensor(short)[:, None]
                made = model.generate(
                    ids,
                    attention_mask=mask.long().to(case.device),
                    max_new_tokens=max(request.max_tokens for request in part),
                    do_sample=False,
                    pad_token_id=0,
                )
                rows = made[:, longest:].tolist()
                outputs += [row[: request.max_tokens] for row, request in zip(rows, part, strict=True)]
        return Turn(span.seconds, outputs, span.foreign_cores)

    return turn
