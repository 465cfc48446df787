"""Overlap of host and device at the command line: switched by a flag or the profile, told with the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_fake import FakeExecutor

from tunebatch.engine.plan import StepOutput, StepPlan


class Device(FakeExecutor):
    """Counts the steps that were submitted while another was in flight."""

    overlaps = True
    in_flight = overlapped = 0

    def submit(self, plan: StepPlan) -> StepOutput:
        self.overlapped += self.in_flight
        self.in_flight += 1
        return super().execute(plan)

    def collect(self, handle: StepOutput) -> StepOutput:
        self.in_flight -= 1
        return handle


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(sys.modules["tunebatch.execute.torch.load"], "load_executor", lambda *_, **__: made)
    return made


def told(folder: str) -> bool:
    return json.loads((Path(folder) / "result.json").read_text())["tunebatch"]["conditions"]["overlap"]


def test_a_device_of_its_own_overlaps_and_the_run_says_so(tunebatch: Any, device: Device) -> None:
    done = tunebatch("run", "continuous", "-o", "here")
    assert done.code == 0 and device.overlapped > 0
    assert told("here") and "host and device overlap" in done.out


def test_the_flag_and_the_profile_switch_it_off(tunebatch: Any, device: Device) -> None:
    done = tunebatch("run", "continuous", "-o", "a", "--no-overlap")
    assert done.code == 0 and device.overlapped == 0
    assert not told("a") and "overlap" not in done.out
    Path("mine.toml").write_text('[workload]\nname = "quickstart"\n[device]\noverlap = false\n')
    assert tunebatch("run", "continuous", "-p", "mine.toml", "-o", "b").code == 0
    assert not told("b") and device.overlapped == 0
