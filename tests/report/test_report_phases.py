"""What slots were doing, from runs of the real engine in virtual time."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebatch.engine.records import RequestRecord, RunRecord, StepLog
from tunebatch.report.phases import Phase, SlotPhases, Span, Stay

SHAPES = st.lists(
    st.tuples(
        st.integers(1, 12),
        st.integers(1, 10),
        st.sampled_from([0.0, 3.0, 20.0]),
        st.none() | st.sampled_from([5.0, 30.0, 60.0]),
    ),
    min_size=1,
    max_size=10,
)


def told(stay: Stay) -> list[tuple[float, float, str]]:
    return [(span.start_s, span.end_s, span.phase.value) for span in stay.spans]


def test_a_static_batch_prefills_waits_decodes_and_leaves_its_slot_empty(serve: Any) -> None:
    # A prefill step of 5 tokens, one of 3, and decode steps.
    run = serve("static", [(5, 3, 0.0, None), (3, 2, 0.0, None)], max_batch_size=2, max_batched_tokens=6)
    assert [told(stay) for stay in SlotPhases(run).stays()] == [
        [(0.0, 6.0, "prefill"), (6.0, 10.0, "wait"), (10.0, 12.0, "decode")],
        [(6.0, 10.0, "prefill"), (10.0, 11.0, "decode"), (11.0, 12.0, "empty")],
    ]


def test_decodes_wait_for_chunks_and_a_prompt_waits_for_decodes(serve: Any) -> None:
    run = serve("chunked", [(2, 4, 0.0, None), (64, 1, 0.0, None)], max_batch_size=2, chunk_size=32)
    # The second prompt and its token exceed the context.
    assert len(list(SlotPhases(run).stays())) == 1
    run = serve("chunked", [(2, 4, 0.0, None), (33, 1, 1.0, None)], max_batch_size=2, chunk_size=32)
    first, second = SlotPhases(run).stays()
    assert told(first) == [
        (0.0, 3.0, "prefill"),
        (3.0, 4.0, "decode"),
        (4.0, 37.0, "wait"),
        (37.0, 38.0, "decode"),
        (38.0, 40.0, "wait"),
        (40.0, 41.0, "decode"),
    ]
    assert told(second) == [(4.0, 37.0, "prefill"), (37.0, 38.0, "wait"), (38.0, 40.0, "prefill")]


def test_what_preemption_took_is_recomputed_not_prefilled(serve: Any) -> None:
    run = serve("continuous", [(12, 14, 0.0, None), (12, 20, 0.0, None)])
    assert run.requests[1].num_preemptions == 1
    stays = [stay for stay in SlotPhases(run).stays() if stay.request_id == 1]
    stays.sort(key=lambda stay: stay.start_s)
    assert [span.phase.value for stay in stays for span in stay.spans] == [
        *("prefill", "decode"),
        *("recompute", "decode"),
    ]


def test_a_prompt_preempted_midway_goes_on_where_it_was(serve: Any) -> None:
    run = serve("chunked", [(12, 12, 0.0, None), (28, 3, 22.0, None)], max_batch_size=2, chunk_size=4)
    spans = [s for stay in SlotPhases(run).stays() if stay.request_id == 1 for s in stay.spans]
    assert [span.phase.value for span in sorted(spans, key=lambda span: span.start_s)] == [
        *("prefill", "wait", "prefill"),
        *("recompute", "prefill", "decode"),
    ]
    assert [s.end_s for s in spans if s.phase is Phase.RECOMPUTE] == run.requests[1].recomputed_at_s


def test_every_preemption_has_its_own_recomputation() -> None:
    log = StepLog(
        start_s=[0.0, 1.0, 3.0, 5.0],
        duration_s=[1.0, 1.0, 1.0, 1.0],
        num_decodes=[0] * 4,
        num_draft_tokens=[0] * 4,
        slices=[((0, 0, 0, 4),)] * 4,
        verifications=[()] * 4,
    )
    request = RequestRecord(0, 0.0, 4, 9, preempted_at_s=[1.0, 3.0], recomputed_at_s=[2.0, 6.0])
    stays = [(0, 0, 0.0, 1.0, 1.0), (0, 0, 1.0, 3.0, 3.0), (0, 0, 5.0, 6.0, 6.0)]
    phases = [
        [span.phase.value for span in stay.spans]
        for stay in SlotPhases(RunRecord([request], log, stays)).stays()
    ]
    assert phases == [["prefill"], ["recompute"], ["recompute"]]


def test_a_sequence_that_verifies_has_a_phase_of_its_own() -> None:
    log = StepLog(
        start_s=[0.0, 1.0, 2.0],
        duration_s=[1.0, 1.0, 1.0],
        num_decodes=[0, 1, 0],
        num_draft_tokens=[0, 0, 3],
        slices=[((0, 0, 0, 4),), (), ()],
        verifications=[(), (), ((0, 0, 3, 1),)],
    )
    run = RunRecord(
        [RequestRecord(0, 0.0, 4, 9, token_times_s=[1.0, 2.0, 3.0, 3.0, 3.0])], log, [(0, 0, 0.0, 3.0, 3.0)]
    )
    (stay,) = SlotPhases(run).stays()
    assert told(stay) == [(0.0, 1.0, "prefill"), (1.0, 2.0, "decode"), (2.0, 3.0, "verify")]


@settings(max_examples=200, deadline=None)
@given(SHAPES, st.sampled_from(["static", "continuous+ngram", "chunked", "mixed", "mixed+ngram"]))
def test_the_spans_of_a_stay_tile_it_and_agree_with_the_steps(
    serve: Any, shapes: list[tuple[int, int, float, float | None]], name: str
) -> None:
    chunk = {"chunk_size": 4} if name.startswith(("chunked", "mixed")) else {}
    run: RunRecord = serve(name, shapes, max_batch_size=3, **chunk)
    spent: defaultdict[Phase, float] = defaultdict(float)
    requests = {request.id: request for request in run.requests}
    stays_before: defaultdict[int, int] = defaultdict(int)
    for stay in sorted(SlotPhases(run).stays(), key=lambda stay: stay.start_s):
        if (before := stays_before[stay.request_id]) and not cut_short(stay, requests[stay.request_id]):
            recomputed_s = requests[stay.request_id].recomputed_at_s[before - 1]
            assert all((s.phase is Phase.RECOMPUTE) == (s.start_s < recomputed_s) for s in computing(stay))
        stays_before[stay.request_id] += 1
        edges = [stay.start_s, *(span.end_s for span in stay.spans)]
        assert [span.start_s for span in stay.spans] == edges[:-1] and edges[-1] == stay.held_until_s
        assert all(one.phase is not two.phase for one, two in pairwise(stay.spans))
        for span in stay.spans:
            spent[span.phase] += span.end_s - span.start_s
    steps = run.steps
    by_slices = sum(d * n for d, n in zip(steps.duration_s, steps.num_prefills, strict=True))
    by_decodes = sum(d * n for d, n in zip(steps.duration_s, steps.num_decodes, strict=True))
    by_drafts = sum(d * len(ones) for d, ones in zip(steps.duration_s, steps.verifications, strict=True))
    assert spent[Phase.VERIFY] == pytest.approx(by_drafts)
    assert spent[Phase.PREFILL] + spent[Phase.RECOMPUTE] == pytest.approx(by_slices)
    assert spent[Phase.DECODE] == pytest.approx(by_decodes)
    if not sum(steps.num_preempted):
        assert not spent[Phase.RECOMPUTE]


def computing(stay: Stay) -> list[Span]:
    return [span for span in stay.spans if span.phase not in (Phase.WAIT, Phase.EMPTY)]


def cut_short(stay: Stay, request: RequestRecord) -> bool:
    """It ended before it had computed what it had lost."""
    return stay.end_s == request.end_s and len(request.recomputed_at_s) < len(request.preempted_at_s)


def test_only_what_is_asked_for(serve: Any) -> None:
    run = serve("continuous", [(4, 4, 0.0, None), (4, 4, 0.0, None), (4, 4, 40.0, None)])
    phases = SlotPhases(run)
    assert [stay.request_id for stay in phases.stays(max_slots=1)] == [0, 2]
    assert [stay.request_id for stay in phases.stays(until_s=40.0)] == [0, 1]
    assert [stay.request_id for stay in phases.stays(since_s=40.0)] == [2]
