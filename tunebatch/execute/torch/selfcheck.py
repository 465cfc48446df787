"""Does the paged model compute what the model computes?

Some architectures accept a custom attention function and are silently wrong, others keep their own.
So every load ends with this: logits of a packed, paged, mixed step against the model's own forward.
"""

from __future__ import annotations

import torch

from tunebatch.engine.group import DecodeGroup
from tunebatch.engine.plan import Slice, StepPlan
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.execute.torch.executor import TorchExecutor

PROMPT_LENGTHS = (5, 17, 40)
# Past a window, the prompts that are decoded and prefilled: by more than a block, cut off where it begins.
BEYOND = (0, 9, 24)
LONGEST_WINDOW = 1024  # whose check is over in a moment: the model's own forward takes its square
# Relative to the largest logit. Rounding explains 1e-6 in float32 and 1e-2 in bfloat16; a wrong mask is off
# by 4e-2 and more.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def prompts(vocab_size: int, max_context: int, window: int | None = None) -> list[list[int]]:
    """Short random prompts, always the same; two of them are longer than the window, if there is one."""
    generator = torch.Generator().manual_seed(7)
    lengths = [
        min(max(length, window + beyond) if window and beyond else length, max_context - 1)
        for length, beyond in zip(PROMPT_LENGTHS, BEYOND, strict=True)
    ]
    return [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in lengths]


@torch.inference_mode()
def own_logits(model: torch.nn.Module, texts: list[list[int]]) -> list[torch.Tensor]:
    """Logits of every position by the model's own forward, before its attention is replaced."""
    device = next(model.parameters()).device
    return [model(torch.tensor([text], device=device), use_cache=False).logits[0] for text in texts]


def worst_error(executor: TorchExecutor, texts: list[list[int]], expected: list[torch.Tensor]) -> float:
    """Largest difference of the paged logits, relative to the largest logit.

    Two prompts are prefilled but for their last token (one of them in two chunks), then that token is
    decoded in the same step in which the third prompt is prefilled.
    """
    group = DecodeGroup(executor.block_size)
    sequences: list[Sequence] = []
    used = 0
    for index, text in enumerate(texts):
        sequence = Sequence(Request(id=index, prompt=tuple(text), max_tokens=2))
        count = -(-(len(text) + 1) // executor.block_size)
        sequence.block_table = list(range(used, used + count))
        used += count
        sequence.slot = index
        sequences.append(sequence)
    a, b, c = sequences
    cut = len(texts[1]) // 2
    got = [
        (
            executor.logits(StepPlan([Slice(a, 0, len(texts[0]) - 1), Slice(b, 0, cut)])),
            [(0, -2), (1, cut - 1)],
        ),
        (executor.logits(StepPlan([Slice(b, cut, len(texts[1]) - 1 - cut)])), [(1, -2)]),
    ]
    for sequence in (a, b):
        sequence.num_computed = len(sequence.request.prompt) - 1
        executor.set_slot(sequence.slot, sequence.request.prompt[-1], sequence.num_computed)
        group.join(sequence)
    mixed = executor.logits(StepPlan([Slice(c, 0, len(texts[2]))], group))
    got.append((mixed, [(2, -1), (0, -1), (1, -1)]))
    executor.reset()
    largest = max(float(logits.abs().max()) for logits in expected)
    errors = [
        float((logits[i].float() - expected[which][position].float()).abs().max())
        for logits, rows in got
        for i, (which, position) in enumerate(rows)
    ]
    worst = max(errors)
    return worst / largest if worst == worst else float("inf")
