"""What a step of the bundled draft costs against one of its target, by the engine's own executor.

    python benchmarks/draft_step.py [--batch 1 8 32] [--dtype float32] [--drafts 3] [--rounds 100]

After each target step come ``--drafts`` draft steps, as in speculative decoding: timed alone, the draft
would keep its weights in the caches that the target's step clears. Sequences are 256 tokens long.
"""

from __future__ import annotations

import argparse
import statistics
import time

from tunebatch.engine.group import DecodeGroup
from tunebatch.engine.plan import Slice, StepPlan
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.load import load_executor
from tunebatch.models import bundled_draft, bundled_target

CONTEXT, WARM_UP = 256, 5


def decoding(executor: TorchExecutor, batch: int) -> DecodeGroup:
    """``batch`` sequences with their prompts computed, and blocks for all that follows."""
    executor.reset()
    group = DecodeGroup(executor.block_size)
    blocks = 2 * CONTEXT // executor.block_size
    for index in range(batch):
        prompt = tuple(5 + (7 * index + 11 * j) % 4000 for j in range(CONTEXT))
        sequence = Sequence(Request(index, prompt, max_tokens=CONTEXT, ignore_eos=True))
        sequence.slot = index
        sequence.block_table = list(range(index * blocks, (index + 1) * blocks))
        executor.execute(StepPlan([Slice(sequence, 0, CONTEXT)]))
        sequence.num_computed = CONTEXT
        group.join(sequence)
    return group


def step_milliseconds(
    target: TorchExecutor, draft: TorchExecutor, batch: int, drafts: int, rounds: int
) -> tuple[float, float]:
    """Median time of a step of each; every round goes on from the same contexts."""
    groups = {target: decoding(target, batch), draft: decoding(draft, batch)}
    times: dict[TorchExecutor, list[float]] = {target: [], draft: []}
    for _ in range(WARM_UP + rounds):
        for executor, steps in ((target, 1), (draft, drafts)):
            begin = time.perf_counter()
            for _ in range(steps):
                executor.execute(StepPlan(decodes=groups[executor]))
            times[executor].append((time.perf_counter() - begin) / steps * 1e3)
            for slot in range(batch):
                executor.set_slot(slot, last_token=5, position=CONTEXT)
    return statistics.median(times[target][WARM_UP:]), statistics.median(times[draft][WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--drafts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    pair = [
        load_executor(str(path), device="cpu", dtype=options.dtype, max_slots=max(options.batch))
        for path in (bundled_target(), bundled_draft())
    ]
    for batch in options.batch:
        slow, quick = step_milliseconds(pair[0], pair[1], batch, options.drafts, options.rounds)
        print(
            f"batch {batch:>2}: target {slow:.2f} ms, draft {quick:.2f} ms, target / draft {slow / quick:.1f}"
        )


if __name__ == "__main__":
    main()
