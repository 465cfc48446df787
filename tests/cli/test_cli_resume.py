"""A sweep goes on as it was begun: in its own folder, with its own settings, from anywhere."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_fake import FakeExecutor

from tunebatch.tune.journal_file import only_writer

QUICK = ["--objective", "throughput", "--slo", "p90_ttft<=1min", "--trials", "2"]


def kept(folder: str) -> Any:
    return json.loads(Path(folder, "command.json").read_text())


def test_a_refused_resume_leaves_the_call_as_it_was_and_loads_nothing(
    tunebatch: Any, fake_model: list[str]
) -> None:
    assert tunebatch("sweep", "-p", "smoke", *QUICK, "-o", "here").code == 0
    before = Path("here/command.json").read_bytes()
    fake_model.clear()
    for changed, name in (
        (["--seed", "9"], "seed = 0, not 9"),
        (["--slo", "p90_ttft<=2min"], "slo = ['p90_ttft<=60s'], not ['p90_ttft<=120s']"),
        (["--strategy", "sequential"], "strategies = ['static', 'continuous'], not ['sequential']"),
        (["--objective", "capacity"], "objective = 'throughput', not 'capacity'"),
        (["--model", "llama-32m"], "model = 'bundled', not 'llama-32m'"),
        (["--requests", "99"], "[workload] requests = 160, not 99"),
        (["--workload", "chat"], "[workload] name = 'quickstart', not 'chat'"),
    ):
        done = tunebatch("sweep", "--resume", "here", *changed)
        assert done.code == 2 and f"here holds a sweep with {name}; " in done.err, done.err
        assert Path("here/command.json").read_bytes() == before and fake_model == []
    assert tunebatch("sweep", "--resume", "here", "--trials", "3").code == 0
    assert kept("here")["flags"]["search"]["trials"] == 3


def test_a_sweep_that_another_process_goes_on_with_is_refused_before_anything_is_loaded(
    tunebatch: Any, fake_model: list[str]
) -> None:
    assert tunebatch("sweep", "-p", "smoke", *QUICK, "-o", "here").code == 0
    fake_model.clear()
    with only_writer(Path("here")):
        done = tunebatch("sweep", "--resume", "here", "--trials", "3")
    assert done.code == 2 and fake_model == [] and kept("here")["flags"]["search"]["trials"] == 2
    assert done.err == (
        "error: here: another sweep is at work there; wait for it, or choose another folder\n"
    )
    assert tunebatch("sweep", "--resume", "here", "--trials", "3").code == 0


@pytest.mark.parametrize("beside", [True, False])
def test_a_model_that_a_profile_names_is_found_from_anywhere(
    tunebatch: Any, fake_model: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, beside: bool
) -> None:
    loader = sys.modules["tunebatch.execute.torch.load"]  # the fake one
    monkeypatch.setattr(loader, "load_executor", _that_takes_any(fake_model))
    for folder in ("profiles", "elsewhere", "profiles/model" if beside else "model"):
        Path(folder).mkdir()
    Path("profiles/mine.toml").write_text(
        '[model]\nname = "model"\n[workload]\nname = "quickstart"\n[search]\nstrategies = ["static"]\n'
    )
    done = tunebatch("sweep", "-p", "profiles/mine.toml", *QUICK, "-o", "here")
    assert done.code == 0, done.err
    monkeypatch.chdir("elsewhere")
    assert tunebatch("sweep", "--resume", "../here").code == 0
    assert set(fake_model) == {
        f"load {tmp_path.resolve() / ('profiles/model' if beside else 'model')}",
        "same tokens",
    }


def _that_takes_any(calls: list[str]) -> Any:
    def load(model: str, **_: Any) -> FakeExecutor:
        calls.append(f"load {model}")
        return FakeExecutor()

    return load


def test_settings_of_the_environment_are_kept_and_given_anew(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEBATCH_DEVICE_MAX_SLOTS", "4")
    monkeypatch.setenv("TUNEBATCH_DEBUG", "")
    first = tunebatch("sweep", "-p", "smoke", *QUICK, "-o", "here")
    assert first.code == 0, first.err
    assert kept("here")["environment"] == {"TUNEBATCH_DEVICE_MAX_SLOTS": "4"}
    assert "next: tunebatch run" in first.err
    monkeypatch.delenv("TUNEBATCH_DEVICE_MAX_SLOTS")
    again = tunebatch("sweep", "--resume", "here")
    assert again.code == 0, again.err
    (line,) = [line for line in again.err.splitlines() if line.startswith("next: ")]
    settings, command, *_ = shlex.split(line.removeprefix("next: "))
    assert (settings, command) == ("TUNEBATCH_DEVICE_MAX_SLOTS=4", "tunebatch")
    monkeypatch.setenv("TUNEBATCH_SEARCH_TRIALS", "3")
    assert tunebatch("sweep", "--resume", "here").code == 0
    assert kept("here")["environment"].keys() == {"TUNEBATCH_DEVICE_MAX_SLOTS", "TUNEBATCH_SEARCH_TRIALS"}
    monkeypatch.setenv("TUNEBATCH_DEVICE_MAX_SLOTS", "8")
    assert "max_slots = 4, not 8" in tunebatch("sweep", "--resume", "here").err


def test_a_sweep_of_an_older_version_goes_on(tunebatch: Any) -> None:
    assert tunebatch("sweep", "-p", "smoke", *QUICK, "-o", "here").code == 0
    old = kept("here")
    del old["environment"]
    Path("here/command.json").write_text(json.dumps(old))
    assert tunebatch("sweep", "--resume", "here").code == 0


def test_a_run_has_as_many_places_as_there_are_slots(tunebatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEBATCH_DEVICE_MAX_SLOTS", "8")
    done = tunebatch("run", "static", "-o", "here")
    assert done.code == 0, done.err
    assert "max_batch_size 8 instead of the default, as there are 8 batch slots" in done.err
    assert json.loads(Path("here/result.json").read_text())["tunebatch"]["knobs"]["max_batch_size"] == 8
    done = tunebatch("run", "static", "--set", "max_batch_size=9", "-o", "there")
    assert done.code == 2 and "there are 8 batch slots" in done.err
    assert "instead" not in tunebatch("run", "static", "--set", "max_batch_size=8", "-o", "there").err


def test_ranges_and_the_sampler_belong_to_the_question(tunebatch: Any) -> None:
    chosen = ["--knob", "max_batch_size=3-5", "--knob", "max_batched_tokens=512", "--sampler", "random"]
    done = tunebatch("sweep", "-p", "smoke", *QUICK, "--trials", "5", *chosen, "-o", "here")
    assert done.code == 0, done.err
    for line in ("knob max_batch_size: 3-5", "knob max_batched_tokens: 512 only", "sampler: random"):
        assert line in done.err
    told = json.loads(Path("here/sweep.json").read_text())
    assert told["knob_ranges"] == {"max_batch_size": [3, 5], "max_batched_tokens": [512, 512]}
    assert told["sampler"] == "random"
    tried = [trial["knobs"] for trial in told["trials"]]
    assert {knobs["max_batched_tokens"] for knobs in tried} == {512}
    assert len(tried) > 2 and {knobs["max_batch_size"] for knobs in tried} <= {3, 4, 5}
    assert tunebatch("sweep", "--resume", "here", "--trials", "6").code == 0
    for changed in (["--knob", "max_batch_size=3-6"], ["--sampler", "tpe"]):
        done = tunebatch("sweep", "--resume", "here", *changed)
        assert done.code == 2 and "here holds a sweep with " in done.err


def test_a_dry_run_tells_the_ranges_and_the_sampler(tunebatch: Any) -> None:
    done = tunebatch("sweep", "-p", "smoke", "--dry-run", "--knob", "max_batch_size=3", "--sampler", "tpe")
    assert done.code == 0, done.err
    assert "knob max_batch_size: 3 only" in done.out and "sampler: tpe" in done.out
