"""The clocks compared: on a fake model they are the same clock, until one of them is made to run late."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from tunebatch.cli.session import Session
from tunebatch.measure.metrics import Metrics


def test_equal_clocks_agree(tunebatch: Any) -> None:
    done = tunebatch("doctor", "--check-clock", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert [run["clock"] for run in told["runs"]] == ["replay", "wall", "replay"]
    assert told["agree"] and set(told["wall_over_replay"].values()) == {0.0}
    assert told["wall_over_replay"].keys() == {"p50_ttft", "p90_ttft", "p50_tpot", "p90_tpot"}
    assert told["requests"] >= 0.99 * told["rate_per_s"] * told["seconds"]
    printed = tunebatch("doctor", "--check-clock").out.splitlines()
    assert [line.split()[0] for line in printed[1:5]] == ["clock", "replay", "wall", "replay"]
    assert printed[-1] == "the clocks agree: they differ by up to 0 %, two replays by up to 0 %"


def slower(metrics: Metrics, factor: float) -> Metrics:
    """With all percentiles of the TTFT so many times as long."""
    told = {
        name: dataclasses.replace(found, value_s=factor * found.value_s)
        for name in ("p50", "p90")
        if (found := getattr(metrics.ttft, name)).value_s is not None
    }
    return dataclasses.replace(metrics, ttft=dataclasses.replace(metrics.ttft, **told))


@pytest.mark.parametrize(
    ("wall", "again", "agree"), [(1.5, 1.0, False), (1.08, 1.0, True), (1.5, 1.3, True), (1.0, 1.5, True)]
)
def test_a_clock_that_is_late_by_more_than_noise_is_told(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch, wall: float, again: float, agree: bool
) -> None:
    whole, factors = Session.measure, iter((1.0, 1.0, wall, again))  # the glimpse comes first

    def measure(self: Session, *args: Any, **rest: Any) -> Any:
        result = whole(self, *args, **rest)
        return dataclasses.replace(result, metrics=slower(result.metrics, next(factors)))

    monkeypatch.setattr(Session, "measure", measure)
    done = tunebatch("doctor", "--check-clock")
    assert done.code == (0 if agree else 7), done.out
    verdict = done.out.splitlines()[-1]
    if agree:
        assert verdict.startswith("the clocks agree: they differ by up to ")
    else:
        assert verdict.startswith("the clocks do not agree on p50_ttft, p90_ttft: they differ by up to 50 %")
        assert verdict.endswith("measure with run --clock wall")
