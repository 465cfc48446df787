"""Under which conditions runs were measured, in words."""

from __future__ import annotations

import dataclasses

from tunebatch.measure.conditions import Conditions
from tunebatch.report.conditions import common_conditions, conditions_line


def told(clock: str = "replay", warmup: str = "none") -> Conditions:
    return Conditions(clock, 8.0, 3, None, warmup=warmup)


def test_one_run() -> None:
    line = conditions_line(told(warmup="first 7 of 78 requests"))
    assert line.startswith(
        "measured: replay clock; warm-up, in no percentile: first 7 of 78 requests; window 8.0"
    )
    assert line.endswith("first arrival to last token; seed 3; no prefix cache")


def test_a_hit_rate_stands_with_the_tokens_it_saved() -> None:
    cached = dataclasses.replace(told(), hit_rate=0.44, saved_prefill_tokens=1280)
    assert conditions_line(cached).endswith("; seed 3; hit rate 44 %, 1,280 tokens saved")
    older = dataclasses.replace(cached, saved_prefill_tokens=None)
    assert conditions_line(older).endswith("; seed 3; hit rate 44 %")


def test_several_runs() -> None:
    some = told(warmup="first 7 of 78 requests"), told(warmup="first 64 of 640 requests")
    (line,) = common_conditions([*some, None])
    assert line == (
        "times: replay clock (steps measured, idle gaps skipped); "
        "the first 10 % of a run's requests are warm-up, in no percentile"
    )
    assert common_conditions([told("wall"), told()]) == [
        "times: replay clock (steps measured, idle gaps skipped), wall clock (idle gaps waited through); "
        "no warm-up is left out"
    ]
    (line,) = common_conditions([*some, told()])
    assert line.endswith("in no percentile, but of some runs nothing was left out")


def test_of_results_that_do_not_tell_there_is_nothing_to_say() -> None:
    assert common_conditions([None]) == common_conditions([]) == []
