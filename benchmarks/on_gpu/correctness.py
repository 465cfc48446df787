"""Part 1: attention against float64, fused parts against torch, and greedy tokens against ``generate``.

Nothing is timed before.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from claimed.claim import Band, Figure, Table

from on_gpu.bench import GpuBench
from on_gpu.divergence import Divergence, divergences
from on_gpu.found import Bar, Found, Part, WrongResultError
from on_gpu.fused_check import check_fused
from on_gpu.kernel_check import check_kernel
from tunebatch.engine.strategies import Strategy, strategy
from tunebatch.execute.torch.same_tokens import SameTokens, TokenMismatchError, check_same_tokens

# Of bfloat16: prompts of these lengths, which are cut to the context of a dry run's model.
PROMPTS, OUTPUT_TOKENS = (7, 30, 64, 129, 200, 333, 512, 700), 48
SLOTS = 64

EXACT = Bar("float32: greedy tokens equal under all strategies and `generate`", Band(low=1.0), "")
TIES = Bar("bfloat16: share of the divergences that happen at a near tie", Band(low=1.0), "%")


def measure(bench: GpuBench) -> Found:
    """Raises:
    WrongResultError: See `check_kernel`, `check_fused`; or greedy tokens differ that no rounding explains.
    """
    kernel, kernel_data, missing = check_kernel(bench, bench.budget.share(2))
    fused, fused_data = check_fused(bench)
    strategies = [strategy(name) for name in bench.setting.checked]
    same = _same_in_float32(bench, strategies)
    prompts, output_tokens, found = _apart_in_bfloat16(bench, strategies)
    compared = prompts * len(strategies)
    return Found(
        setting=f"{bench.setting.exact}, random weights; {', '.join(bench.setting.checked)}; "
        f"float32: {same.num_requests} requests of {same.num_tokens} tokens, bfloat16: {prompts} of "
        f"{output_tokens} each",
        tables=[kernel, *fused, _table(found, compared)],
        bars=[
            EXACT.dict(Figure((1.0,), "")),
            TIES.dict(Figure((1.0,), "%") if found else None, "no output diverges"),
        ],
        data={
            "kernel": kernel_data,
            "fused": fused_data,
            "float32": {"requests": same.num_requests, "tokens": same.num_tokens, "ties": same.num_ties},
            "bfloat16": {"outputs": compared, "divergences": [asdict(one) for one in found]},
        },
        not_measured=missing,
    )


def _same_in_float32(bench: GpuBench, strategies: list[Strategy]) -> SameTokens:
    model = bench.setting.exact
    executor = bench.load(model, "float32", max_slots=min(SLOTS, bench.setting.max_slots)).executor
    try:
        return check_same_tokens(executor, strategies)
    except TokenMismatchError as error:
        raise WrongResultError(f"float32, {model}: {error}") from None


def _apart_in_bfloat16(bench: GpuBench, strategies: list[Strategy]) -> tuple[int, int, list[Divergence]]:
    """Prompts, output tokens of each, and where outputs part."""
    model = bench.setting.exact
    executor = bench.load(model, "bfloat16", max_slots=min(SLOTS, bench.setting.max_slots)).executor
    rng = np.random.default_rng(5)
    room = min(executor.max_context, executor.num_blocks * executor.block_size // len(PROMPTS))
    output_tokens = min(OUTPUT_TOKENS, room // 2)
    prompts = [
        tuple(rng.integers(4, executor.vocab_size, min(n, room - output_tokens)).tolist()) for n in PROMPTS
    ]
    found = divergences(executor, strategies, prompts, output_tokens)
    if far := [one for one in found if not one.near_tie]:
        raise WrongResultError(f"bfloat16, {model}: {far[0].told}")
    return len(prompts), output_tokens, found


def _table(found: list[Divergence], compared: int) -> Table:
    gaps = sorted(one.gap for one in found)
    told = f"{gaps[len(gaps) // 2]:.3g} (largest {gaps[-1]:.3g})" if gaps else "-"
    explained = f"{min(one.explained for one in found):.3g}" if found else "-"
    return Table(
        "bfloat16: outputs that part from `generate`",
        "outputs compared | diverge | gap of the two logits there, median | re-ordered sums explain",
        [f"{compared} | {len(found)} | {told} | {explained}"],
    )


PART = Part("correctness", "Is what is computed right?", 240.0, measure, (EXACT, TIES))
