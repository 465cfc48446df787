"""Policies that learn from their own steps, in virtual time on a device whose costs are known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest

from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import VirtualClock
from tunebatch.engine.limits import LatencyLimits
from tunebatch.engine.plan import StepOutput, StepPlan
from tunebatch.engine.policies.adaptive import Adaptive
from tunebatch.engine.policies.base import Learner, Policy, StepTaken
from tunebatch.engine.policies.batch_limit import BatchLimit
from tunebatch.engine.policies.budget import AutoBudget
from tunebatch.engine.policies.chunked import Chunked
from tunebatch.engine.policies.forecast import OutputLengths, PeakForecast
from tunebatch.engine.policies.mixed import Mixed
from tunebatch.engine.queues import Queues
from tunebatch.engine.records import EndReason, RunRecord
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.engine.strategies import STRATEGIES, strategy

FIXED_S, DECODE_S, TOKEN_S = 2.0**-8, 2.0**-14, 2.0**-15


def formula(plan: StepPlan) -> float:
    return FIXED_S + DECODE_S * plan.num_decodes + TOKEN_S * plan.num_slice_tokens


def load(
    kit: SimpleNamespace, count: int, every_s: float, prompt: int = 200, output: int = 40
) -> list[Request]:
    return [kit.request(i, prompt, output, i * every_s) for i in range(count)]


class FormulaExecutor:
    """A step takes what ``duration`` says, and no answer ends before its length."""

    block_size, max_slots, max_context = 4, 256, 4096
    eos_token_ids: frozenset[int] = frozenset()
    drafter = None

    def __init__(self, num_blocks: int = 20_000, duration: Callable[[StepPlan], float] = formula) -> None:
        self.num_blocks = num_blocks
        self._duration = duration

    def execute(self, plan: StepPlan) -> StepOutput:
        return StepOutput([(1,)] * len(plan.slices), None, self._duration(plan))

    def reset(self) -> None:
        pass


def mixed_steps(run: RunRecord, after: int = 40) -> list[float]:
    """Durations of the steps with decodes and prompts, once the costs are known."""
    steps = zip(run.steps.duration_s, run.steps.num_decodes, run.steps.num_prefill_tokens, strict=True)
    return [duration for duration, decodes, tokens in list(steps)[after:] if decodes and tokens]


def test_the_policies_that_learn_are_told_of_every_step(kit: SimpleNamespace) -> None:
    told: list[StepTaken] = []
    ended: list[int] = []

    class Pupil(Mixed):
        def took(self, step: StepTaken) -> None:
            told.append(step)
            ended.extend(sequence.id for sequence in step.ended)
            assert all(sequence.num_output == sequence.request.max_tokens for sequence in step.ended)

    run = kit.serve(Pupil(4, 8), [kit.request(i, 5, 3, i / 2) for i in range(9)], FormulaExecutor())
    steps = run.steps
    assert [step.duration_s for step in told] == steps.duration_s
    assert [step.num_decodes for step in told] == steps.num_decodes
    assert [step.context_sum for step in told] == steps.context_sum
    assert [step.num_more_tokens for step in told] == steps.num_prefill_tokens
    assert sorted(ended) == list(range(9))
    learners = {name for name in STRATEGIES if isinstance(strategy(name).make_policy(), Learner)}
    assert learners == {"chunked", "mixed", "adaptive"}


def test_sequences_with_drafts_decode_too(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[StepTaken] = []
    monkeypatch.setattr(Adaptive, "took", lambda self, step: told.append(step))
    requests = [kit.request(i, 5, 30) for i in range(4)]
    chosen = strategy("adaptive+draft", {"num_drafts": 2})
    run = engine_for(chosen, kit.Executor(duration=formula), kit.Source(requests), VirtualClock()).run()
    assert sum(step.num_accepted for step in told) == sum(record.num_accepted for record in run.requests) > 0
    # The first token of each comes from its prompt.
    assert sum(step.num_decodes + step.num_accepted for step in told) == 4 * 29
    drafts = sum(record.num_drafted for record in run.requests)
    assert sum(step.num_more_tokens for step in told) == 4 * 5 + drafts
    assert all(step.context_sum >= 6 * step.num_decodes for step in told)


@pytest.mark.parametrize("tpot_s", [0.01, 0.02, 0.08])
def test_an_automatic_chunk_fills_steps_up_to_the_limit(kit: SimpleNamespace, tpot_s: float) -> None:
    policy = Mixed(64, 0, limits=LatencyLimits(tpot_s=tpot_s))
    durations = mixed_steps(kit.serve(policy, load(kit, 200, 0.001, 600), FormulaExecutor()))
    assert len(durations) > 30
    assert max(durations) <= tpot_s
    full = sorted(durations)[len(durations) // 2]
    assert full == pytest.approx(0.9 * tpot_s, rel=0.05)


def test_without_a_limit_a_step_grows_until_its_fixed_cost_is_small(kit: SimpleNamespace) -> None:
    run = kit.serve(Mixed(64, 0), load(kit, 200, 0.0, 600), FormulaExecutor())
    tokens = sorted(run.steps.num_prefill_tokens[40:120])[40]
    assert FIXED_S / (FIXED_S + TOKEN_S * tokens) == pytest.approx(0.15, abs=0.01)


def test_an_automatic_chunk_never_stops_a_prompt(kit: SimpleNamespace) -> None:
    """Under a limit that no step can keep, prompts get their least."""
    policy = Mixed(64, 0, limits=LatencyLimits(tpot_s=1e-6))
    run = kit.serve(policy, load(kit, 30, 0.0, 300, 10), FormulaExecutor())
    assert all(record.completed for record in run.requests)
    tokens = [count for count in run.steps.num_prefill_tokens[20:] if count]
    assert tokens.count(16) > len(tokens) / 2 and max(tokens) <= 16


def test_every_begun_prompt_gets_a_token_however_many_begin(kit: SimpleNamespace) -> None:
    policy = Mixed(64, 0, max_partial_prefills=40, limits=LatencyLimits(tpot_s=1e-6))
    run = kit.serve(policy, load(kit, 60, 0.0, 400, 3), FormulaExecutor())
    assert all(record.completed for record in run.requests)
    assert max(run.steps.num_prefills) > 16, "more than the least budget"
    assert min(size for step in run.steps.slices for *_, size in step) >= 1


def test_an_automatic_chunk_at_most_doubles_from_step_to_step(kit: SimpleNamespace) -> None:
    budget, queues = AutoBudget(0.25), Queues(100, 4, 4, 100)
    sizes = []
    for _ in range(20):
        sizes.append(budget.prompt_tokens(StepPlan(), queues))
        budget.took(taken(FIXED_S + TOKEN_S * sizes[-1], 0, num_more_tokens=sizes[-1]))
    assert sizes[-1] == pytest.approx((0.9 * 0.25 - FIXED_S) / TOKEN_S, rel=0.02)
    learnt = sizes[10:]
    assert all(later <= 2 * sooner + 1 for sooner, later in pairwise(learnt)) and learnt[0] < 1000


def taken(
    duration_s: float,
    num_decodes: int,
    num_preempted: int = 0,
    num_more_tokens: int = 0,
    num_accepted: int = 0,
) -> StepTaken:
    return StepTaken(duration_s, num_decodes, 0, num_more_tokens, num_accepted, num_preempted, ())


def drive(limit: BatchLimit, steps: int, queued: int, step_s: float, urgent: bool = False) -> list[int]:
    """Sizes while a step with a full batch takes ``step_s`` for each sequence."""
    sizes = []
    for _ in range(steps):
        if queued:
            limit.keeps_out(queued, urgent)
        limit.took(taken(step_s * limit.size, limit.size))
        sizes.append(limit.size)
    return sizes


def test_the_limit_rises_under_a_queue_and_settles_at_the_target() -> None:
    limit = BatchLimit(4, 200, tpot_limit_s=0.1, target=0.9)
    sizes = drive(limit, 3000, queued=1000, step_s=1e-3)
    assert limit.size in range(85, 96)
    assert set(sizes[-1000:]) == {limit.size}, "it swings"


def test_the_limit_is_cut_when_steps_get_slower_and_recovers() -> None:
    limit = BatchLimit(4, 200, tpot_limit_s=0.1, target=0.9)
    drive(limit, 2000, queued=1000, step_s=1e-3)
    before = limit.size
    drive(limit, 2000, queued=1000, step_s=2e-3)
    assert 40 <= limit.size <= 48
    drive(limit, 4000, queued=1000, step_s=1e-3)
    assert limit.size == pytest.approx(before, rel=0.1)


def test_the_limit_stays_without_a_queue_and_never_leaves_its_range() -> None:
    limit = BatchLimit(4, 20, tpot_limit_s=0.1, target=0.9)
    drive(limit, 200, queued=0, step_s=1e-6)
    assert limit.size == 4
    drive(limit, 600, queued=1000, step_s=1e-6)
    assert limit.size == 20
    drive(limit, 3000, queued=1000, step_s=1.0)
    assert limit.size == 4


def test_the_limit_rises_by_no_more_than_the_queue_is_long() -> None:
    limit = BatchLimit(8, 100, tpot_limit_s=None, target=0.9)
    limit.keeps_out(3, urgent=False)
    limit.took(taken(0.01, 8))
    assert limit.size == 11


def test_an_urgent_queue_takes_what_headroom_there_is() -> None:
    calm, urgent = (BatchLimit(4, 200, tpot_limit_s=0.1, target=0.8) for _ in range(2))
    assert drive(calm, 3000, 1000, 1e-3)[-1] < drive(urgent, 3000, 1000, 1e-3, urgent=True)[-1]
    assert urgent.size * 1e-3 <= 0.1


def test_blocks_that_run_out_cut_the_limit_without_any_slo() -> None:
    limit = BatchLimit(4, 64, tpot_limit_s=None, target=0.9)
    drive(limit, 200, queued=1000, step_s=1e-3)
    assert limit.size == 64
    for _ in range(40):
        limit.took(taken(1e-3, limit.size))
    limit.took(taken(1e-3, 50, num_preempted=3))
    assert limit.size == 45


def test_accepted_drafts_leave_room_for_more() -> None:
    limit = BatchLimit(4, 200, tpot_limit_s=0.1, target=0.9)
    for _ in range(3000):
        limit.keeps_out(1000, urgent=False)
        limit.took(taken(1e-3 * limit.size, limit.size, num_accepted=limit.size // 2))
    assert limit.size in range(125, 145)


def test_the_limit_rises_later_after_a_cut_than_after_a_rise() -> None:
    limit = BatchLimit(4, 200, tpot_limit_s=0.1, target=0.9)
    sizes = drive(limit, 3000, queued=1000, step_s=1e-3)
    cut = next(i for i in range(1, len(sizes)) if sizes[i] < sizes[i - 1])
    rises = [i for i in range(1, len(sizes)) if sizes[i] > sizes[i - 1]]
    after = [i - cut for i in rises if i > cut]
    assert all(wait >= 64 for wait in after)
    assert min(later - sooner for sooner, later in pairwise(rises)) == 16


def test_a_cut_is_judged_only_once_the_batch_has_shrunk() -> None:
    limit = BatchLimit(1, 100, tpot_limit_s=0.01, target=0.9)
    limit.size = 60
    for _ in range(500):
        limit.took(taken(1.0, 60))
    assert limit.size == 54, "the batch is still larger, so another cut would answer the same breach"


def test_expected_lengths_are_those_of_the_longer_answers() -> None:
    lengths = OutputLengths()
    for length in [10] * 8 + [30] * 7:
        lengths.observe(length)
    assert lengths.expected(0, 100) == 100, "too few"
    lengths.observe(30)
    assert lengths.expected(0, 100) == 20
    assert lengths.expected(0, 12) == 12
    assert lengths.expected(10, 100) == 30
    assert lengths.expected(30, 100) == 100, "longer than any"
    for _ in range(256):
        lengths.observe(5)
    assert lengths.expected(0, 100) == 5 and lengths.expected(5, 100) == 100, "the old are not forgotten"


def test_the_forecast_is_the_peak_of_all_that_run(kit: SimpleNamespace) -> None:
    """Against the sum over sequences, step by step."""
    queues = Queues(num_blocks=200, block_size=1, num_slots=16, max_context=1000)
    forecast = PeakForecast()
    room = int(0.97 * 200)
    shapes = [(20, 30), (5, 60), (40, 5), (10, 25), (8, 40), (3, 90), (30, 12), (12, 30)]
    held: list[tuple[int, int]] = []
    answers = []
    for i, (prompt, max_tokens) in enumerate(shapes):
        queues.add(kit.request(i, prompt, max_tokens), 0.0)
        candidate = queues.oldest_waiting
        assert candidate is not None
        alive = [*held, (prompt, max_tokens)]
        peak = max(sum(p + t for p, left in alive if left >= t) for t in range(1, 91))
        answers.append(forecast.fits(candidate, queues))
        assert answers[-1] == (peak <= room)
        if answers[-1]:
            assert queues.admit(0.0)
            forecast.admitted(candidate, queues)
            held = alive
        else:
            queues.waiting.popitem()
    assert answers.count(True) >= 3 and False in answers
    assert sum(p + left for p, left in held) > room, "all could have been largest at once"


class Admits:
    """Admits what is forecast to fit, and compares each answer with the sum over sequences."""

    max_batch_size, holds_slots = 32, False

    def __init__(self) -> None:
        self._forecast = PeakForecast()
        self._expected: dict[int, tuple[int, int]] = {}  # last step, and tokens held less the step
        self._refused: tuple[int, ...] = ()
        self.answers: list[bool] = []

    def plan(self, now: float, queues: Queues) -> StepPlan | None:
        plan = queues.decode(StepPlan(), now)
        while (oldest := queues.oldest_waiting) is not None:
            fits = self._forecast.fits(oldest, queues)
            asked = (oldest.id, *queues.running)
            # Until something leaves it is not asked again.
            assert fits == (self._fits(oldest, queues) and asked != self._refused)
            self._refused = () if fits else asked
            self.answers.append(fits)
            if (queues.running and not fits) or not queues.admit(now):
                break
            self._forecast.admitted(oldest, queues)
            self._expected[oldest.id] = self._of(oldest, queues)
            plan.slices.append(queues.chunk(oldest, oldest.num_uncomputed))
        return plan or None

    def took(self, step: StepTaken) -> None:
        for sequence in step.ended:
            self._forecast.ended(sequence)

    def _of(self, sequence: Sequence, queues: Queues) -> tuple[int, int]:
        step = queues.decodes.step
        made = step - sequence.joined_step if sequence.row >= 0 else 0
        output = sequence.num_output + made
        left = max(self._forecast.lengths.expected(output, sequence.request.max_tokens) - output, 1)
        return step + left, sequence.num_tokens + made + queues.kv.block_size - 1 - step

    def _fits(self, candidate: Sequence, queues: Queues) -> bool:
        step, kv = queues.decodes.step, queues.kv
        for sequence in queues.running.values():
            if self._expected[sequence.id][0] <= step:
                self._expected[sequence.id] = self._of(sequence, queues)
        known = [self._expected[i] for i in queues.running]
        unexplained = max(kv.num_used * kv.block_size - sum(held + step for _, held in known), 0)
        known.append(self._of(candidate, queues))
        peak = max(sum(held + end for last, held in known if last >= end) for end, _ in known)
        return peak <= int(0.97 * kv.num_blocks * kv.block_size) - unexplained


@pytest.mark.parametrize("seed", range(6))
def test_every_answer_of_the_forecast_is_the_peaks(kit: SimpleNamespace, seed: int) -> None:
    """With answers that outlive what is expected, clients that hang up, and preemptions."""
    draw = random.Random(seed)
    requests = [
        replace(
            kit.request(i, draw.randint(1, 40), draw.choice((draw.randint(1, 12), 90)), i * 0.002),
            cancel_at_s=i * 0.002 + 0.3 if draw.random() < 0.1 else None,
        )
        for i in range(150)
    ]
    policy = Admits()
    run = kit.serve(policy, requests, FormulaExecutor(60, lambda plan: 0.01))
    assert sum(run.steps.num_preempted) > 0
    assert policy.answers.count(True) > 100 and policy.answers.count(False) > 20


def test_a_request_that_did_not_fit_does_when_another_has_ended(kit: SimpleNamespace) -> None:
    queues = Queues(num_blocks=100, block_size=1, num_slots=16, max_context=1000)
    forecast = PeakForecast()
    for i in range(3):
        queues.add(kit.request(i, 20, 20), 0.0)
    first, second, third = queues.waiting.values()
    for sequence in (first, second):
        assert forecast.fits(sequence, queues) and queues.admit(0.0)
        forecast.admitted(sequence, queues)
    assert not forecast.fits(third, queues) and not forecast.fits(third, queues)
    queues.finish(first, EndReason.STOP, 1.0)
    assert forecast.fits(third, queues)


def test_an_answer_that_outlives_its_forecast_is_expected_to_grow_on(kit: SimpleNamespace) -> None:
    queues = Queues(num_blocks=100, block_size=1, num_slots=16, max_context=1000)
    forecast = PeakForecast()
    for _ in range(20):
        forecast.lengths.observe(4)
    queues.add(kit.request(0, 10, 70), 0.0)
    queues.add(kit.request(1, 78, 20), 0.0)
    first, second = queues.waiting.values()
    assert forecast.fits(first, queues) and queues.admit(0.0)
    forecast.admitted(first, queues)
    assert forecast.fits(second, queues), "14 and 82 tokens"
    queues.chunk(first, 10)
    first.num_computed = 10
    first.num_output = 1
    queues.decodes.join(first)
    for _ in range(6):
        queues.decode(StepPlan(), 0.0)
        queues.decodes.advance()
    # It has 17 tokens by now, and 4 more by the time that the other has 82.
    assert not forecast.fits(second, queues)


def tight(kit: SimpleNamespace, policy: Policy) -> RunRecord:
    """Answers of 60 tokens in a cache of 400, all at once."""
    executor = FormulaExecutor(100)
    return kit.serve(policy, [kit.request(i, 20, 60) for i in range(60)], executor)


@pytest.mark.parametrize(
    ("by_prompt", "by_forecast"),
    [(Mixed(32), Adaptive(4, 32)), (Chunked(32), Chunked(32, forecast_kv=1))],
    ids=["mixed", "chunked"],
)
def test_admission_by_forecast_preempts_nobody_where_admission_by_prompt_does(
    kit: SimpleNamespace, by_prompt: Policy, by_forecast: Policy
) -> None:
    fixed, forecast = tight(kit, by_prompt), tight(kit, by_forecast)
    assert sum(fixed.steps.num_preempted) > 5
    assert sum(forecast.steps.num_preempted) == 0
    assert max(forecast.steps.num_decodes) == 4, "four of 80 tokens fit, and a fifth would at first"


def test_lightllm_admits_by_forecast() -> None:
    assert dict(strategy("lightllm").knobs)["forecast_kv"] == 1
    assert "forecast_kv" not in strategy("chunked").label


@pytest.mark.parametrize(("prefix_caching", "together"), [(False, 1), (True, 4)])
def test_the_forecast_counts_a_shared_prefix_once(
    kit: SimpleNamespace, prefix_caching: bool, together: int
) -> None:
    """Prompts of 80 tokens that they share and 4 of their own, in a cache of 160 tokens."""
    requests = [
        replace(kit.request(i, 84, 20, 0.0 if i == 0 else 0.01), prompt=(*range(80), *[100 + i] * 4))
        for i in range(9)
    ]
    executor = kit.Executor(num_blocks=40, duration=formula)
    run = kit.serve(Adaptive(8, 8), requests, executor, None, prefix_caching)
    steps = run.steps
    running = [many + few for many, few in zip(steps.num_decodes, steps.num_prefills, strict=True)]
    assert max(running) == together, "of which some are half done"
    assert sum(steps.num_preempted) == 0


def test_a_wrong_forecast_only_costs_time(kit: SimpleNamespace) -> None:
    """Short answers first, then long ones that the cache cannot hold as many of."""
    requests = [kit.request(i, 8, 4, 0.0) for i in range(40)]
    requests += [kit.request(40 + i, 8, 90, 0.5) for i in range(20)]
    run = kit.serve(Adaptive(4, 32), requests, FormulaExecutor(60))
    assert sum(run.steps.num_preempted) > 0
    assert all(record.completed for record in run.requests)
    firsts = [record.first_scheduled_s for record in run.requests]
    assert firsts == sorted(firsts)


def test_a_load_step_raises_the_batch_and_a_breach_lowers_it(kit: SimpleNamespace) -> None:
    slow = 1.0

    def duration(plan: StepPlan) -> float:
        return slow * formula(plan)

    policy = Adaptive(4, 128, limits=LatencyLimits(tpot_s=0.0105))
    executor = FormulaExecutor(duration=duration)
    # Light load for a while, then far more than can be served.
    arrivals = [0.5 * i for i in range(20)] + [10.0 + 0.002 * i for i in range(1500)]
    # Prompts so short that their least budget a step would let in more than the TPOT bears.
    requests = [kit.request(i, 8, 100, at_s) for i, at_s in enumerate(arrivals)]
    engine = kit.engine(policy, requests, executor)
    sizes: list[tuple[float, int]] = []
    while engine.step():
        now = engine._clock.now()
        sizes.append((now, len(engine.queues.running)))
        slow = 2.0 if 14.0 <= now < 18.0 else 1.0
    light = max(size for now, size in sizes if now < 10.0)
    heavy = [size for now, size in sizes if 13.0 <= now < 14.0]
    breach = [size for now, size in sizes if 17.0 <= now < 18.0]
    after = [size for now, size in sizes if 21.0 <= now < 22.0]
    assert light <= 4 < 30 < min(heavy)
    assert max(breach) < 0.8 * min(heavy), "the limit was not cut"
    assert min(after) > 1.2 * max(breach), "it does not recover"
    steps = engine.record().steps
    settled = [
        duration
        for start, duration, decodes in zip(steps.start_s, steps.duration_s, steps.num_decodes, strict=True)
        if 12.5 <= start < 14.0 and decodes
    ]
    assert math.fsum(settled) / len(settled) <= 0.0105, "the TPOT is over its limit"
