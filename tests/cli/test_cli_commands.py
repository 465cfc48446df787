"""The commands on a fake model in virtual time."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from cli_fake import FakeExecutor

from tunebatch.cli import dry_run
from tunebatch.cli.main import run_command
from tunebatch.cli.session import Session
from tunebatch.engine.strategies import STRATEGIES
from tunebatch.measure import environment, result

# A run per configuration, which any machine calls good enough.
QUICK_SWEEP = [
    "sweep",
    "-p",
    "smoke",
    "--objective",
    "throughput",
    "--slo",
    "p90_ttft<=1min",
    "--trials",
    "2",
]


def test_run_shows_and_keeps_one_result(tunebatch: Any) -> None:
    done = tunebatch("run", "static", "--set", "max_batch_size=8", "-o", "here")
    assert done.code == 0, done.err
    assert "static" in done.out and "batch 8" in done.out and "batch slots over time" in done.out
    assert sorted(os.listdir("here")) == ["requests.csv", "result.json", "steps.csv"]
    p50 = json.loads(Path("here/result.json").read_text())["tunebatch"]["metrics"]["ttft"]["p50"]
    assert p50["lower_s"] <= p50["value_s"] <= p50["upper_s"]
    assert json.loads(Path("here/result.json").read_text())["tunebatch"]["conditions"] == {
        "clock": "virtual",
        "warmup": "none",
        "window": "first arrival to last token",
        "window_s": pytest.approx(json.loads(Path("here/result.json").read_text())["duration"]),
        "seed": 0,
        "hit_rate": None,
        "synthetic_acceptance": False,
        "overlap": False,
        "saved_prefill_tokens": None,
    }
    (line,) = [line for line in done.out.splitlines() if line.startswith("measured: ")]
    assert line.startswith("measured: virtual clock; warm-up, in no percentile: none; window ")
    assert line.endswith("first arrival to last token; seed 0; no prefix cache")
    assert "latency" in done.out and "95 % intervals" in done.out
    assert "same tokens: 5 requests" in done.err and "next: tunebatch" in done.err


def test_a_static_batch_may_be_of_alike_lengths(tunebatch: Any) -> None:
    steps = {}
    for sort in ("0", "1"):
        done = tunebatch(
            "run", "static", "-s", "max_batch_size=8", "-s", f"sort_by_length={sort}", "-o", sort
        )
        assert done.code == 0 and ("sorted" in done.out) is (sort == "1"), done
        kept = json.loads(Path(sort, "result.json").read_text())["tunebatch"]
        assert kept["knobs"]["sort_by_length"] == int(sort)
        steps[sort] = kept["metrics"]["num_steps"]
    assert steps["1"] < steps["0"]


def test_json_is_all_of_stdout_and_stderr_is_silent(tunebatch: Any) -> None:
    done = tunebatch("run", "--json", "-o", "here")
    assert json.loads(done.out)["tunebatch"]["strategy"] == "continuous"
    assert done.err == ""


def test_quiet_leaves_the_answer(tunebatch: Any) -> None:
    done = tunebatch("compare", "--strategy", "static", "-q", "-o", "here")
    assert done.err == "" and "static" in done.out and "over time" not in done.out


def test_no_color_gives_no_escape_sequences(tunebatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    done = tunebatch("run", "-o", "here")
    assert "\x1b[3" not in done.out


def test_the_default_folder_is_under_results(tunebatch: Any) -> None:
    for _ in range(2):
        assert tunebatch("run").code == 0
    assert len(list(Path("results").glob("run-*/result.json"))) == 2


def test_a_rate_is_offered_and_goodput_compared(tunebatch: Any) -> None:
    done = tunebatch("compare", "--strategy", "all", "--rate", "5", "-o", "here")
    assert done.code == 0, done.err
    assert "goodput req/s" in done.out
    assert "times: virtual clock (predicted, not measured)" in done.out
    assert "the first 10 % of a run's requests are warm-up, in no percentile" in " ".join(done.out.split())
    assert sorted(os.listdir("here")) == sorted(STRATEGIES)
    kept = json.loads(Path("here/static/result.json").read_text())["tunebatch"]
    assert (kept["metrics"]["num_warmup"], kept["conditions"]["warmup"]) == (7, "first 7 of 78 requests")


def test_saved_results_side_by_side(tunebatch: Any) -> None:
    tunebatch("compare", "--strategy", "static", "--strategy", "continuous", "-o", "here")
    done = tunebatch("compare", "here/static/result.json", "here/continuous/result.json")
    assert done.code == 0, done.err
    headline, *rest = done.out.splitlines()
    assert headline.startswith("continuous B, ") and "req/s" in headline
    assert "A: here/static" in rest and "B: here/continuous" in rest
    assert "times: virtual clock (predicted, not measured); no warm-up is left out" in rest
    both = json.loads(tunebatch("compare", "here/static", "here/continuous", "--json").out)
    assert [one["tunebatch"]["strategy"] for one in both["results"]] == ["static", "continuous"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (["--seed", "5"], "another workload, seed 5, not 0"),
        (["-n", "80"], "another workload, requests 80, not 78"),
        (
            ["-n", "80", "--rate", "3"],
            "rate 3.0, not none; requests 80, not 78",
        ),
        (["-p", "mine.toml"], "same rate, seed and number of requests, but other prompts, lengths or times"),
    ],
)
def test_results_of_other_work_are_not_comparable(tunebatch: Any, changed: list[str], told: str) -> None:
    Path("mine.toml").write_text('[workload]\nname = "quickstart"\nrequests = 78\nprompt_tokens = 9\n')
    slo = ["--slo", "p90_ttft<=1s"]
    tunebatch("run", "-o", "a", *slo)
    tunebatch("run", "-o", "b", *slo, *changed)
    done = tunebatch("compare", "a", "b")
    assert done.code == 5 and done.out == "" and len(done.err.splitlines()) == 1
    assert "b is not comparable with a: another workload, " in done.err and told in done.err
    for folder in ("a", "b"):
        kept = json.loads(Path(folder, "result.json").read_text())["tunebatch"]["workload"]
        assert kept["fingerprint"] not in done.err


@pytest.mark.parametrize(
    ("part", "key", "value", "told"),
    [
        ("environment", "cores", 64, "cores 64, not "),
        ("model", "forward", "other", "forward 'other', not "),
        ("model", "attention_backend", "other", "attention backend 'other', not "),
        ("model", "device", "cuda", "device 'cuda', not "),
    ],
)
def test_results_of_another_machine_or_engine_are_not_comparable(
    tunebatch: Any, part: str, key: str, value: Any, told: str
) -> None:
    tunebatch("run", "-o", "a")
    tunebatch("run", "-o", "b")
    _changed(Path("b"), part, key, value)
    done = tunebatch("compare", "a", "b")
    assert done.code == 5 and f"b is not comparable with a: {told}" in done.err


def test_other_versions_are_compared_and_named(tunebatch: Any) -> None:
    tunebatch("run", "-o", "a")
    tunebatch("run", "-o", "b")
    _changed(Path("b"), "environment", "tunebatch", "0.0.1")
    done = tunebatch("compare", "a", "b")
    assert done.code == 0 and "B was measured with tunebatch 0.0.1, A with " in done.out


def _changed(folder: Path, part: str, key: str, value: Any) -> None:
    path = folder / "result.json"
    kept = json.loads(path.read_text())
    kept["tunebatch"][part][key] = value
    path.write_text(json.dumps(kept))


def test_results_that_differ_by_the_rate_are_compared_with_it(tunebatch: Any) -> None:
    slo = ["--slo", "p90_ttft<=1s"]
    tunebatch("run", "static", "-o", "a", *slo, "--rate", "5")
    tunebatch("run", "continuous", "-o", "b", *slo, "--rate", "12", "-n", "90")
    done = tunebatch("compare", "a", "b")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("strategy"))
    header, *rows = lines[first : first + 3]
    assert "offered req/s  goodput req/s" in header
    assert {row.split()[0]: (" 12.0 " in row, " 5.00 " in row) for row in rows} == {
        "continuous": (True, False),
        "static": (False, True),
    }
    assert "note: the same traffic offered at different rates" in done.out
    assert "offered" not in tunebatch("compare", "a", "a").out
    for changed in (["--seed", "4"], ["-w", "chat"]):
        tunebatch("run", "continuous", "-o", "c", *slo, "--rate", "12", *changed)
        assert tunebatch("compare", "a", "c").code == 5


def test_the_winners_of_two_sweeps_are_compared(tunebatch: Any) -> None:
    for name in ("sequential", "continuous"):
        call = ["-p", "smoke", "--strategy", name, "--trials", "1", "-o", name]
        assert tunebatch("sweep", *call).code == 0
    rates = {
        json.loads(Path(name, "result.json").read_text())["request_rate"]
        for name in ("sequential", "continuous")
    }
    assert len(rates) == 2
    done = tunebatch("compare", "sequential", "continuous")
    assert done.code == 0, done.err
    assert "offered req/s" in done.out


def test_a_sweep_finds_a_winner_and_resumes(tunebatch: Any) -> None:
    done = tunebatch("sweep", "-p", "smoke", "--trials", "4", "-o", "here")
    assert done.code == 0, done.err
    assert "req/s inside the SLO" in done.out.splitlines()[0]
    assert "takes no more because of" in done.out and "next: tunebatch run" in done.err
    assert "times: virtual clock" in done.out and "are warm-up, in no percentile" in done.out
    kept = json.loads(Path("here/sweep.json").read_text())
    assert kept["schema"] == "tunebatch.sweep.v1" and kept["winner"]["met"]
    assert Path("here/result.json").is_file()
    again = tunebatch("sweep", "--resume", "here", "--json")
    assert again.code == 0, again.err
    assert len(json.loads(again.out)["trials"]) == len(kept["trials"])


def test_an_slo_that_nothing_keeps_is_exit_6(tunebatch: Any) -> None:
    done = tunebatch("sweep", "-p", "smoke", "--trials", "2", "--slo", "p90_ttft<=1us", "-o", "here")
    assert done.code == 6, done.err
    assert "no configuration keeps the SLO" in done.out


def test_a_dry_run_measures_nothing(tunebatch: Any, fake_model: list[str]) -> None:
    done = tunebatch("sweep", "--dry-run")
    assert done.code == 0 and "78 requests" in done.out and "enough" in done.out
    assert "predicted: one run of the workload takes: sequential " in done.out
    assert "no configuration was measured" in done.out
    assert "same tokens" not in fake_model and not Path("results").exists()


def _plan(tunebatch: Any, monkeypatch: pytest.MonkeyPatch, rate: float, *arguments: str) -> tuple[str, Any]:
    monkeypatch.setattr(dry_run, "_predicted_rate", lambda session, chosen: rate)
    call = ["sweep", "--dry-run", "--strategy", "static", *arguments]
    return tunebatch(*call).out, json.loads(tunebatch(*call, "--json").out)


def test_a_prediction_is_of_runs_as_long_as_a_capacity_needs(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slo = ["--slo", "p90_ttft<=1s"]  # 20 s at least
    text, plan = _plan(tunebatch, monkeypatch, 50.0, *slo)
    assert plan["predicted_run_s"] == {"static": 20.0}
    assert plan["predicted_run_requests"] == {"static": 1000}
    assert "it lasts 20 s at least, which takes requests: static 1,000" in text
    text, plan = _plan(tunebatch, monkeypatch, 2.0, *slo)
    assert plan["predicted_run_requests"] == {"static": 78} and "at least" not in text
    _, plan = _plan(tunebatch, monkeypatch, 50.0, *slo, "--objective", "throughput")
    assert plan["predicted_run_requests"] == {"static": 78}


@pytest.mark.parametrize(
    ("rate", "requests", "fewer"), [(1.0, "71", False), (1.0, "100", True), (50.0, "100", False)]
)
def test_fewer_requests_are_advised_only_where_they_help_and_do(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch, rate: float, requests: str, fewer: bool
) -> None:
    slo = ["--slo", "p90_ttft<=1s", "--time", "10s"]
    text, _ = _plan(tunebatch, monkeypatch, rate, *slo, "-n", requests)
    assert "more than there is" in text and ("fewer --requests" in text) is fewer


def test_the_shipped_profiles_have_the_time_that_they_ask_for(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for profile, rates in (("quickstart", (5.4, 48.0)), ("chat-p99", (2.9, 12.9))):
        found = chain(rates[:1], repeat(rates[1]))  # as on two CPU cores
        monkeypatch.setattr(dry_run, "_predicted_rate", lambda *_, found=found: next(found))
        done = tunebatch("sweep", "--dry-run", "-p", profile)
        assert "the defaults and the confirmation take about" in done.out, done.err
        assert "more than there is" not in done.out


@pytest.mark.parametrize(
    ("flags", "arrivals"),
    [
        ([], "64 requests, all at once, "),
        (["--rate", "30"], "64 requests, Poisson at 30 req/s, "),
    ],
)
def test_the_traffic_is_told_as_it_is_served(tunebatch: Any, flags: list[str], arrivals: str) -> None:
    for command in (["run"], ["compare", "--strategy", "static"]):
        done = tunebatch(*command, "--requests", "64", *flags)
        told = next(line for line in done.err.splitlines() if line.startswith("workload: "))
        assert arrivals in told, told


def test_ctrl_c_is_130(tunebatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "measure_as_asked", interrupt)
    done = tunebatch("run")
    assert done.code == 130 and "interrupted" in done.err and "Traceback" not in done.err


def test_a_full_disk_and_an_unexpected_error_are_one_line(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, unexpected = OSError(errno.ENOSPC, "x", "f"), KeyError("k")
    for error, code, told in ((full, 7, "disk is full"), (unexpected, 1, "internal error")):

        def fail(*args: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(Session, "measure_as_asked", fail)
        done = tunebatch("run", "-q")
        assert done.code == code and told in done.err and len(done.err.splitlines()) == 1
    monkeypatch.setenv("TUNEBATCH_DEBUG", "1")
    assert "Traceback" in tunebatch("run", "-q").err


def test_other_tokens_are_no_valid_result(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch, fake_model: list[str]
) -> None:
    from tunebatch.execute.torch.same_tokens import check_same_tokens  # the fake one

    kind = type("TokenMismatchError", (RuntimeError,), {"__module__": check_same_tokens.__module__})

    def differ(*_: Any) -> None:
        raise kind("strategy static, request 3: output token 5 is 7, not 8")

    monkeypatch.setattr(sys.modules["tunebatch.execute.torch.same_tokens"], "check_same_tokens", differ)
    for command in ("run", "compare", "sweep"):
        done = tunebatch(command, "-o", "here")
        assert done.code == 7 and done.out == "" and not Path("here").exists()
        (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert "output token 5 is 7, not 8; nothing was measured" in line


def test_a_sweep_goes_on_in_its_own_folder_only_when_told_to(tunebatch: Any) -> None:
    assert tunebatch(*QUICK_SWEEP, "-o", "here").code == 0
    done = tunebatch(*QUICK_SWEEP, "-o", "here")
    assert done.code == 2 and "--resume here" in done.err


def test_the_next_command_asks_the_same_question(tunebatch: Any) -> None:
    arguments = ["-p", "smoke", "--trials", "2", "--seed", "3", "--slo", "p90_ttft<=300ms", "-o", "here"]
    done = tunebatch("sweep", *arguments)
    assert done.code == 0, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("next: ")]
    words = shlex.split(line.removeprefix("next: tunebatch "))
    assert words[0] == "run" and "--rate" in words
    assert words[words.index("--profile") + 1] == "smoke"
    assert words[words.index("--seed") + 1] == "3"
    assert words[words.index("--slo") + 1] == "p90_ttft<=300ms"
    assert tunebatch(*words, "-o", "again").code == 0


def test_ctrl_c_before_anything_was_measured(tunebatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **rest: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "measure", interrupt)
    done = tunebatch("sweep", "-p", "smoke", "-o", "here")
    assert done.code == 130 and done.out == ""
    assert "interrupted before one configuration was measured" in done.err and "--resume here" in done.err
    assert "at least" not in done.err


def test_ctrl_c_within_the_first_configuration_tells_the_rate_that_it_kept(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, rates = Session.measure, []

    def interrupted(self: Session, chosen: Any, rate: float | None, *given: Any, **named: Any) -> Any:
        rates.append(rate)
        if len(rates) > 2:
            raise KeyboardInterrupt
        return measure(self, chosen, rate, *given, **named)

    monkeypatch.setattr(Session, "measure", interrupted)
    done = tunebatch("sweep", "-p", "smoke", "--strategy", "continuous", "--start-rate", "2", "-o", "here")
    assert done.code == 130, done.err
    assert rates[0] == 2.0 < rates[1]
    told = f"; at least {rates[1]:.2f} req/s inside the SLO with continuous, max_batch_size 32, "
    assert "interrupted before one configuration was measured" + told in done.err


def test_ctrl_c_in_a_comparison_shows_what_there_is(tunebatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = Session.measure_as_asked, []

    def second_time(self: Session, chosen: Any, rate: float | None) -> Any:
        calls.append(chosen.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, chosen, rate)

    monkeypatch.setattr(Session, "measure_as_asked", second_time)
    done = tunebatch("compare", "--strategy", "static", "--strategy", "continuous", "-o", "here")
    assert done.code == 130 and "interrupted" in done.err
    assert "static" in done.out and "continuous" not in done.out
    assert os.listdir("here") == ["static"]


@pytest.mark.parametrize("command", [["run"], ["compare"], ["sweep", "-p", "smoke"]])
def test_a_place_that_cannot_be_written_is_told_before_loading(
    tunebatch: Any, fake_model: list[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    Path("file").write_text("")
    for out in ("file/there", "file"):
        done = tunebatch(*command, "-o", out)
        assert done.code == 2 and done.err.startswith(f"error: --out {out}: ") and "not a folder" in done.err
    done = tunebatch(*command, "-o", f"new/{'x' * 300}")
    assert done.code == 2 and "new is not writable (file name too long)" in done.err
    for out in ("/proc/there", "/proc/there/deeper"):
        if Path("/proc/self").exists():  # where not even root makes a folder
            done = tunebatch(*command, "-o", out)
            assert done.code == 2 and f"error: --out {out}: /proc is not writable (no such" in done.err

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    Path("old").mkdir()
    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    done = tunebatch(*command, "-o", "old")
    assert done.code == 2 and done.err == "error: --out old: old is not writable (permission denied)\n"
    assert tunebatch(*command, "-o", "new/there").code == 2
    assert fake_model == [] and Path("old").exists() and not Path("new").exists()


@pytest.mark.parametrize("command", [["run"], ["compare", "--strategy", "all"], QUICK_SWEEP])
def test_what_cannot_be_written_is_shown_all_the_same(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    kept = result.write_result

    def full(what: Any, directory: Any) -> Path:
        if "runs" in Path(directory).parts:
            return kept(what, directory)
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise result.ResultError("could not write it") from error

    monkeypatch.setattr(result, "write_result", full)
    done = tunebatch(*command, "-o", "here")
    assert done.code == 7 and "the disk is full" in done.err
    assert "p90 TTFT" in done.out


@pytest.mark.parametrize("command", [["run"], ["compare"], QUICK_SWEEP])
def test_a_reader_that_closes_the_pipe_costs_no_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        assert run_command([*command, "-o", "here"]) == 0
    assert "error" not in capsys.readouterr().err
    assert list(Path("here").rglob("result.json"))


def test_saved_results_are_told_apart_by_their_folders(tunebatch: Any) -> None:
    tunebatch("run", "static", "-o", "before")
    tunebatch("run", "static", "-o", "after")
    done = tunebatch("compare", "before", "after/result.json")
    assert done.code == 0, done.err
    assert "static A" in done.out and "static B" in done.out
    assert {"A: before", "B: after"} <= set(done.out.splitlines())


def test_few_slots_are_what_a_sweep_and_a_comparison_are_told_with(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEBATCH_DEVICE_MAX_SLOTS", "4")
    done = tunebatch(*QUICK_SWEEP, "-o", "swept")
    assert done.code == 0, done.err
    trials = json.loads(Path("swept/sweep.json").read_text())["trials"]
    assert max(trial["knobs"]["max_batch_size"] for trial in trials) == 4
    done = tunebatch("compare", "--strategy", "static", "--strategy", "sequential", "-o", "compared")
    assert done.code == 0, done.err
    assert "batch 4," in done.out
    assert "max_batch_size 4 instead of the default, as there are 4 batch slots" in done.err
    done = tunebatch("compare", "--strategy", "sequential", "-o", "alone")
    assert "instead of the default" not in done.err


def test_a_profiles_slo_is_not_for_work_that_comes_all_at_once(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = [
        "sweep",
        "-w",
        "offline",
        "--objective",
        "throughput",
        "--strategy",
        "continuous",
        "--trials",
        "1",
    ]
    told = "the SLO of profile quickstart is left out"
    done = tunebatch(*call, "-o", "a")
    assert done.code == 0, done.err
    assert told in done.err and json.loads(Path("a/sweep.json").read_text())["slo"] == []
    assert tunebatch("sweep", "--resume", "a").code == 0
    done = tunebatch(*call, "--slo", "p90_ttft<=1ms", "-o", "b")
    assert done.code == 6 and told not in done.err
    assert done.out.splitlines()[0] == "no configuration keeps the SLO"
    monkeypatch.setenv("TUNEBATCH_SLO_P90_TTFT", "1ms")
    assert tunebatch(*call, "-o", "c").code == 6


def _with_model(fact: str) -> Callable[[pytest.MonkeyPatch], None]:
    whole = FakeExecutor.__init__

    def init(self: FakeExecutor) -> None:
        whole(self)
        self.model_info[fact] = "another"

    return lambda patch: patch.setattr(FakeExecutor, "__init__", init)


def _with_machine(fact: str) -> Callable[[pytest.MonkeyPatch], None]:
    facts = {**environment.environment(), fact: "another"}
    return lambda patch: patch.setattr(environment, "environment", lambda: facts)


def _with_device(fact: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setenv(f"TUNEBATCH_DEVICE_{fact.upper()}", "32")


OTHERWISE = {
    **{name: _with_model(name) for name in ("dtype", "device", "attention_backend", "forward")},
    **{name: _with_machine(name) for name in ("torch", "cpu", "gpu")},
    **{name: _with_device(name) for name in ("block_size", "num_blocks", "max_slots")},
}


def test_a_sweep_does_not_go_on_under_other_conditions(tunebatch: Any) -> None:
    assert tunebatch(*QUICK_SWEEP, "-o", "here").code == 0
    for name, changed in OTHERWISE.items():
        with pytest.MonkeyPatch.context() as patch:
            changed(patch)
            done = tunebatch("sweep", "--resume", "here")
        assert done.code == 2, name
        (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert f"here holds a sweep with {name} = " in line
    assert tunebatch("sweep", "--resume", "here").code == 0


def test_a_sweep_goes_on_from_another_working_folder(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("mine.toml").write_text('[search]\nstrategies = ["static"]\ntrials = 1\nconfirm = 1\n')
    rows = [f'{{"arrival_s": {n}, "prompt_tokens": 9, "output_tokens": 4}}' for n in range(80)]
    Path("t.jsonl").write_text("\n".join(rows) + "\n")
    arguments = ["-p", "mine.toml", "--trace-file", "t.jsonl", "--slo", "p90_ttft<=1min"]
    done = tunebatch("sweep", *arguments, "-o", "here")
    assert done.code == 0, done.err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for profile in ([], ["-p", "../mine.toml"]):
        again = tunebatch("sweep", "--resume", "../here", *profile, "--json")
        assert again.code == 0, again.err
        assert len(json.loads(again.out)["trials"]) == 1


def test_a_sweep_of_a_model_in_a_folder_knows_it_from_anywhere(
    tunebatch: Any, fake_model: list[str], tmp_path: Path
) -> None:
    Path("model").mkdir()
    tunebatch("sweep", "-m", "./model")
    tunebatch("sweep", "-m", "owner/name")
    assert fake_model == [f"load {tmp_path.resolve() / 'model'}", "load owner/name"]


@pytest.mark.parametrize("profile", ["quickstart", "chat-p99", "mine.toml"])
def test_a_sweep_does_not_go_on_with_another_profile(tunebatch: Any, profile: str) -> None:
    assert tunebatch(*QUICK_SWEEP, "-o", "here").code == 0
    Path("mine.toml").write_text("")
    done = tunebatch("sweep", "--resume", "here", "--profile", profile)
    assert done.code == 2 and done.out == ""
    assert "was begun with --profile smoke; leave out --profile " + profile in done.err
    assert tunebatch("sweep", "--resume", "here", "--profile", "smoke", "-q").code == 0


def test_an_automatic_knob_is_set_shown_and_kept_by_name(tunebatch: Any) -> None:
    done = tunebatch("run", "mixed", "--set", "chunk_size=AUTO", "-o", "here")
    assert done.code == 0 and "chunk auto" in done.out
    kept = json.loads(Path("here/result.json").read_text())["tunebatch"]
    assert kept["knobs"] == {"max_batch_size": 32, "chunk_size": "auto", "max_partial_prefills": 2}
    assert tunebatch("compare", "here", "here").code == 0
    refused = tunebatch("run", "continuous", "--set", "max_batch_size=auto")
    assert refused.code == 2 and "max_batch_size = 'auto': must be a finite number" in refused.err


def test_presets_are_compared_under_their_own_names_and_say_what_they_are(tunebatch: Any) -> None:
    done = tunebatch("compare", "--strategy", "sarathi", "--strategy", "vllm-v0", "-o", "here")
    assert done.code == 0
    assert "sarathi = mixed, max_batch_size 128, chunk_size 512" in done.err
    assert "vllm-v0 = continuous" in done.err and "differs: " in done.err
    assert [Path(f"here/{name}/result.json").is_file() for name in ("sarathi", "vllm-v0")] == [True, True]
    rows = [line.split()[0] for line in done.out.splitlines() if line.startswith(("sarathi ", "vllm-v0 "))]
    assert {"sarathi", "vllm-v0"} <= set(rows)


def test_a_preset_runs_with_as_many_slots_as_there_are(tunebatch: Any) -> None:
    done = tunebatch("run", "splitfuse", "-o", "here")
    assert (
        done.code == 0 and "max_batch_size 64 instead of the default, as there are 64 batch slots" in done.err
    )
    assert json.loads(Path("here/result.json").read_text())["tunebatch"]["knobs"]["max_batch_size"] == 64
    refused = tunebatch("run", "splitfuse", "--set", "max_batch_size=128")
    assert refused.code == 2 and "there are 64 batch slots" in refused.err
    unknown = tunebatch("run", "splitfus")
    assert unknown.code == 2 and "did you mean 'splitfuse'" in unknown.err and "lightllm" in unknown.err


def test_a_context_that_a_window_bounds_is_told(tunebatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeExecutor, "max_context", 1200)
    whole = FakeExecutor.__init__

    def bounded(self: FakeExecutor) -> None:
        whole(self)
        self.model_info["context_bound_by_window"] = [1200, 32768]

    assert "sliding window" not in tunebatch("run", "-n", "64").err
    monkeypatch.setattr(FakeExecutor, "__init__", bounded)
    told = tunebatch("run", "-n", "64").err
    assert "  served up to 1,200 of its 32,768 tokens of context: its sliding window" in told


@pytest.mark.parametrize("command", [["run", "continuous+prefix"], ["compare", "--strategy", "mixed+prefix"]])
@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_a_hit_rate_is_told_with_the_tokens_it_saved(
    tunebatch: Any, command: list[str], quiet: list[str]
) -> None:
    done = tunebatch(*command, "-w", "system-prompt", "-n", "40", "-o", "here", *quiet)
    assert done.code == 0, done
    file = next(Path("here").rglob("result.json"))
    metrics = json.loads(file.read_text())["tunebatch"]["metrics"]
    assert metrics["saved_prefill_tokens"] > 0
    told = ("strategy ", f"{command[-1]} ")
    header, row = [line for line in done.out.splitlines() if line.startswith(told)][:2]
    assert header.endswith(" hit  saved tokens")
    share, _, saved = row.split()[-3:]
    assert (share, saved) == (f"{100 * metrics['hit_rate']:.0f}", f"{metrics['saved_prefill_tokens']:,}")


@pytest.mark.parametrize("several", [["static, mixed+prefix"], ["static", "mixed+prefix"]])
def test_strategies_are_several_with_commas_or_by_repetition(tunebatch: Any, several: list[str]) -> None:
    flags = [word for text in several for word in ("--strategy", text)]
    done = tunebatch("compare", *flags, "-o", "here")
    assert done.code == 0, done.err
    assert {path.parent.name for path in Path("here").rglob("result.json")} == {"static", "mixed+prefix"}
    planned = tunebatch("sweep", *flags, "--dry-run", "--json")
    assert planned.code == 0 and json.loads(planned.out)["strategies"] == ["static", "mixed+prefix"]
