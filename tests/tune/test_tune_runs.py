"""Runs that others disturbed are measured once more, and the quieter one counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tune_fake import result

from tunebatch.engine.strategies import Strategy, strategy
from tunebatch.measure.result import RunResult
from tunebatch.tune.capacity import is_sustained
from tunebatch.tune.runs import Runs

STATIC = strategy("static")


class Machine:
    """Measures with the foreign loads given, one after the other; a loaded one is too slow for the rate."""

    def __init__(self, *shares: float) -> None:
        self.shares = list(shares)
        self.calls = 0

    def __call__(self, chosen: Strategy, rate: float | None, seed: int, **_: Any) -> RunResult:
        share = self.shares[self.calls]
        self.calls += 1
        found = result(chosen, rate, seed, saturated=4.0 if share > 0.1 else 10.0)
        return dataclasses.replace(found, environment={**found.environment, "foreign_cpu_share": share})


def test_a_miss_while_others_computed_is_measured_again(tmp_path: Path) -> None:
    machine = Machine(0.3, 0.01)
    runs = Runs(machine, tmp_path)
    found = runs(STATIC, 5.0, 1, stop_early=True)
    assert is_sustained(found) and found.environment["foreign_cpu_share"] == 0.01
    assert (machine.calls, runs.num_new, runs.num_repeated) == (2, 1, 1)
    kept = runs(STATIC, 5.0, 1, stop_early=True)
    assert kept.environment["foreign_cpu_share"] == 0.01 and machine.calls == 2


@pytest.mark.parametrize("rate", [5.0, None])
def test_the_quieter_of_two_counts(tmp_path: Path, rate: float | None) -> None:
    runs = Runs(Machine(0.2, 0.4), tmp_path)
    found = runs(STATIC, rate, 1, stop_early=True)
    assert found.environment["foreign_cpu_share"] == 0.2 and runs.foreign_cpu_share == 0.2


def test_what_passed_or_was_quiet_is_not_repeated(tmp_path: Path) -> None:
    machine = Machine(0.3, 0.05)
    runs = Runs(machine, tmp_path)
    assert is_sustained(runs(STATIC, 1.0, 1))  # slow as the machine was
    assert not is_sustained(runs(STATIC, 50.0, 1))
    assert runs.num_repeated == 0


def test_a_machine_that_is_never_quiet_is_taken_as_it_is(tmp_path: Path) -> None:
    machine = Machine(*[0.5] * 20)
    runs = Runs(machine, tmp_path)
    for seed in range(8):
        runs(STATIC, 5.0, seed)
    assert (runs.num_repeated, machine.calls) == (3, 11)
