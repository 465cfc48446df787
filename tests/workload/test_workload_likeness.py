"""The same traffic at another rate, or for longer, is told from other traffic."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tunebatch.workload.lengths import Uniform
from tunebatch.workload.likeness import likeness
from tunebatch.workload.prompts import RandomPrompts
from tunebatch.workload.spec import Workload, WorkloadSpec, build

SPEC = WorkloadSpec(
    name="drawn",
    rate_per_s=3.0,
    prompt_lengths=Uniform(4, 40),
    output_lengths=Uniform(2, 20),
    num_requests=40,
)


def made(**changes: Any) -> Workload:
    return build(dataclasses.replace(SPEC, **changes), RandomPrompts(100), 512)


@pytest.mark.parametrize("rate", [0.37, 3.0, 1234.5])
@pytest.mark.parametrize("count", [32, 40, 500])
def test_faster_and_longer_traffic_is_alike(rate: float, count: int) -> None:
    assert likeness(made(num_requests=count).at_rate(rate).requests) == likeness(made().requests)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"arrivals": "constant"},
        {"arrivals": "gamma", "burstiness": 0.5},
        {"output_lengths": Uniform(2, 21)},
        {"prompt_lengths": Uniform(4, 41)},
        {"ignore_eos": False},
        {"num_requests": 31},
    ],
)
def test_other_traffic_is_not(changes: dict[str, Any]) -> None:
    assert likeness(made(**changes).requests) != likeness(made().requests)


def test_clients_that_hang_up_at_other_times_are_other_traffic() -> None:
    requests = made().requests
    hasty = [dataclasses.replace(one, cancel_at_s=one.arrival_s + 1.0) for one in requests]
    assert likeness(hasty) != likeness(requests) and likeness([]) != likeness(requests)
