"""A turn's prompt is all that was said before, answers included, and comes when that has been answered."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebatch.engine.clock import VirtualClock
from tunebatch.engine.engine import Engine
from tunebatch.engine.plan import StepOutput
from tunebatch.engine.records import EndReason, RequestRecord
from tunebatch.engine.strategies import STRATEGIES, strategy
from tunebatch.workload.lengths import Fixed, Uniform
from tunebatch.workload.named import NAMED, scaled_to
from tunebatch.workload.prompts import RandomPrompts
from tunebatch.workload.spec import WorkloadSpec, build
from tunebatch.workload.turns import MultiTurn

PROMPTS = RandomPrompts(500)
SPEC = WorkloadSpec(
    name="talk",
    rate_per_s=4.0,
    prefix_lengths=Fixed(10),
    prompt_lengths=Uniform(1, 8),
    output_lengths=Uniform(1, 6),
    turns=Uniform(1, 5),
    think_time_s=2.0,
    num_requests=40,
)


class Executor:
    """Tells other tokens than the stand-ins: the number of the step, which is never one of those."""

    block_size, num_blocks, max_slots, max_context = 4, 400, 8, 400
    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self, tells_decodes=True):
        self._step = 1000
        self._tells_decodes = tells_decodes

    def execute(self, plan):
        self._step += 1
        decodes = [self._step] * plan.num_decodes if self._tells_decodes else None
        return StepOutput([(self._step,)] * len(plan.slices), decodes, 0.25)


def make(spec=SPEC, context=400, seed=None):
    return build(spec, PROMPTS, context, seed)


class Watched:
    """A source that keeps what it handed out."""

    def __init__(self, source):
        self._source = source
        self.sent = {}

    def __getattr__(self, name):
        return getattr(self._source, name)

    def take(self, now_s):
        taken = self._source.take(now_s)
        self.sent.update((request.id, request) for request in taken)
        return taken


def served(workload, name="continuous", executor=None, **options):
    source = Watched(workload.source())
    policy = strategy(name).make_policy()
    run = Engine(executor or Executor(), policy, source, VirtualClock(), **options).run()
    return source.sent, {record.id: record for record in run.requests}


def pairs(workload):
    """Consecutive turns of a conversation."""
    return [(turn - 1, turn) for turn in range(len(workload.turns)) if not workload.turns[turn].first]


@pytest.mark.parametrize("name", STRATEGIES)
@given(seed=st.integers(0, 99), saturated=st.booleans())
def test_histories_hold_the_answers_and_never_come_before_them(name, seed, saturated):
    workload = make(seed=seed).saturated() if saturated else make(seed=seed).at_rate(20.0)
    sent, records = served(workload, name)
    assert set(sent) == set(records) == set(range(40))
    assert all(record.completed for record in records.values())
    for before, after in pairs(workload):
        record, turn = records[before], workload.turns[after]
        assert len(record.output) == record.max_tokens
        assert sent[after].prompt == (*sent[before].prompt, *record.output, *turn.text)
        pause_s = 0.0 if saturated else turn.think_time_s
        assert sent[after].arrival_s == records[after].arrival_s == record.end_s + pause_s
        assert records[after].first_scheduled_s >= records[after].arrival_s
        assert records[after].num_prompt_tokens == len(sent[after].prompt)


def test_first_turns_come_when_they_are_scheduled_whatever_is_answered():
    workload = make()
    sent, _ = served(workload)
    firsts = [request for request in workload.requests if workload.turns[request.id].first]
    assert [sent[request.id] for request in firsts] == firsts
    assert len({request.prompt[:10] for request in firsts}) == 1, "one system prompt"
    assert len({request.prompt[10] for request in firsts}) == len(firsts), "and then all differ"


def test_the_prompts_that_are_known_beforehand_are_as_long_as_the_real_ones():
    workload = make()
    sent, _ = served(workload)
    for request in workload.requests:
        assert len(sent[request.id].prompt) == len(request.prompt)
        assert sent[request.id].max_tokens == request.max_tokens
    for before, after in pairs(workload):
        known = workload.requests[before].prompt
        assert workload.requests[after].prompt == (
            *known, *workload.turns[before].answer, *workload.turns[after].text,
        )  # fmt: skip


def test_an_executor_that_tells_no_tokens_gets_the_stand_ins():
    workload = make()
    sent, records = served(workload, executor=Executor(tells_decodes=False))
    for before, after in pairs(workload):
        told = records[before].output
        answer = (*told, *workload.turns[before].answer[len(told) :])
        assert sent[after].prompt == (*sent[before].prompt, *answer, *workload.turns[after].text)


def test_whoever_hangs_up_goes_on_with_what_came():
    spec = replace(
        SPEC, turns=Fixed(2), num_requests=2, output_lengths=Fixed(6), cancel=1.0, cancel_after_s=1.0
    )
    workload = make(spec, seed=1)
    first = replace(workload.requests[0], cancel_at_s=workload.requests[0].arrival_s + 0.6)
    sent, records = served(replace(workload, requests=(first, workload.requests[1])))
    assert records[0].end_reason is EndReason.CANCELLED and len(records[0].output) == 3
    assert sent[1].prompt == (*first.prompt, *records[0].output, *workload.turns[1].text)
    patience_s = workload.requests[1].cancel_at_s - workload.requests[1].arrival_s
    assert sent[1].cancel_at_s == pytest.approx(sent[1].arrival_s + patience_s)


@given(seed=st.integers(0, 999), context=st.integers(30, 200))
def test_conversations_fit_the_context_and_end_early_otherwise(seed, context):
    spec = replace(SPEC, prompt_lengths=Uniform(1, 60), output_lengths=Uniform(1, 40), turns=Fixed(5))
    workload = make(spec, context, seed)
    assert len(workload.requests) == 40
    for request in workload.requests:
        assert len(request.prompt) + request.max_tokens <= context
    lengths = np.diff([*(turn for turn in range(40) if workload.turns[turn].first), 40])
    assert max(lengths) <= 5
    early = sum("ended early by the context" in note for note in workload.notes)
    assert early == bool((lengths[:-1] < 5).any())


def test_what_does_not_fit_and_may_not_be_clipped_is_refused():
    with pytest.raises(ValueError, match=r"workload talk: request \d+: .* exceed the context of 30"):
        make(replace(SPEC, clip=False), 30)


@given(rate=st.floats(0.01, 1e3), between=st.floats(0.01, 1e3))
def test_the_rate_counts_turns(rate, between):
    base = make(replace(SPEC, arrivals="constant"))
    scaled = base.at_rate(rate)
    assert scaled == base.at_rate(between).at_rate(rate) == base.saturated().at_rate(rate)
    assert scaled == make(replace(SPEC, arrivals="constant", rate_per_s=rate))
    starts = [r.arrival_s for r in scaled.requests if scaled.turns[r.id].first]
    turns_each = 40 / len(starts)
    np.testing.assert_allclose(np.diff(starts), turns_each / rate, rtol=1e-9)
    for request in scaled.requests:
        assert request.arrival_s in starts
    assert f"{len(starts)} conversations of {turns_each:.3g} turns on average" in scaled.notes[0]
    assert (
        f"start at it divided by {turns_each:.3g}, and the load is below it for the first" in scaled.notes[0]
    )
    assert (
        f"40 requests in {len(starts)} conversations, 2 s between answer and next turn" in scaled.description
    )


def test_bursts_of_conversations():
    workload = make(replace(SPEC, arrivals="burst", rate_per_s=None, burst_size=2, burst_gap_s=1.0))
    starts = [r.arrival_s for r in workload.requests if workload.turns[r.id].first]
    assert starts == pytest.approx([number // 2 for number in range(len(starts))])
    assert workload.rate_per_s == pytest.approx(2 * 40 / len(starts))
    assert make(replace(SPEC, arrivals="burst", rate_per_s=None)).rate_per_s is None


def test_saturated_leaves_no_pause():
    workload = make().saturated()
    assert {request.arrival_s for request in workload.requests} == {0.0}
    assert "between answer" not in workload.description and "all at once" in workload.description
    at_once = make(replace(SPEC, arrivals="burst", rate_per_s=None))
    assert at_once.requests == at_once.saturated().requests
    assert at_once.fingerprint() != at_once.saturated().fingerprint(), "the one has pauses, the other none"


def test_pauses_have_the_mean_that_was_asked_for_and_are_part_of_the_fingerprint():
    workload = make(replace(SPEC, num_requests=3000))
    pauses = [turn.think_time_s for turn in workload.turns if not turn.first]
    assert np.mean(pauses) == pytest.approx(2.0, rel=0.06)
    assert {turn.think_time_s for turn in workload.turns if turn.first} == {0.0}
    assert workload.build_up_s == pytest.approx(2.0 * 2, rel=0.1), "three turns on average, with two pauses"
    assert workload.saturated().build_up_s == 0.0
    assert make(replace(SPEC, think_time_s=2.5)).fingerprint() != make().fingerprint()


def test_the_first_requests_alone_are_a_workload():
    """As is measured where only a glimpse is wanted."""
    workload = make().saturated()
    part = replace(workload, requests=workload.patterns[:9], patterns=workload.patterns[:9])
    sent, _ = served(part)
    assert set(sent) == set(range(9))


@given(seed=st.integers(0, 9999))
def test_each_turn_is_handed_out_once_and_counted(seed):
    rng = random.Random(seed)
    workload = make(seed=seed % 7)
    source = workload.source()
    assert isinstance(source, MultiTurn)
    now, running, seen = 0.0, [], []
    while source.remaining or running:
        taken = source.take(now)
        assert all(request.arrival_s <= now for request in taken)
        running += taken
        seen += [request.id for request in taken]
        assert source.remaining == 40 - len(seen)
        due = source.next_arrival_s()
        if running and (due is None or rng.random() < 0.6):
            now += rng.random()
            done = running.pop(rng.randrange(len(running)))
            source.finished(RequestRecord(done.id, done.arrival_s, len(done.prompt), done.max_tokens), now)
        elif due is not None:
            now = max(now, due)
    assert sorted(seen) == list(range(40))
    with pytest.raises(ValueError, match="request 0 is not in flight"):
        source.finished(RequestRecord(0, 0.0, 1, 1), now)


def test_conversations_have_their_own_loop():
    with pytest.raises(ValueError, match="use another arrival process, for example 'poisson'"):
        replace(SPEC, arrivals="closed", concurrency=2, rate_per_s=None)


@pytest.mark.parametrize("name", ["system-prompt", "rag", "multi-turn", "agents"])
def test_a_prefix_cache_that_forgets_nothing_reaches_the_bound(name):
    context = Executor.max_context
    spec = scaled_to(replace(NAMED[name], num_requests=40), context)
    workload = build(spec, PROMPTS, context, block_size=Executor.block_size).saturated()
    executor = Executor()
    executor.num_blocks = 10_000
    _, records = served(workload, "sequential", executor, prefix_caching=True)
    cached = sum(record.num_cached_tokens for record in records.values())
    assert (
        cached / sum(record.num_prompt_tokens for record in records.values()) == workload.shared_share > 0.3
    )
