"""A description becomes the requests it asks for, the same ones for the same seed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebatch.engine.records import RequestRecord
from tunebatch.workload.clip import clipped_lengths
from tunebatch.workload.lengths import Fixed, LogNormal, Uniform
from tunebatch.workload.prompts import RandomPrompts
from tunebatch.workload.source import ClosedLoop, OpenLoop
from tunebatch.workload.spec import WorkloadSpec, build
from tunebatch.workload.traces import TraceError

PROMPTS = RandomPrompts(500)
SPEC = WorkloadSpec(
    name="test",
    rate_per_s=4.0,
    prompt_lengths=Uniform(5, 60),
    output_lengths=LogNormal.fit(20, 60, high=200),
    num_requests=40,
)
CLOSED = replace(SPEC, arrivals="closed", concurrency=3, rate_per_s=None)
OFFLINE = replace(SPEC, arrivals="burst", rate_per_s=None)
rates = st.floats(1e-3, 1e4)


def make(spec=SPEC, context=2048, seed=None, **options):
    return build(spec, PROMPTS, context, seed, **options)


def arrivals(workload):
    return [request.arrival_s for request in workload.requests]


def lengths(workload):
    return [(len(request.prompt), request.max_tokens) for request in workload.requests]


@given(seed=st.integers(0, 2**32), other=st.integers(0, 2**32))
def test_the_seed_decides_everything(seed, other):
    one, again, two = make(seed=seed), make(replace(SPEC, seed=seed)), make(seed=other)
    assert one == again and one.fingerprint() == again.fingerprint()
    if other != seed:
        assert one.fingerprint() != two.fingerprint()
        assert arrivals(one) != arrivals(two)
        assert lengths(one) != lengths(two)
        assert [r.prompt[:5] for r in one.requests] != [r.prompt[:5] for r in two.requests]


def test_changing_one_part_leaves_the_others():
    base = make()
    burstier = make(replace(SPEC, arrivals="gamma", burstiness=0.3))
    assert [r.prompt for r in burstier.requests] == [r.prompt for r in base.requests]
    assert lengths(burstier) == lengths(base) and arrivals(burstier) != arrivals(base)
    longer = make(replace(SPEC, output_lengths=Fixed(99)))
    assert [r.prompt for r in longer.requests] == [r.prompt for r in base.requests]
    assert arrivals(longer) == arrivals(base)
    fixed = make(replace(SPEC, prompt_lengths=Fixed(7)))
    assert [r.max_tokens for r in fixed.requests] == [r.max_tokens for r in base.requests]
    assert [r.prompt[:5] for r in fixed.requests] == [r.prompt[:5] for r in base.requests]


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        replace(SPEC, arrivals="gamma", burstiness=0.2),
        replace(SPEC, arrivals="constant"),
        replace(SPEC, arrivals="burst", burst_size=8),
    ],
    ids=lambda spec: spec.arrivals,
)
@given(rate=rates, between=rates)
def test_at_rate_is_the_workload_of_that_rate_whatever_came_between(spec, rate, between):
    base = make(spec)
    scaled = base.at_rate(rate)
    assert scaled == make(replace(spec, rate_per_s=rate))
    assert scaled == base.at_rate(between).at_rate(rate) == base.saturated().at_rate(rate)
    np.testing.assert_allclose(np.array(arrivals(scaled)) * rate, np.array(arrivals(base)) * 4.0, rtol=1e-12)
    assert lengths(scaled) == lengths(base)


def test_rate_is_about_what_was_asked_for():
    times = arrivals(make(replace(SPEC, num_requests=5000, prompt_lengths=Fixed(1))))
    assert len(times) / times[-1] == pytest.approx(4.0, rel=0.06)


def test_saturated_has_everything_at_once():
    saturated = make().saturated()
    assert set(arrivals(saturated)) == {0.0} and saturated.rate_per_s is None
    assert lengths(saturated) == lengths(make())
    assert len(saturated.source().take(0.0)) == 40
    assert make(CLOSED).saturated().source().remaining == 40
    assert isinstance(make(CLOSED).saturated().source(), OpenLoop)


def test_bursts():
    gap = make(replace(OFFLINE, burst_size=16, burst_gap_s=2.0))
    assert arrivals(gap) == [0.0] * 16 + [2.0] * 16 + [4.0] * 8
    assert gap.rate_per_s == 8.0
    assert arrivals(gap.at_rate(16.0))[-1] == 2.0
    for spec in (OFFLINE, replace(OFFLINE, burst_size=4), replace(OFFLINE, burst_size=40, burst_gap_s=1.0)):
        assert set(arrivals(make(spec))) == {0.0} and make(spec).rate_per_s is None


def test_closed_loop():
    workload = make(replace(CLOSED, think_time_s=0.5))
    source = workload.source()
    assert isinstance(source, ClosedLoop)
    assert [r.id for r in source.take(0.0)] == [0, 1, 2]
    source.finished(RequestRecord(0, 0.0, 1, 1), 1.0)
    assert source.next_arrival_s() == 1.5
    assert workload.source().remaining == 40, "each run has a source of its own"
    assert workload.fingerprint() != make(CLOSED).fingerprint()


@pytest.mark.parametrize("spec", [CLOSED, OFFLINE], ids=["closed", "offline"])
def test_without_a_rhythm_there_is_no_rate_to_change(spec):
    with pytest.raises(ValueError, match=r"workload test: .* has no rate to change"):
        make(spec).at_rate(3.0)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(ValueError, match="must be above 0"):
        make().at_rate(rate)


@given(prompt=st.integers(1, 10**7), output=st.integers(1, 10**7), context=st.integers(2, 10**5))
def test_clipping_fits_and_keeps_what_it_can(prompt, output, context):
    kept = clipped_lengths(prompt, output, context)
    assert 1 <= kept[0] <= prompt and 1 <= kept[1] <= output
    if prompt + output <= context:
        assert kept == (prompt, output)
    else:
        assert sum(kept) == context
        assert kept[0] == prompt or kept[1] == output or min(kept) >= context // 2
    assert kept[1] >= min(output, context // 2)


def test_clipping_is_counted():
    spec = replace(SPEC, prompt_lengths=Uniform(100, 400), output_lengths=Uniform(1, 300))
    whole, clipped = make(spec), make(spec, context=300)
    too_long = sum(prompt + output > 300 for prompt, output in lengths(whole))
    assert 0 < too_long < 40 and whole.notes == ()
    assert clipped.notes == (f"{too_long} of 40 requests were clipped to the context of 300 tokens",)
    assert max(prompt + output for prompt, output in lengths(clipped)) == 300
    assert lengths(make(replace(spec, max_context=300))) == lengths(clipped)
    assert lengths(make(replace(spec, max_context=9999), 300)) == lengths(clipped)


def test_a_small_kv_cache_clips_as_a_small_context_does():
    spec = replace(SPEC, prompt_lengths=Uniform(100, 400), output_lengths=Uniform(1, 300))
    clipped = make(spec, kv_tokens=300)
    assert clipped.requests == make(spec, context=300).requests
    assert clipped.notes[0].endswith("requests were clipped to the KV cache of 300 tokens")
    assert make(spec, context=300, kv_tokens=301).notes == make(spec, context=300).notes
    assert make(replace(spec, clip=False), kv_tokens=300).requests == make(spec).requests


def test_clipping_can_be_forbidden():
    spec = replace(SPEC, prompt_lengths=Fixed(200), output_lengths=Fixed(150), clip=False)
    assert make(spec, context=350).notes == ()
    with pytest.raises(
        ValueError, match=r"request 0: 200 prompt \+ 150 output tokens exceed the context of 349"
    ):
        make(spec, context=349)


def test_description_is_one_line_about_this_very_workload():
    text = make().description
    assert text.startswith("test: 40 requests, Poisson at 4 req/s, prompts of ")
    assert text.endswith("seed 0") and "\n" not in text
    assert "at 9.5 req/s" in make().at_rate(9.5).description
    assert "all at once" in make().saturated().description
    assert "3 at a time (closed loop, 2 s between" in make(replace(CLOSED, think_time_s=2.0)).description
    assert "gamma (burstiness 0.5) at 4" in make(replace(SPEC, arrivals="gamma", burstiness=0.5)).description


def test_notes_of_the_description_are_passed_on():
    assert make(replace(SPEC, notes=("lengths scaled by 0.5",))).notes == ("lengths scaled by 0.5",)


@pytest.mark.parametrize("change", ["id", "prompt", "max_tokens", "arrival_s", "cancel_at_s", "ignore_eos"])
def test_the_fingerprint_sees_every_part(change):
    workload = make()
    first = workload.requests[0]
    value = {
        "id": 99, "prompt": (*first.prompt[:-1], first.prompt[-1] ^ 1), "max_tokens": first.max_tokens + 1,
        "arrival_s": first.arrival_s + 1e-9, "cancel_at_s": 5.0, "ignore_eos": False,
    }[change]  # fmt: skip
    changed = replace(workload, requests=(replace(first, **{change: value}), *workload.requests[1:]))
    assert changed.fingerprint() != workload.fingerprint()
    assert len(workload.fingerprint()) == 64


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"arrivals": "poison"}, "did you mean 'poisson'"),
        ({"arrivals": "xyz"}, "use one of poisson, gamma"),
        ({"rate_per_s": None}, "need rate_per_s"),
        ({"rate_per_s": 0.0}, "rate_per_s is 0.0, must be above 0"),
        ({"rate_per_s": float("inf")}, "rate_per_s is inf"),
        ({"arrivals": "gamma", "burstiness": 0.0}, "burstiness is 0"),
        ({"arrivals": "gamma", "burstiness": 1e-6}, "burstiness is 1e-06; the nearest valid value is 0.001"),
        ({"arrivals": "gamma", "burstiness": 1e308}, r"the nearest valid value is 1e\+06"),
        ({"arrivals": "gamma", "burstiness": float("nan")}, "burstiness is nan"),
        ({"arrivals": "closed"}, "needs concurrency"),
        ({"arrivals": "closed", "concurrency": 0}, "concurrency is 0"),
        ({"arrivals": "burst", "burst_gap_s": 1.0}, "either rate_per_s or burst_gap_s"),
        ({"arrivals": "trace"}, "need trace_file"),
        ({"trace_file": "x.csv"}, "leave out prompt_lengths"),
        ({"prompt_lengths": None}, "needs prompt_lengths"),
        ({"num_requests": None}, "needs num_requests"),
        ({"num_requests": 0}, "num_requests is 0"),
        ({"think_time_s": -1.0}, "think_time_s is -1"),
        ({"think_time_s": 1e308}, r"must be from 0 to 1e\+09"),
        ({"max_context": 1}, "max_context is 1"),
        ({"trace_start": -1}, "trace_start is -1"),
    ],
)
def test_wrong_descriptions_name_the_field(values, named):
    with pytest.raises(ValueError, match=named) as caught:
        replace(SPEC, **values)
    assert str(caught.value).startswith("workload test: ") and "\n" not in str(caught.value)


HARD = {
    "gamma": replace(SPEC, arrivals="gamma", burstiness=1e-3),
    "smooth": replace(SPEC, arrivals="gamma", burstiness=1e6),
    "poisson": SPEC,
    "bursts": replace(OFFLINE, burst_size=3, burst_gap_s=1e308),
    "closed": replace(CLOSED, think_time_s=1e9),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", HARD)
@given(n=st.integers(1, 80), seed=st.integers(0, 2**32), rate=st.floats(5e-324, 1e308))
def test_every_arrival_is_a_time_or_refused(name, n, seed, rate):
    try:
        workload = make(replace(HARD[name], num_requests=n), seed=seed)
        if workload.unit_arrivals_s is not None:
            workload = workload.at_rate(rate)
    except ValueError as error:
        assert "use " in str(error) and "\n" not in str(error)
    else:
        assert np.all(np.isfinite(arrivals(workload)))


def test_what_would_never_arrive_is_refused():
    with pytest.raises(ValueError, match=r"would arrive at inf s.*use a higher rate"):
        make().at_rate(1e-310)
    spec = replace(SPEC, arrivals="gamma", burstiness=1e-3, num_requests=1)
    with pytest.raises(ValueError, match=r"gaps between 1 arrivals .* use more requests or a higher burst"):
        for seed in range(100):
            make(spec, seed=seed)


def write(path, *lines):
    path.write_text("".join(line + "\n" for line in lines))
    return path


TRACE = (
    '{"arrival_s": 10, "prompt": [1, 2, 3, 4, 5, 6], "max_tokens": 4, "cancel_at_s": 12.5}',
    '{"arrival_s": 14, "prompt_tokens": 7, "output_tokens": 2, "ignore_eos": false}',
    '{"arrival_s": 12, "prompt_tokens": 3, "output_tokens": 9, "temperature": 0.5, "seed": 8}',
)


def trace_spec(path, **values):
    return WorkloadSpec(**{"name": "recorded", "arrivals": "trace", "trace_file": path, **values})


def test_a_trace_is_replayed_in_order_of_arrival(tmp_path):
    workload = make(trace_spec(write(tmp_path / "t.jsonl", *TRACE)))
    assert arrivals(workload) == [0.0, 2.0, 4.0]
    assert workload.rate_per_s == 0.5
    assert lengths(workload) == [(6, 4), (3, 9), (7, 2)]
    first, second, third = workload.requests
    assert (first.prompt, first.cancel_at_s) == ((1, 2, 3, 4, 5, 6), 2.5)
    assert (second.sampling.temperature, second.sampling.seed) == (0.5, 8)
    assert first.sampling.greedy and first.ignore_eos and not third.ignore_eos
    assert workload.notes == ("1 of 3 rows was earlier than the row before and put in order of arrival",)
    assert "arrivals of t.jsonl at 0.5 req/s" in workload.description


def test_a_trace_is_rescaled_in_time(tmp_path):
    path = write(tmp_path / "t.jsonl", *TRACE)
    faster = make(trace_spec(path)).at_rate(2.0)
    assert arrivals(faster) == [0.0, 0.5, 1.0]
    assert faster.requests[0].cancel_at_s == 2.5, "a client's patience does not change with the traffic"
    asked = make(trace_spec(path, rate_per_s=2.0))
    assert asked.requests == faster.requests
    assert "the trace was rescaled in time from 0.5 to 2 requests/s" in asked.notes


def test_the_requests_of_a_trace_can_arrive_otherwise(tmp_path):
    path = write(tmp_path / "t.jsonl", *(line.replace('"arrival_s": 14, ', "") for line in TRACE))
    workload = make(trace_spec(path, arrivals="constant", rate_per_s=1.0))
    assert arrivals(workload) == [0.0, 1.0, 2.0]
    assert lengths(workload) == [(6, 4), (7, 2), (3, 9)] and workload.notes == ()
    closed = make(trace_spec(path, arrivals="closed", concurrency=2))
    assert len(closed.source().take(0.0)) == 2


def test_a_clipped_prompt_keeps_its_end(tmp_path):
    path = write(tmp_path / "t.jsonl", *TRACE)
    workload = make(trace_spec(path), 7)
    assert workload.requests[0].prompt == (3, 4, 5, 6) and workload.requests[0].max_tokens == 3
    assert "3 of 3 requests were clipped to the context of 7 tokens" in workload.notes
    with pytest.raises(ValueError, match=r"t\.jsonl, line 2: 7 prompt \+ 2 output tokens exceed .* of 8"):
        make(trace_spec(path, trace_start=1, trace_limit=1, clip=False), 8)


def test_ids_beyond_the_vocabulary_are_refused(tmp_path):
    path = write(tmp_path / "t.jsonl", *TRACE)
    assert make(trace_spec(path), vocab_size=7).requests
    with pytest.raises(ValueError, match="line 1: token 6 in the prompt; expected ids below 6"):
        make(trace_spec(path), vocab_size=6)


def test_a_trace_is_sliced(tmp_path):
    path = write(tmp_path / "t.jsonl", *TRACE)
    assert lengths(make(trace_spec(path, trace_start=1, trace_limit=1))) == [(7, 2)]
    assert len(make(trace_spec(path, num_requests=2, trace_limit=3)).requests) == 2
    assert "the trace has 3 rows, 9 were asked for" in make(trace_spec(path, num_requests=9)).notes
    assert make(trace_spec(path, trace_limit=1)).rate_per_s is None


def test_rows_without_tokens_are_dropped_and_counted(tmp_path):
    head = "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens"
    rows = [
        f"2024-10-15T12:00:0{i}Z,{images},{p},{o}" for i, (images, p, o) in enumerate([(0, 5, 0), (2, 5, 1)])
    ]
    path = write(tmp_path / "t.csv", head, *rows)
    workload = make(trace_spec(path))
    assert workload.notes == (
        "1 of 2 rows was dropped for having no prompt or no output token",
        "1 of 1 request was stripped of images",
    )
    with pytest.raises(ValueError, match="line 2: no row from here on has both"):
        make(trace_spec(path, trace_limit=1))


@pytest.mark.parametrize("last", ["5e-324", "1e-310", "1e18"])
def test_a_trace_of_any_duration_has_arrivals(tmp_path, last):
    line = '{{"arrival_s": {}, "prompt_tokens": 3, "output_tokens": 9}}'
    workload = make(
        trace_spec(write(tmp_path / "t.jsonl", line.format(0), line.format(last), line.format(last)))
    )
    times = arrivals(workload)
    assert np.all(np.isfinite(times)) and times == pytest.approx([0.0, float(last), float(last)])


def test_text_prompts_need_a_tokenizer(tmp_path):
    path = write(tmp_path / "t.jsonl", '{"arrival_s": 0, "text": "abc", "max_tokens": 3}')
    assert make(trace_spec(path), tokenize=lambda text: [ord(c) for c in text]).requests[0].prompt == (
        97,
        98,
        99,
    )
    with pytest.raises(TraceError, match="line 1: a text prompt, but no tokenizer"):
        make(trace_spec(path))


def test_torch_is_not_imported():
    code = (
        "import sys, tunebatch.workload.named, tunebatch.workload.prompts; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
