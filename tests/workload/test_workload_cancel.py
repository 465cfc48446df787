"""A share of the clients hangs up after a while, the same ones for the same seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tunebatch.workload.lengths import Fixed
from tunebatch.workload.prompts import RandomPrompts
from tunebatch.workload.spec import WorkloadSpec, build

SPEC = WorkloadSpec(
    name="test", rate_per_s=4.0, prompt_lengths=Fixed(3), output_lengths=Fixed(2), num_requests=4000
)
HASTY = replace(SPEC, cancel=0.2, cancel_after_s=3.0)


def make(spec, seed=None):
    return build(spec, RandomPrompts(99), 64, seed)


def patience(workload):
    return [r.cancel_at_s - r.arrival_s for r in workload.requests if r.cancel_at_s is not None]


def test_the_share_and_the_mean_are_those_asked_for():
    waits = patience(make(HASTY))
    assert len(waits) == pytest.approx(800, rel=0.1) and min(waits) > 0
    assert np.mean(waits) == pytest.approx(3.0, rel=0.1)
    assert np.std(waits) == pytest.approx(3.0, rel=0.15), "exponential"
    assert patience(make(SPEC)) == []
    assert len(patience(make(replace(HASTY, cancel=1.0)))) == 4000


def test_hanging_up_is_seeded_and_seen():
    few = replace(HASTY, num_requests=50)
    assert make(few) == make(few) and patience(make(few)) != patience(make(few, 5))
    assert make(few).fingerprint() != make(replace(few, cancel=0.0)).fingerprint()
    assert make(few).fingerprint() != make(replace(few, cancel_after_s=4.0)).fingerprint()
    assert "20 % of clients hang up 3 s after arrival on average" in make(few).description
    assert "hang up" not in make(replace(few, cancel=0.0)).description


def test_hanging_up_changes_nothing_else_and_moves_with_the_arrivals():
    calm, hasty = make(replace(SPEC, num_requests=50)), make(replace(HASTY, num_requests=50))
    assert tuple(replace(request, cancel_at_s=None) for request in hasty.requests) == calm.requests
    assert patience(hasty.at_rate(40.0)) == pytest.approx(patience(hasty))
    assert patience(hasty.saturated()) == pytest.approx(patience(hasty))


def test_what_a_trace_says_of_a_request_holds(tmp_path):
    line = '{{"arrival_s": {}, "prompt_tokens": 3, "output_tokens": 2{}}}\n'
    (tmp_path / "t.jsonl").write_text(line.format(0, ', "cancel_at_s": 0.5') + line.format(1, ""))
    spec = WorkloadSpec(name="t", arrivals="trace", trace_file=tmp_path / "t.jsonl", cancel=1.0)
    first, second = make(spec).requests
    assert first.cancel_at_s == 0.5 and second.cancel_at_s is not None


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"cancel": -0.1}, "cancel is -0.1, must be from 0 to 1"),
        ({"cancel": 1.5}, "cancel is 1.5"),
        ({"cancel": float("nan")}, "cancel is nan"),
        ({"cancel_after_s": 0.0}, "cancel_after_s is 0.0, must be above 0"),
        ({"cancel_after_s": float("inf")}, "cancel_after_s is inf"),
    ],
)
def test_impossible_values_are_refused(values, named):
    with pytest.raises(ValueError, match=named):
        replace(SPEC, **values)
