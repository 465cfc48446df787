"""Where greedy tokens of 16 bits part from those of ``generate``, and how near a tie it was there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import ReplayClock
from tunebatch.engine.request import Request
from tunebatch.engine.strategies import Strategy
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.same_tokens import AllAtOnce, generate, own_logits, rounding


@dataclass(frozen=True, slots=True)
class Divergence:
    """Two outputs of a request that part.

    Attributes:
        at: Output token.
        gap: From the highest logit there to the lower of the two tokens', as the model's own forward has
            them; that of the highest two where these are they.
        explained: What sums in another order explain.
    """

    strategy: str
    request: int
    at: int
    gap: float
    explained: float

    @property
    def near_tie(self) -> bool:
        return self.gap <= self.explained

    @property
    def told(self) -> str:
        return (
            f"{self.strategy}: request {self.request} parts at output token {self.at}, where the two tokens' "
            f"logits are {self.gap:.3g} apart (re-ordered sums explain {self.explained:.3g})"
        )


def divergences(
    executor: TorchExecutor,
    strategies: Sequence[Strategy],
    prompts: Sequence[tuple[int, ...]],
    max_tokens: int,
) -> list[Divergence]:
    """Serve the prompts greedily under every strategy; of each output the first token that is another."""
    expected = [generate(executor, prompt, max_tokens) for prompt in prompts]
    requests = [Request(i, prompt, max_tokens, ignore_eos=True) for i, prompt in enumerate(prompts)]
    found: list[Divergence] = []
    known: dict[tuple[int, ...], tuple[float, float]] = {}
    for strategy in strategies:
        executor.reset()
        record = engine_for(strategy, executor, AllAtOnce(requests), ReplayClock()).run()
        for request, served in zip(requests, record.requests, strict=True):
            want = expected[request.id]
            at = next((i for i, (a, b) in enumerate(zip(served.output, want, strict=True)) if a != b), None)
            if at is None:
                continue
            place = (request.id, at, served.output[at])
            if place not in known:
                pair = [want[at], served.output[at]]
                known[place] = _tie(executor, [*request.prompt, *want[:at]], pair)
            found.append(Divergence(strategy.name, request.id, at, *known[place]))
    executor.reset()
    return found


def _tie(executor: TorchExecutor, text: list[int], pair: list[int]) -> tuple[float, float]:
    logits = own_logits(executor, text).float()
    gap = float(logits.max() - logits[pair].min())
    return gap, rounding(executor.model.dtype, float(logits.abs().max()))
