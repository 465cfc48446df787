"""Real tokens that are read a step late are the tokens that are read at once."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import replace

import pytest
from test_execute_tokens import executor, requests, with_knobs

from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import ReplayClock
from tunebatch.engine.group import DecodeGroup
from tunebatch.engine.plan import Slice, StepOutput, StepPlan
from tunebatch.engine.records import EndReason, RunRecord
from tunebatch.engine.request import Request, Sampling
from tunebatch.engine.sequence import Sequence
from tunebatch.engine.strategies import STRATEGIES
from tunebatch.execute.torch import same_tokens
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.last_tokens import Reading


class Watched(TorchExecutor):
    """Notes how many steps are in flight at most."""

    submitted = collected = most = 0

    def submit(self, plan: StepPlan) -> Reading:
        self.submitted += 1
        self.most = max(self.most, self.submitted - self.collected)
        return super().submit(plan)

    def collect(self, handle: Reading) -> StepOutput:
        self.collected += 1
        return super().collect(handle)


def traffic() -> list[Request]:
    """Half of them are not greedy; two begin alike."""
    found = requests(199)
    found += [replace(found[2], id=7), replace(found[5], id=8)]
    return [
        replace(
            one,
            ignore_eos=one.id % 3 == 0,
            sampling=Sampling(0.9, seed=one.id) if one.id % 2 else one.sampling,
        )
        for one in found
    ]


@pytest.fixture(scope="module")
def served() -> Watched:
    """13 blocks of 4 tokens, so that batches must preempt; some of the tokens that come up end an answer."""
    made = executor("llama", "compiled", num_blocks=13)
    made.__class__ = Watched
    outputs = [same_tokens.generate(made, one.prompt, one.max_tokens) for one in traffic()]
    made.eos_token_ids = frozenset(output[5] for output in outputs if len(output) > 9)
    return made


def run(served: TorchExecutor, name: str, overlap: bool) -> RunRecord:
    served.reset()
    # One comes when others are running, or have run.
    source = same_tokens.AllAtOnce(traffic()[:-1], traffic()[-1:])
    engine = engine_for(with_knobs(name), served, source, ReplayClock(), overlap=overlap)
    while engine.step():
        engine.queues.check_integrity()
    assert engine.queues.kv.num_free == engine.queues.kv.num_blocks
    return engine.record()


@pytest.mark.parametrize("name", [kind + feature for kind in STRATEGIES for feature in ("", "+prefix")])
def test_tokens_that_are_read_late_are_the_same(served: Watched, name: str) -> None:
    served.most = 0
    at_once = run(served, name, overlap=False)
    assert served.most == 1
    late = run(served, name, overlap=True)
    assert served.most == 2, "nothing was in flight when the next step was submitted"
    ends = [(record.output, record.end_reason) for record in at_once.requests]
    assert [(record.output, record.end_reason) for record in late.requests] == ends
    assert {reason for _, reason in ends} == {EndReason.STOP, EndReason.LENGTH}
    assert sum(at_once.steps.num_wasted) == 0 < sum(late.steps.num_wasted)
    if not name.startswith(("sequential", "adaptive")):
        assert sum(late.steps.num_preempted) > 0


def tokens_of(output: StepOutput) -> tuple[list[list[int]], list[int]]:
    return [list(tokens) for tokens in output.slice_tokens], list(output.decode_tokens or ())


def decoded(
    served: TorchExecutor, prompts: SequenceOf[SequenceOf[int]], late: bool
) -> list[tuple[list[list[int]], list[int]]]:
    """Two prompts, then decodes of both, then the first leaves and a third prompt takes its slot."""
    served.reset()
    sequences = [Sequence(Request(i, tuple(prompt), 9)) for i, prompt in enumerate(prompts)]
    group = DecodeGroup(served.block_size)
    for i, sequence in enumerate(sequences):
        sequence.slot, sequence.block_table = i % 2, list(range(4 * i, 4 * i + 4))
    slices = [Slice(sequence, 0, len(sequence.request.prompt)) for sequence in sequences]
    handles: list[Reading] = []
    outputs: list[StepOutput] = []

    def step(plan: StepPlan, joining: list[Sequence]) -> None:
        handles.append(served.submit(plan))
        if not late or len(handles) > 1:
            outputs.append(served.collect(handles.pop(0)))
        if plan.decodes is not None:
            group.advance()
        for sequence in joining:
            sequence.num_computed = len(sequence.request.prompt)
            group.join(sequence)

    step(StepPlan(slices[:2]), sequences[:2])
    step(StepPlan(decodes=group), [])
    step(StepPlan(decodes=group), [])
    group.leave(sequences[0])
    step(StepPlan(slices[2:], decodes=group), sequences[2:])
    step(StepPlan(decodes=group), [])
    outputs += [served.collect(handle) for handle in handles]
    return [tokens_of(output) for output in outputs]


def test_the_device_knows_the_last_tokens_that_the_host_does_not(served: Watched) -> None:
    prompts = [[3, 5, 7], [11, 13, 17, 19, 23], [29, 31]]
    at_once = decoded(served, prompts, late=False)
    assert decoded(served, prompts, late=True) == at_once
    expected = same_tokens.generate(served, tuple(prompts[1]), 5)
    own = [at_once[0][0][1][0], *(tokens[-1] for _, tokens in at_once[1:4]), at_once[4][1][0]]
    assert own == expected


def test_the_host_has_the_last_word_on_a_slot(served: Watched) -> None:
    """What was told of a slot holds until the next sample for it, also when others decode before."""
    served.reset()
    one = Sequence(Request(0, (3, 5, 7), 9))
    one.slot, one.block_table = 1, [0, 1]
    after = same_tokens.generate(served, (3, 5, 7, 9), 2)
    served.execute(StepPlan([Slice(one, 0, 3)]))
    served.set_slot(1, 9, 3)
    group = DecodeGroup(served.block_size)
    one.num_computed = 3
    group.join(one)
    found = []
    for _ in range(2):
        found += served.execute(StepPlan(decodes=group)).decode_tokens or []
        group.advance()
    assert found == after
