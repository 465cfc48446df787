"""Our engine against transformers' two ways of serving a batch, alternating in one run.

    python benchmarks/engine_cpu.py --model small --batch 8 32 --dtype float32 bfloat16

The work is 64 requests that are all there at once: prompts of 128 random tokens, outputs of a seeded
uniform 16 to 256 tokens with EOS ignored. Output tokens per second over the whole run, prefill included.
Only the ratios are to be quoted: they come from one run on one machine, round by round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from tunebatch.engine.clock import ReplayClock
from tunebatch.engine.engine import Engine
from tunebatch.engine.request import Request
from tunebatch.engine.strategies import strategy
from tunebatch.execute.torch.load import DTYPES, serve
from tunebatch.execute.torch.same_tokens import AllAtOnce

NUM_REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS = 64, 128, (16, 256)
# vocabulary, hidden, layers, heads, kv heads, intermediate
SHAPES = {
    "tiny": (4096, 256, 6, 8, 4, 704),
    "small": (8192, 512, 8, 8, 4, 1408),
    "135m": (49152, 576, 30, 9, 3, 1536),
}


def network(shape: str, dtype: torch.dtype) -> Any:
    vocabulary, hidden, layers, heads, kv_heads, intermediate = SHAPES[shape]
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        max_position_embeddings=2048,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).to(dtype).eval()


def traffic(vocabulary: int) -> list[Request]:
    rng = np.random.default_rng(1)
    lengths = rng.integers(OUTPUT_TOKENS[0], OUTPUT_TOKENS[1] + 1, NUM_REQUESTS)
    return [
        Request(i, tuple(rng.integers(4, vocabulary, PROMPT_TOKENS).tolist()), int(n), ignore_eos=True)
        for i, n in enumerate(lengths)
    ]


def ours(model: Any, requests: list[Request], batch: int) -> Callable[[], int]:
    executor = serve(model, name="benchmark", max_slots=batch)

    def run() -> int:
        model.set_attn_implementation("tunebatch")
        executor.reset()
        policy = strategy("continuous", {"max_batch_size": batch}).make_policy()
        record = Engine(executor, policy, AllAtOnce(requests), ReplayClock()).run()
        return sum(len(request.output) for request in record.requests)

    return run


def padded_generate(model: Any, requests: list[Request], batch: int) -> Callable[[], int]:
    """Static batches in order of arrival; each runs to its longest, only the tokens asked for count."""

    @torch.inference_mode()
    def run() -> int:
        model.set_attn_implementation("sdpa")
        for first in range(0, len(requests), batch):
            part = requests[first : first + batch]
            ids = torch.tensor([request.prompt for request in part])
            longest = max(request.max_tokens for request in part)
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=longest,
                min_new_tokens=longest,
                do_sample=False,
                pad_token_id=0,
            )
        return sum(request.max_tokens for request in requests)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=SHAPES, default=["tiny"])
    parser.add_argument("--batch", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    for shape in options.model:
        for dtype in options.dtype:
            model = network(shape, DTYPES[dtype])
            requests = traffic(model.config.vocab_size)
            for batch in options.batch:
                sides = {
                    "ours": ours(model, requests, batch),
                    "padded generate": padded_generate(model, requests, batch),
                }
                rates: dict[str, list[float]] = {name: [] for name in sides}
                for _ in range(options.rounds):
                    for name, run in sides.items():
                        start = time.perf_counter()
                        tokens = run()
                        rates[name].append(tokens / (time.perf_counter() - start))
                ratios = [a / b for a, b in zip(rates["ours"], rates["padded generate"], strict=True)]
                shown = ", ".join(f"{name} {statistics.median(r):,.0f} tok/s" for name, r in rates.items())
                print(
                    f"{shape} {dtype} batch {batch}: {shown}; "
                    f"ratio {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]",
                    flush=True,
                )


if __name__ == "__main__":
    main()
