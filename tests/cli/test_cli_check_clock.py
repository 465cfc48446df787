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
    assert [run["clock"] for run in told["runs"]] == ["replay", "wall", "wall", "replay"]
    assert told["agree"] and set(told["wall_over_replay"].values()) == {0.0}
    assert told["wall_over_replay"].keys() == {"p50_ttft", "p90_ttft", "p50_tpot", "p90_tpot"}
    assert told["requests"] >= 0.99 * told["rate_per_s"] * told["seconds"]
    printed = tunebatch("doctor", "--check-clock").out.splitlines()
    assert [line.split()[0] for line in printed[1:6]] == ["clock", "replay", "wall", "wall", "replay"]
    assert printed[-1] == "the clocks agree: they differ by up to 0 %, two runs on one by up to 0 %"


def slower(metrics: Metrics, metric: str, factor: float) -> Metrics:
    """With all percentiles of a metric so many times as long."""
    distribution = getattr(metrics, metric)
    told = {
        name: dataclasses.replace(found, value_s=factor * found.value_s)
        for name in ("p50", "p90")
        if (found := getattr(distribution, name)).value_s is not None
    }
    return dataclasses.replace(metrics, **{metric: dataclasses.replace(distribution, **told)})


@pytest.mark.parametrize(
    ("metric", "walls", "again", "apart"),
    [
        ("ttft", (1.5, 1.5), 1.0, "p50_ttft, p90_ttft"),
        ("ttft", (1.5, 1.5), 1.3, ""),
        ("ttft", (1.0, 1.0), 1.5, ""),
        ("ttft", (1.0, 1.5), 1.0, ""),
        ("tpot", (1.02, 1.02), 1.0, ""),
        ("tpot", (1.06, 1.06), 1.0, "p50_tpot"),
        ("tpot", (0.5, 0.5), 1.0, "p50_tpot, p90_tpot"),
    ],
)
def test_a_clock_that_is_off_by_more_than_noise_is_told(
    tunebatch: Any,
    monkeypatch: pytest.MonkeyPatch,
    metric: str,
    walls: tuple[float, float],
    again: float,
    apart: str,
) -> None:
    whole, factors = Session.measure, iter((1.0, 1.0, *walls, again))  # the glimpse comes first

    def measure(self: Session, *args: Any, **rest: Any) -> Any:
        result = whole(self, *args, **rest)
        return dataclasses.replace(result, metrics=slower(result.metrics, metric, next(factors)))

    monkeypatch.setattr(Session, "measure", measure)
    done = tunebatch("doctor", "--check-clock")
    assert done.code == (7 if apart else 0), done.out
    verdict = done.out.splitlines()[-1]
    if apart:
        assert verdict.startswith(f"the clocks do not agree on {apart}: they differ by up to ")
        assert verdict.endswith("measure with run --clock wall")
    else:
        assert verdict.startswith("the clocks agree: they differ by up to ")


def test_waking_up_may_delay_a_first_token_by_two_milliseconds(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, factors = Session.measure, iter((1.0, 1e-3, 1.5e-3, 1.5e-3, 1e-3))

    def measure(self: Session, *args: Any, **rest: Any) -> Any:
        result = whole(self, *args, **rest)
        return dataclasses.replace(result, metrics=slower(result.metrics, "ttft", next(factors)))

    monkeypatch.setattr(Session, "measure", measure)
    assert tunebatch("doctor", "--check-clock").code == 0
