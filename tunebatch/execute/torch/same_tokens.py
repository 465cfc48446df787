"""The check before any timing: a strategy changes when tokens are computed, never which."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch

from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import ReplayClock
from tunebatch.engine.records import RequestRecord
from tunebatch.engine.request import Request
from tunebatch.engine.strategies import Strategy
from tunebatch.execute.torch.executor import TorchExecutor

# How far two computations of a logit may lie apart, in roundings of the largest one.
_ROUNDINGS = 4


class TokenMismatchError(RuntimeError):
    """Two ways of serving the same request gave different greedy tokens; one line."""


@dataclass(frozen=True, slots=True)
class SameTokens:
    """What was compared: requests and tokens under each of the strategies, and against ``generate``.

    Attributes:
        num_cached_tokens: Prompt tokens, over all strategies, that were not computed but shared.
        num_ties: Requests, over all strategies, that from a near tie on could not be compared.
    """

    num_requests: int
    num_tokens: int
    strategies: tuple[str, ...]
    num_ties: int = 0
    num_cached_tokens: int = 0


def check_same_tokens(
    executor: TorchExecutor,
    strategies: SequenceOf[Strategy],
    prompts: SequenceOf[tuple[int, ...]] | None = None,
    max_tokens: int = 16,
) -> SameTokens:
    """Serve a few requests greedily under every strategy and with ``generate``, and compare.

    Two of them come after the others and begin as the longest prompt does, so that a strategy with prefix
    caching finds their beginnings.

    Raises:
        TokenMismatchError: Names the strategy, the request, the first differing position and the
            difference of the two tokens' logits there.
    """
    max_tokens = min(max_tokens, _room(executor) // 2)
    prompts = list(prompts or _random_prompts(executor, max_tokens))
    expected = [generate(executor, prompt, max_tokens) for prompt in prompts]
    first = len(prompts)
    prompts += _follow_ups(prompts, expected, _room(executor) - max_tokens)
    expected += [generate(executor, prompt, max_tokens) for prompt in prompts[first:]]
    requests = [
        Request(id=i, prompt=prompt, max_tokens=max_tokens, ignore_eos=True)
        for i, prompt in enumerate(prompts)
    ]
    ties = cached = 0
    for strategy in strategies:
        executor.reset()
        source = AllAtOnce(requests[:first], requests[first:])
        record = engine_for(strategy, executor, source, ReplayClock()).run()
        for request, served in zip(requests, record.requests, strict=True):
            ties += _tie(executor, strategy.name, request, served.output, expected[request.id])
            cached += served.num_cached_tokens
    executor.reset()
    names = tuple(dict.fromkeys(strategy.name for strategy in strategies))
    return SameTokens(len(requests), sum(map(len, expected)), names, ties, cached)


class AllAtOnce:
    """A source whose requests are all there at the start; follow-ups come when all of these have ended."""

    def __init__(self, requests: SequenceOf[Request], follow_ups: SequenceOf[Request] = ()) -> None:
        self._requests = list(requests)
        self._follow_ups = list(follow_ups)
        self._left = len(self._requests)

    def next_arrival_s(self) -> float | None:
        return 0.0 if self._requests else None

    def take(self, now_s: float) -> list[Request]:
        taken, self._requests = self._requests, []
        return taken

    def finished(self, record: RequestRecord, now_s: float) -> None:
        self._left -= 1
        if self._left == 0:
            self._requests, self._follow_ups = self._follow_ups, []


@torch.inference_mode()
def generate(executor: TorchExecutor, prompt: SequenceOf[int], max_tokens: int) -> list[int]:
    """Greedy tokens by the model's own attention and cache, through ``generate``."""
    model = executor.model
    model.set_attn_implementation("eager")
    try:
        ids = torch.tensor([list(prompt)], device=executor.device)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            min_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    finally:
        model.set_attn_implementation("tunebatch")
    return out[0, len(prompt) :].tolist()


def _tie(
    executor: TorchExecutor, strategy: str, request: Request, got: list[int], expected: list[int]
) -> bool:
    """Whether two outputs part at a near tie, which rounding decides; False when they are equal.

    Raises:
        TokenMismatchError: They part, or end, anywhere else. In float32 no tie is near enough.
    """
    if got == expected:
        return False
    at = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), len(got))
    gap = float("nan")
    if at < min(len(got), len(expected)):
        logits = own_logits(executor, [*request.prompt, *expected[:at]])
        gap = float(logits[expected[at]] - logits[got[at]])
        dtype = executor.model.dtype
        if dtype != torch.float32 and abs(gap) <= rounding(dtype, float(logits.abs().max())):
            return True
    raise TokenMismatchError(
        f"strategy {strategy} gives other tokens than generate: request {request.id}, output token {at}, "
        f"logit gap {gap:.3g}; nothing was timed"
    )


def rounding(dtype: torch.dtype, largest_logit: float) -> float:
    """How far two computations of one logit may lie apart whose sums are in another order."""
    return _ROUNDINGS * torch.finfo(dtype).eps * largest_logit


@torch.inference_mode()
def own_logits(executor: TorchExecutor, tokens: list[int]) -> torch.Tensor:
    """Logits after the last of the tokens, by the model's own attention."""
    executor.model.set_attn_implementation("eager")
    try:
        return executor.model(torch.tensor([tokens], device=executor.device), use_cache=False).logits[0, -1]
    finally:
        executor.model.set_attn_implementation("tunebatch")


def _room(executor: TorchExecutor) -> int:
    """The most tokens that one sequence can have."""
    return min(executor.max_context, executor.num_blocks * executor.block_size)


def _random_prompts(executor: TorchExecutor, max_tokens: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(11)
    lengths = [min(n, _room(executor) - max_tokens) for n in (3, 16, 33, 70, 129)]
    return [tuple(rng.integers(4, executor.vocab_size, n).tolist()) for n in lengths]


def _follow_ups(
    prompts: SequenceOf[tuple[int, ...]], answers: SequenceOf[list[int]], longest: int
) -> list[tuple[int, ...]]:
    """What a conversation goes on with after its answer, and another question after the same beginning."""
    index = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    prompt, other = prompts[index], prompts[0]
    half = len(prompt) // 2
    return [(*prompt, *answers[index], *other)[:longest], (*prompt[:half], *other, *prompt[half:])[:longest]]
