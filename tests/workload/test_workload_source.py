"""Sources hand out each request once, when it is due; a closed loop keeps its concurrency."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebatch.engine.records import RequestRecord
from tunebatch.engine.request import Request
from tunebatch.workload.source import ClosedLoop, OpenLoop

seconds = st.floats(0, 100)


def ended(request_id):
    return RequestRecord(id=request_id, arrival_s=0.0, num_prompt_tokens=1, max_tokens=1)


def requests(arrivals):
    return [Request(id=i, prompt=(1,), max_tokens=1, arrival_s=at) for i, at in enumerate(arrivals)]


@given(arrivals=st.lists(seconds), looks=st.lists(seconds), seed=st.integers(0, 99))
def test_open_loop_hands_out_each_request_once_in_order(arrivals, looks, seed):
    given_requests = requests(arrivals)
    random.Random(seed).shuffle(given_requests)
    source = OpenLoop(given_requests)
    seen = []
    for now in [*sorted(looks), 100.0]:
        due = source.next_arrival_s()
        taken = source.take(now)
        assert bool(taken) == (due is not None and due <= now)
        assert all(request.arrival_s <= now for request in taken)
        seen += taken
        assert source.remaining == len(arrivals) - len(seen)
        assert (source.next_arrival_s() is None) == (source.remaining == 0)
        assert source.take(now) == []
    assert seen == sorted(given_requests, key=lambda r: (r.arrival_s, r.id))


@given(
    n=st.integers(0, 30),
    concurrency=st.integers(1, 8),
    think=st.sampled_from([0.0, 0.5, 3.0]),
    seed=st.integers(0, 9999),
)
def test_closed_loop_never_exceeds_its_concurrency(n, concurrency, think, seed):
    rng = random.Random(seed)
    source = ClosedLoop(requests([9.0] * n), concurrency, think)
    now, running, seen, ends = 0.0, [], [], {}
    while source.remaining or running:
        taken = source.take(now)
        running += [request.id for request in taken]
        seen += taken
        assert len(running) <= concurrency
        assert source.remaining == n - len(seen)
        if think == 0.0:
            assert len(running) == min(concurrency, n - len(ends))
        if running and (rng.random() < 0.7 or source.next_arrival_s() is None):
            now += rng.random()
            done = running.pop(rng.randrange(len(running)))
            ends[done] = now
            source.finished(ended(done), now)
        elif source.next_arrival_s() is not None:
            now = max(now, source.next_arrival_s())
    assert [request.id for request in seen] == list(range(n))
    assert source.next_arrival_s() is None and source.take(1e9) == []
    starts = [request.arrival_s for request in seen]
    causes = sorted(at + think for at in ends.values())
    assert starts == [0.0] * min(n, concurrency) + causes[: max(0, n - concurrency)]


def test_a_closed_loop_waits_for_answers():
    source = ClosedLoop(requests([0.0] * 3), 2, think_time_s=1.5)
    assert [r.id for r in source.take(0.0)] == [0, 1]
    assert source.next_arrival_s() is None and source.remaining == 1
    source.finished(ended(1), 4.0)
    assert source.next_arrival_s() == 5.5
    assert source.take(5.4) == []
    (last,) = source.take(6.0)
    assert (last.id, last.arrival_s) == (2, 5.5)


def test_hanging_up_moves_with_the_arrival():
    request = Request(id=0, prompt=(1,), max_tokens=1, arrival_s=0.0, cancel_at_s=2.0)
    source = ClosedLoop(
        [request, Request(id=1, prompt=(1,), max_tokens=1, arrival_s=3.0, cancel_at_s=7.0)], 1
    )
    assert source.take(0.0)[0].cancel_at_s == 2.0
    source.finished(ended(0), 10.0)
    assert source.take(10.0)[0].cancel_at_s == 14.0


def test_an_end_that_cannot_be_is_refused():
    source = ClosedLoop(requests([0.0] * 3), 1)
    with pytest.raises(ValueError, match="request 0 is not in flight"):
        source.finished(ended(0), 0.0)
    source.take(0.0)
    source.finished(ended(0), 1.0)
    with pytest.raises(ValueError, match="request 0 is not in flight"):
        source.finished(ended(0), 1.0)


def test_an_open_loop_does_not_mind_ends():
    source = OpenLoop(requests([0.0]))
    source.finished(ended(5), 1.0)
    assert source.remaining == 1


def test_impossible_sources_are_refused():
    with pytest.raises(ValueError, match="concurrency is 0"):
        ClosedLoop([], 0)
    with pytest.raises(ValueError, match="think time is -1"):
        ClosedLoop([], 1, -1.0)
    for source in (OpenLoop, lambda twice: ClosedLoop(twice, 1)):
        with pytest.raises(ValueError, match="two requests have the id 0"):
            source(requests([0.0]) * 2)
