"""What a step of the bundled draft costs against one of its target, in the engine as it serves.

    python benchmarks/draft_step.py [--batch 1 8 32] [--dtype float32] [--drafts 5] [--rounds 3]

Runs without and with ``--drafts`` take turns on the same prompts of 256 tokens, each with 64 tokens of
output. Counted are the steps in which all sequences decode: the target's of the first, and the proposals of
the other. The first pass of a proposal also catches up with what was accepted, so a draft step is what each
further one takes, from the end of the one before to its own; the whole proposal stands beside it. A CPU
computes at once, so that a pass has ended when its call has.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence as SequenceOf
from itertools import pairwise

import numpy as np
from torch import Tensor

from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import ReplayClock
from tunebatch.engine.request import Request
from tunebatch.engine.speculation.drafter import Wanted
from tunebatch.engine.strategies import strategy
from tunebatch.execute.torch.draft_model import DraftModel, load_draft
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.load import load_executor
from tunebatch.execute.torch.same_tokens import AllAtOnce
from tunebatch.execute.torch.slots import Packed
from tunebatch.models import bundled_corpus
from tunebatch.workload.prompts import CorpusPrompts

PROMPT_TOKENS, OUTPUT_TOKENS = 256, 64


class Timed:
    """A draft model whose proposals for a full ``batch`` are timed, and in them its passes."""

    def __init__(self, draft: DraftModel) -> None:
        self.batch = 0
        self._draft = draft
        self._ends_s: list[float] = []
        self.proposals_ms: list[float] = []
        self.steps_ms: list[float] = []

    def reset(self) -> None:
        self._draft.reset()

    @property
    def num_computed(self) -> int:
        return self._draft.num_computed

    @property
    def num_reused(self) -> int:
        return self._draft.num_reused

    def propose(self, wanted: SequenceOf[Wanted], generation: SequenceOf[int]) -> list[SequenceOf[int]]:
        self._ends_s.clear()
        begin = time.perf_counter()
        proposed = self._draft.propose(wanted, generation)
        if all(len(drafts) == wanted[0][1] for drafts in proposed) and len(wanted) == self.batch:
            self.proposals_ms.append((time.perf_counter() - begin) * 1e3)
            self.steps_ms += [(end - before) * 1e3 for before, end in pairwise(self._ends_s)]
        return proposed

    def watch(self) -> None:
        """Note when a pass of the draft's network ends, from now on."""
        highest = self._draft.executor.highest

        def noted(packed: Packed) -> Tensor:
            tokens = highest(packed)
            self._ends_s.append(time.perf_counter())
            return tokens

        # This executor alone is watched; nothing else here asks it for tokens.
        self._draft.executor.highest = noted  # type: ignore[method-assign]


def drafting_ms(
    target: TorchExecutor, timed: Timed, requests: list[Request], num_drafts: int
) -> tuple[list[float], list[float]]:
    """Later draft steps and proposals of one run."""
    timed.steps_ms, timed.proposals_ms = [], []
    target.drafter = timed
    knobs = {"max_batch_size": len(requests), "num_drafts": num_drafts}
    target.reset()
    engine_for(strategy("continuous+draft", knobs), target, AllAtOnce(requests), ReplayClock()).run()
    # The first computed the prompts.
    return timed.steps_ms[num_drafts - 1 :], timed.proposals_ms[1:]


def steps_ms(target: TorchExecutor, requests: list[Request]) -> list[float]:
    """Plain decode steps of the whole batch, of one run."""
    target.reset()
    chosen = strategy("continuous", {"max_batch_size": len(requests)})
    steps = engine_for(chosen, target, AllAtOnce(requests), ReplayClock()).run().steps
    full = zip(steps.duration_s, steps.num_decodes, strict=True)
    return [duration_s * 1e3 for duration_s, decodes in full if decodes == len(requests)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the target")
    parser.add_argument("--drafts", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    target = load_executor("bundled", device="cpu", dtype=options.dtype, max_slots=max(options.batch))
    timed = Timed(load_draft(target, "bundled"))
    timed.watch()
    prompts, rng = CorpusPrompts(bundled_corpus()), np.random.default_rng(0)
    for batch in options.batch:
        requests = [
            Request(i, prompts.prompt(i, PROMPT_TOKENS, rng), OUTPUT_TOKENS, ignore_eos=True)
            for i in range(batch)
        ]
        plain: list[float] = []
        steps: list[float] = []
        proposals: list[float] = []
        timed.batch = batch
        for _ in range(options.rounds):
            plain += steps_ms(target, requests)
            more_steps, more_proposals = drafting_ms(target, timed, requests, options.drafts)
            steps += more_steps
            proposals += more_proposals
        step, each, whole = (statistics.median(times) for times in (plain, steps, proposals))
        print(
            f"batch {batch:>2}: target step {step:.2f} ms, draft step {each:.2f} ms, target / draft "
            f"{step / each:.1f}; a proposal of {options.drafts} takes {whole:.2f} ms, with catching up "
            f"{options.drafts * step / whole:.1f} a draft"
        )


if __name__ == "__main__":
    main()
