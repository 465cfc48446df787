"""What merging projections of one input does to the steps of a model on this machine.

    python benchmarks/merged_projections.py [--dtype float32 bfloat16] [--batch 1 4 16 32] [--rounds 5]

A Llama of 34 million random parameters is served by transformers' modules, decode steps at 64 tokens of
context and one prefill of 512. Both sides alternate round by round; quote the ratios (separate / merged, so
above 1 merging is a gain), which come from one run on one machine.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import transformers

from tunebatch.execute.torch import selfcheck
from tunebatch.execute.torch.decode_steps import decode_step_times
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.load import DTYPES, serve
from tunebatch.execute.torch.memory import prefills
from tunebatch.execute.torch.merged import merge, take_apart, watched

CONTEXT, PROMPT = 64, 512
SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1536,
    "max_position_embeddings": 2048,
}


def step_times(executor: TorchExecutor, batches: list[int]) -> dict[str, float]:
    """Seconds of a decode step by batch, and of a prefill."""
    found = decode_step_times(executor, CONTEXT, budget_s=60.0).step_s
    prompts = prefills(executor, PROMPT)
    executor.logits(prompts)
    started = time.perf_counter()
    executor.logits(prompts)
    took = time.perf_counter() - started
    executor.reset()
    return {**{f"decode, batch {batch}": found[batch] for batch in batches}, f"prefill of {PROMPT}": took}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"]
    )
    parser.add_argument("--batch", nargs="+", type=int, choices=[1, 2, 4, 8, 16, 32], default=[1, 4, 16, 32])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads; separate / merged, median [least, most]")
    for dtype in options.dtype:
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).to(DTYPES[dtype]).eval()
        with watched(model) as groups:
            selfcheck.own_logits(model, selfcheck.prompts(SHAPE["vocab_size"], 128))
        executor = serve(model, name="llama", backend="packed", num_blocks=512, max_slots=32)
        sides: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for _ in range(options.rounds):
            for merged, times in sides.items():
                take_apart(model)
                if merged:
                    merge(groups)
                times.append(step_times(executor, options.batch))
        for what in sides[True][0]:
            ratios = [a[what] / b[what] for a, b in zip(sides[False], sides[True], strict=True)]
            middle = statistics.median(ratios)
            print(f"{dtype:<8} {what:<16} {middle:.2f} [{min(ratios):.2f}, {max(ratios):.2f}]", flush=True)


if __name__ == "__main__":
    main()
