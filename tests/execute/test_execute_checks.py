"""The checks before anything is timed: windows, near ties, small pools."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import BLOCK_SIZE, tiny

from tunebatch.engine.prefix_cache import CachedBlock, PrefixCache
from tunebatch.engine.strategies import strategy
from tunebatch.execute.torch import same_tokens
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.load import ModelError, load_executor, serve


def long(kind: str, **config: Any) -> Any:
    """With room for windows."""
    return tiny(kind, max_position_embeddings=2048, **config)


def served(model: Any, **options: Any) -> TorchExecutor:
    return serve(model, name="tiny", block_size=BLOCK_SIZE, **options)


def test_a_window_that_only_the_mask_knows_is_refused() -> None:
    model = long("phimoe", num_local_experts=4, num_experts_per_tok=2, sliding_window=100)
    with pytest.raises(ModelError, match=r"phimoe .* differs from its own forward"):
        served(model)


def test_a_window_that_the_architecture_does_not_have_is_none() -> None:
    model = long("llama")
    model.config.sliding_window = 100
    executor = served(model)
    assert executor.model_info["forward"] == "compiled"
    prompts = [tuple(range(1, 90)) * 3]
    assert same_tokens.check_same_tokens(executor, [strategy("continuous")], prompts).num_requests == 3


def test_windows_too_long_to_be_checked_bound_the_context() -> None:
    def bound(**config: Any) -> tuple[int, Any]:
        executor = served(long("mistral", **config))
        return executor.max_context, executor.model_info.get("context_bound_by_window")

    assert bound(sliding_window=1200) == (1200, [1200, 2048])
    assert (
        bound(sliding_window=100) == bound(sliding_window=None) == bound(sliding_window=4096) == (2048, None)
    )


def test_bfloat16_is_served_and_parts_at_near_ties_only() -> None:
    executor = load_executor("bundled", device="cpu", dtype="bfloat16")
    assert executor.model_info["forward"] == "compiled"
    same = same_tokens.check_same_tokens(executor, [strategy("continuous"), strategy("static")])
    assert same.num_requests == 7 and same.num_ties < 7


@pytest.mark.parametrize(("dtype", "gap", "is_tie"), [
    (torch.bfloat16, 0.02, True),
    (torch.bfloat16, 0.5, False),
    (torch.float32, 1e-7, False),
])  # fmt: skip
def test_a_near_tie_is_none_in_float32(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, gap: float, is_tie: bool
) -> None:
    executor = served(tiny("llama").to(dtype), backend="packed")
    logits = torch.zeros(99)
    logits[7], logits[8] = 1.0, 1.0 - gap
    monkeypatch.setattr(same_tokens, "own_logits", lambda *_: logits)
    monkeypatch.setattr(same_tokens, "generate", lambda *_: [7] * 16)
    sampled = "tunebatch.execute.torch.executor.sample"
    monkeypatch.setattr(sampled, lambda logits, *_: torch.full((len(logits),), 8))
    if is_tie:
        assert same_tokens.check_same_tokens(executor, [strategy("static")]).num_ties == 7
    else:
        with pytest.raises(same_tokens.TokenMismatchError, match="output token 0, logit gap"):
            same_tokens.check_same_tokens(executor, [strategy("static")])


@pytest.mark.parametrize("num_blocks", [4, 32])
def test_the_check_fits_into_a_small_pool(num_blocks: int) -> None:
    executor = served(long("llama"), num_blocks=num_blocks)
    same = same_tokens.check_same_tokens(executor, [strategy("continuous")])
    assert same.num_requests == 7 and same.num_ties == 0 and same.num_tokens > 7


def test_the_check_finds_prompts_in_the_cache_where_there_is_one() -> None:
    executor = serve(long("mistral", sliding_window=40), name="tiny", backend="packed")
    plain = same_tokens.check_same_tokens(executor, [strategy("continuous")])
    assert plain.num_cached_tokens == 0
    # 129 tokens and the answer's first 15 for one of them, half of 129 for the other.
    for name in ("sequential", "static", "mixed"):
        same = same_tokens.check_same_tokens(executor, [strategy(f"{name}+prefix")])
        assert same.num_cached_tokens == 144 + 64


def test_the_check_finds_shared_blocks_of_other_content(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = serve(long("llama"), name="tiny", backend="packed")

    def another(cache: PrefixCache, blocks: list[bytes], count: int) -> CachedBlock:
        """Any chain, whatever its tokens."""
        node = cache.root
        while node.children and node.depth < count:
            node = next(iter(node.children.values()))
        return node

    monkeypatch.setattr(PrefixCache, "lookup", another)
    same_tokens.check_same_tokens(executor, [strategy("continuous")])
    with pytest.raises(same_tokens.TokenMismatchError, match=r"continuous\+prefix"):
        same_tokens.check_same_tokens(executor, [strategy("continuous+prefix")])


def test_a_few_of_the_longest_sequences_fit_into_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunebatch.measure.kv_room.CPU_KV_BYTES", 1)
    executor = served(long("llama"))
    assert executor.num_blocks * executor.block_size == 4 * executor.max_context
