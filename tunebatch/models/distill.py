"""Teaches the draft to guess the target: first on library text, then on the target's own output.

Greedy acceptance asks for one thing, that the draft's first choice be the target's, on text the
target itself has written. So the loss adds the target's first choice (cross-entropy) to its whole
distribution (KL, Hinton et al. 2015), and the larger half of the budget is spent on the target's
greedy continuations of training prompts (compare DistillSpec, Zhou et al. 2023).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from tunebatch.models import corpus
from tunebatch.models.acceptance import Continuations, draw_prompts, greedy
from tunebatch.models.budget import SharedCores
from tunebatch.models.optim import PairOptimizer, schedule
from tunebatch.models.windows import Windows

TOKENS_PER_STEP = 4096
NEW_TOKENS, TOP = 96, 16
PROMPTS_PER_BATCH = 64
# The plain-text steps keep the draft sound where no prompt of the second stage reaches: far positions.
TEXT_STEP_EVERY, LONG_STEP_EVERY = 6, 24


def agreement_loss(logits: torch.Tensor, top_ids: torch.Tensor, top_logprobs: torch.Tensor) -> torch.Tensor:
    """Cross-entropy on the target's first choice plus that on its most likely tokens' probabilities."""
    logprobs = logits.float().log_softmax(-1)
    soft = -(top_logprobs.exp() * logprobs.gather(-1, top_ids)).sum(-1).mean()
    hard = -logprobs.gather(-1, top_ids[..., :1]).mean()
    return soft + hard


def start_from_target(draft: LlamaForCausalLM, target: LlamaForCausalLM) -> None:
    """Give the draft the target's token embeddings, which took the target most of its training to learn.

    A draft of fresh blocks passes a token's own embedding to its tied head, which would then repeat
    the token with near certainty; the smaller final norm keeps that first guess mild.
    """
    with torch.no_grad():
        draft.model.embed_tokens.weight.copy_(target.model.embed_tokens.weight)
        draft.model.norm.weight.fill_(0.4)


def text_loss(target: LlamaForCausalLM, draft: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """The draft's loss on plain text, plus a little of the text's own next-token loss."""
    with torch.no_grad():
        best = target(ids, use_cache=False).logits.float().log_softmax(-1).topk(TOP, dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = draft(ids, use_cache=False).logits
    own = cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    return agreement_loss(logits, best.indices, best.values) + 0.1 * own


def continuation_loss(draft: LlamaForCausalLM, batch: Continuations) -> torch.Tensor:
    """The draft's loss on the target's recorded choices after each prompt."""
    new = batch.top_ids.shape[1]
    with torch.autocast("cpu", torch.bfloat16):
        logits = draft(batch.ids[:, :-1], use_cache=False, logits_to_keep=new).logits
    return agreement_loss(logits, batch.top_ids, batch.top_logprobs)


def text_step(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    windows: Windows,
    stages: tuple[tuple[float, int], ...],
) -> Callable[[float], float]:
    """A training step on library text, its window length by the share of the budget spent."""
    optimizer = PairOptimizer(draft, muon_lr=0.02, adam_lr=3e-3)

    def step(progress: float) -> float:
        length = max(length for start, length in stages if progress >= start)
        loss = text_loss(target, draft, windows.batch(TOKENS_PER_STEP // length, length))
        loss.backward()
        optimizer.step(schedule(progress))
        return loss.item()

    return step


def write_continuations(
    target: LlamaForCausalLM, documents: corpus.TokenDocuments, minutes: float, seed: int
) -> list[Continuations]:
    """The target's greedy continuations of training prompts of 32 to 256 tokens, for ``minutes``."""
    rng = np.random.default_rng(seed)
    batches: list[Continuations] = []
    cores = SharedCores()
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        cores.adapt()
        prompts = draw_prompts(documents, PROMPTS_PER_BATCH, int(rng.integers(2, 17)) * 16, rng)
        batches.append(greedy(target, prompts, NEW_TOKENS, TOP))
        if len(batches) % 10 == 0:
            print(f"continuations: {len(batches) * PROMPTS_PER_BATCH * NEW_TOKENS} tokens", flush=True)
    return batches


def halves(batch: Continuations) -> list[Continuations]:
    """The batch in two, a step on each being worth more than one on both."""
    middle = len(batch.ids) // 2
    return [
        Continuations(batch.ids[part], batch.prompt_length, batch.top_ids[part], batch.top_logprobs[part])
        for part in (slice(0, middle), slice(middle, None))
    ]


def continuation_step(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    batches: list[Continuations],
    windows: Windows,
    seed: int,
) -> Callable[[float], float]:
    """A training step on recorded continuations, now and then on text of short or whole-context length."""
    optimizer = PairOptimizer(draft, muon_lr=0.01, adam_lr=2e-3)
    rng = np.random.default_rng(seed)
    queue: list[Continuations] = []
    count = 0

    def step(progress: float) -> float:
        nonlocal queue, count
        count += 1
        if count % TEXT_STEP_EVERY == 0:
            length = corpus.CONTEXT if count % LONG_STEP_EVERY == 0 else 256
            loss = text_loss(target, draft, windows.batch(TOKENS_PER_STEP // length, length))
        else:
            queue = queue or [batches[i] for i in rng.permutation(len(batches))]
            loss = continuation_loss(draft, queue.pop())
        loss.backward()
        optimizer.step(schedule(progress, decay=0.7))
        return loss.item()

    return step
