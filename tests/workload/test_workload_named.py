"""Named workloads have their sources' percentiles, and shrink to fit a context."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebatch.measure.warmup import requests_for
from tunebatch.workload.named import NAMED, scaled_to
from tunebatch.workload.prompts import RandomPrompts
from tunebatch.workload.spec import WorkloadSpec, build


def sample(law, seed=1):
    return law.sample(20_000, np.random.default_rng(seed))


def test_the_names():
    plain = {"chat", "code", "summarize", "offline", "quickstart", "long-prompt"}
    assert set(NAMED) == plain | {"system-prompt", "rag", "agents", "multi-turn"}
    assert all(name == spec.name for name, spec in NAMED.items())


@pytest.mark.parametrize(
    ("name", "prompt", "output"),
    [
        ("chat", (417, 1678), (139, 484)),
        ("code", (1469, 5187.6), (13, 55)),
        ("summarize", (2730, 3702), (167, 372)),
    ],
)
def test_published_percentiles(name, prompt, output):
    for law, (p50, p90) in ((NAMED[name].prompt_lengths, prompt), (NAMED[name].output_lengths, output)):
        drawn = sample(law)
        assert np.percentile(drawn, 50) == pytest.approx(p50, rel=0.04)
        assert np.percentile(drawn, 90) == pytest.approx(p90, rel=0.05)


@pytest.mark.parametrize("name", NAMED)
def test_every_name_can_be_built_for_the_bundled_context(name):
    workload = build(scaled_to(NAMED[name], 2048), RandomPrompts(4096), 2048)
    assert len(workload.requests) == NAMED[name].num_requests
    clipped = [int(note.split()[0]) for note in workload.notes if "clipped" in note]
    assert sum(clipped) <= 0.02 * len(workload.requests)


@pytest.mark.parametrize("name", ["chat", "code", "summarize"])
@given(context=st.integers(64, 8192))
def test_scaling_fits_the_p99_and_says_its_factor_exactly(name, context):
    spec = NAMED[name]
    scaled = scaled_to(spec, context)
    total = sample(scaled.prompt_lengths, 1) + sample(scaled.output_lengths, 2)
    assert np.percentile(total, 98.5) <= context + 1
    if scaled is spec:
        return
    (note,) = scaled.notes
    factor = float(re.fullmatch(rf"lengths scaled by (\S+) to fit a context of {context} tokens", note)[1])
    assert scaled.prompt_lengths == spec.prompt_lengths.scaled(factor)
    assert scaled.output_lengths == spec.output_lengths.scaled(factor)
    assert np.percentile(total, 99.5) >= 0.8 * context, "not shrunk more than is needed"


def test_what_fits_is_left_alone():
    assert scaled_to(NAMED["quickstart"], 2048) is NAMED["quickstart"]
    assert scaled_to(NAMED["chat"], 100_000) is NAMED["chat"]
    trace = WorkloadSpec(name="t", arrivals="trace", trace_file=Path("t.csv"))
    assert scaled_to(trace, 16) is trace


def test_a_small_kv_cache_shrinks_lengths_as_a_small_context_does():
    chat = NAMED["chat"]
    scaled = scaled_to(chat, 4096, 640)
    assert scaled.prompt_lengths == scaled_to(chat, 640).prompt_lengths != chat.prompt_lengths
    assert scaled.notes == (scaled_to(chat, 640).notes[0].replace("a context of", "a KV cache of"),)
    assert scaled_to(chat, 640, 4096) == scaled_to(chat, 640)


def test_the_quickstart_is_short():
    workload = build(NAMED["quickstart"], RandomPrompts(4096), 2048)
    assert len(workload.requests) == requests_for(64, at_once=False) == 71 and workload.notes == ()
    assert sum(r.max_tokens for r in workload.requests) < 4500
    assert {r.max_tokens // 30 for r in workload.requests} == {0, 1, 2, 3}, (
        "outputs of very different lengths"
    )


def test_offline_comes_all_at_once():
    workload = build(NAMED["offline"], RandomPrompts(4096), 2048)
    assert workload.rate_per_s is None and {r.arrival_s for r in workload.requests} == {0.0}
