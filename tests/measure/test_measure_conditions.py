"""What a result says of how it was measured."""

from __future__ import annotations

import dataclasses

from measure_records import request, run

from tunebatch.measure.conditions import conditions
from tunebatch.measure.metrics import summarize


def test_warmup_is_told() -> None:
    record = run([request(i, float(i), [i + 0.5]) for i in range(20)])
    assert conditions(summarize(record, None, 2), "wall", 0).warmup == "first 2 of 20 requests"
    assert conditions(summarize(record), "wall", 0).warmup == "none"


def test_hits_are_a_share_of_the_prompts_of_those_who_were_served() -> None:
    records = [
        request(0, 1.0, [2.0, 3.0], prompt=100),
        request(1, 1.0, [3.5], prompt=60),
        request(2, 2.0, [], prompt=900),
    ]
    records[1].num_cached_tokens = 48
    record = run(records)
    told = conditions(summarize(record), "replay", 7)
    assert (told.clock, told.seed, told.window_s, told.hit_rate) == ("replay", 7, 2.5, None)
    cached = dataclasses.replace(record, prefix_caching=True)
    found = conditions(summarize(cached), "replay", 7)
    assert (found.hit_rate, found.saved_prefill_tokens) == (0.3, 48)
    nobody = dataclasses.replace(run(records[2:]), prefix_caching=True)
    assert conditions(summarize(nobody), "replay", 7).hit_rate is None
