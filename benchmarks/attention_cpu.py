"""What one layer's decode attention takes on this CPU: each backend in turn, alone and beside a busy process.

    python benchmarks/attention_cpu.py [--batch 1 8 32] [--context 200 1000] [--dtype float32] [--rounds 7]

Every sequence writes a new key and value and attends to its pages, which lie scattered over a pool. The
backends alternate round by round; quote the ratios, which come from one run on one machine.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import torch

from tunebatch.execute.torch.attention import BACKENDS
from tunebatch.execute.torch.attention.base import KvCache, StepContext, Variant
from tunebatch.execute.torch.load import DTYPES

BLOCK_SIZE = 16
HEADS, KV_HEADS, HEAD_DIM = 8, 4, 64
CALLS = 20


def decode_step(cache: KvCache, batch: int, context: int) -> StepContext:
    """One new token for each of ``batch`` sequences of ``context`` tokens."""
    width = -(-context // BLOCK_SIZE)
    tables = torch.randperm(cache.num_blocks)[: batch * width].view(batch, width).contiguous()
    lens = torch.full((batch,), context)
    last = lens - 1
    return StepContext(
        cache=cache,
        positions=last,
        query_start=torch.arange(batch + 1),
        context_lens=lens,
        block_tables=tables,
        cache_slots=tables[:, -1] * BLOCK_SIZE + last % BLOCK_SIZE,
        slices=[],
        num_slice_tokens=0,
        max_context_len=context,
        context_sum=batch * context,
    )


@torch.inference_mode()
def measure(batch: int, context: int, dtype: torch.dtype, rounds: int) -> dict[str, list[float]]:
    """Microseconds per call, for each backend one number a round."""
    query = torch.randn(batch, HEADS, HEAD_DIM, dtype=dtype)
    key, value = (torch.randn(batch, KV_HEADS, HEAD_DIM, dtype=dtype) for _ in range(2))
    num_blocks = batch * -(-context // BLOCK_SIZE) + 8
    sides = {}
    for name, backend_class in BACKENDS.items():
        backend = backend_class()
        step = decode_step(KvCache(num_blocks, BLOCK_SIZE, backend.new_pools), batch, context)
        variant = Variant(HEAD_DIM**-0.5)
        backend.attend(query, key, value, 0, variant, step)
        sides[name] = (backend, variant, step)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (backend, variant, step) in sides.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                step.masks.clear()
                backend.attend(query, key, value, 0, variant, step)
            times[name].append((time.perf_counter() - start) / CALLS * 1e6)
    return times


@contextlib.contextmanager
def busy_process(wanted: bool) -> Iterator[None]:
    """Another process that keeps one core busy."""
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        time.sleep(0.5)
        try:
            yield
        finally:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--context", nargs="+", type=int, default=[200, 1000])
    parser.add_argument(
        "--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"]
    )
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{HEADS} heads, {KV_HEADS} KV heads of {HEAD_DIM}, {threads} threads; median us a call")
    for loaded in (False, True):
        with busy_process(loaded):
            for dtype in options.dtype:
                for batch in options.batch:
                    for context in options.context:
                        times = measure(batch, context, DTYPES[dtype], options.rounds)
                        middle = {name: statistics.median(values) for name, values in times.items()}
                        shown = ", ".join(f"{name} {value:,.0f}" for name, value in middle.items())
                        ratios = [a / b for a, b in zip(times["packed"], times["compiled"], strict=True)]
                        print(
                            f"{'beside a busy process' if loaded else 'alone':<21} {dtype:<8} "
                            f"batch {batch:>2}, context {context:>4}: {shown}; packed / compiled "
                            f"{statistics.median(ratios):.1f} [{min(ratios):.1f}, {max(ratios):.1f}]",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
