"""What `run` says of its SLO, and with which exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

KEPT, MISSED = "p90_e2e<=10min", "p90_ttft<=1ms"


def verdicts(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("SLO ")]


@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_a_missed_slo_exits_6_and_names_every_limit(tunebatch: Any, quiet: list[str]) -> None:
    limits = ["--slo", MISSED, "--slo", "p90_tpot<=1us", "--slo", KEPT, "--slo", "mean_itl<=10min"]
    done = tunebatch("run", *limits, *quiet, "-o", "here")
    assert done.code == 6, done
    (line,) = verdicts(done.out)
    assert line.startswith("SLO missed: missed p90_ttft ") and " of 1ms, p90_tpot " in line
    assert " of 1us; " in line and "kept p90_e2e " in line and "mean_itl" in line


def test_a_kept_slo_exits_0(tunebatch: Any) -> None:
    done = tunebatch("run", "--slo", KEPT, "-q", "-o", "here")
    assert done.code == 0
    (line,) = verdicts(done.out)
    assert line.startswith("SLO kept: kept p90_e2e ")


def test_an_slo_that_too_few_samples_tell_exits_7(tunebatch: Any) -> None:
    """What requests there are is known before, but not how many of them have a second token."""
    short = '[workload]\nprompt_tokens = 9\noutput_tokens = "uniform:1-2"\nrequests = 80\n'
    Path("mine.toml").write_text(f"{short}arrivals = 'burst'\n")
    call = ["run", "-p", "mine.toml", "--slo", "p90_tpot<=10min"]
    done = tunebatch(*call, "--slo", "p50_e2e<=10min", "-o", "here")
    assert done.code == 7, done
    (line,) = verdicts(done.out)
    assert (
        line.startswith("SLO not told: not told p90_tpot n/a (") and " of 64) of 600s; kept p50_e2e " in line
    )
    done = tunebatch(*call, "--slo", "p50_ttft<=1ms", "-o", "there")
    assert done.code == 6 and verdicts(done.out)[0].startswith("SLO missed: missed p50_ttft ")


LENGTHS = "prompt_tokens = 9\noutput_tokens = 4\n"
CLOSED = "[workload]\narrivals = 'closed'\nconcurrency = 3\n" + LENGTHS
AT_ONCE = "[workload]\narrivals = 'burst'\n" + LENGTHS
TOO_FEW = {  # the call and the profile, with the nearest number of requests that is enough
    "at a rate": (["-n", "70", "--rate", "5", "--slo", KEPT], "", 71),
    "all at once": (["-n", "63", "--slo", KEPT], "", 64),
    "two limits": (["-n", "70", "--rate", "5", "--slo", "p95_e2e<=10min", "--slo", KEPT], "", 144),
    "a closed loop": (["--slo", KEPT], f"{CLOSED}requests = 70\n", 71),
    "one burst": (["-n", "63", "--slo", KEPT], f"{AT_ONCE}requests = 99\n", 64),
    "bursts": (["-n", "70", "--slo", KEPT], f"{AT_ONCE}burst_size = 8\nrate_per_s = 9\nrequests = 99\n", 71),
}


@pytest.mark.parametrize("case", TOO_FEW)
def test_an_slo_that_so_few_requests_cannot_tell_is_refused_before_loading(
    tunebatch: Any, fake_model: list[str], case: str
) -> None:
    arguments, profile, enough = TOO_FEW[case]
    if profile:
        Path("mine.toml").write_text(profile)
        arguments = ["-p", "mine.toml", *arguments]
    done = tunebatch("run", *arguments, "-o", "here")
    assert done.code == 2 and fake_model == [] and not Path("here").exists()
    (line,) = done.err.splitlines()
    assert f"needs at least {enough} requests to be told" in line and f"use --requests {enough} or" in line
    assert ("warm-up" in line) == (enough != 64)
    assert tunebatch("run", *arguments, "-n", str(enough), "-o", "there").code in (0, 6)


def test_a_trace_that_is_too_short_for_the_slo_is_refused_before_loading(
    tunebatch: Any, fake_model: list[str]
) -> None:
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    rows += [f"2023-11-16 18:{second // 60:02}:{second % 60:02}.0,10,5" for second in range(70)]
    Path("t.csv").write_text("\n".join(rows) + "\n")
    call = ["run", "--trace-file", "t.csv", "--slo", KEPT]
    done = tunebatch(*call, "-o", "here")
    assert done.code == 2 and fake_model == []
    told = "p90_e2e needs at least 71 requests to be told (of which the first 10 % are warm-up)"
    assert f"error: {told}, and t.csv gives 70; use a longer trace" in done.err
    at_one_time = [rows[0], *(f"2023-11-16 18:00:00.0,10,{5 + number % 9}" for number in range(64))]
    Path("t.csv").write_text("\n".join(at_one_time) + "\n")
    done = tunebatch(*call, "-o", "here")
    assert done.code == 0, done.err


def test_a_profiles_slo_that_so_few_requests_cannot_tell_is_said_before_loading(tunebatch: Any) -> None:
    """Nobody typed it, and the other numbers may be what is wanted."""
    done = tunebatch("run", "-n", "70", "--rate", "5", "-o", "here")
    first, second, *_ = done.err.splitlines()
    assert done.code == 7 and "p90_ttft needs at least 71 requests to be told" in first
    assert "loading" in second
    at_once = tunebatch("run", "-n", "20", "-o", "there")
    assert at_once.code == 0 and "needs at least" not in at_once.err


def test_a_comparison_tells_before_loading_that_an_slo_will_not_be_told(tunebatch: Any) -> None:
    """Goodput and the other columns need no percentile, so it goes on."""
    call = ["compare", "--strategy", "static", "--slo", KEPT]
    done = tunebatch(*call, "-n", "63", "-o", "here")
    assert done.code == 0
    first, second, *_ = done.err.splitlines()
    assert "p90_e2e needs at least 64 requests to be told, the workload has 63" in first
    assert "loading" in second
    assert "needs at least" not in tunebatch(*call, "-n", "64", "-o", "there").err


def test_a_profiles_slo_is_held_against_its_own_traffic_at_a_rate(tunebatch: Any) -> None:
    at_once = tunebatch("run", "sequential", "-o", "here")
    assert at_once.code == 0 and "so the exit code is 0; --slo sets some" in verdicts(at_once.out)[0]
    paced = ["run", "sequential", "--rate", "50"]
    assert tunebatch(*paced, "-o", "there").code == 6
    assert tunebatch(*paced, "-w", "chat", "-o", "other").code == 0


def test_json_keeps_stdout_to_itself_and_the_exit_code(tunebatch: Any) -> None:
    import json

    done = tunebatch("run", "--slo", MISSED, "--json", "-o", "here")
    assert done.code == 6 and json.loads(done.out)["tunebatch"]["slo"] == [MISSED]


def test_a_comparison_exits_0_whoever_misses(tunebatch: Any) -> None:
    assert tunebatch("compare", "--strategy", "static", "--slo", MISSED, "-o", "here").code == 0
    assert "exit code is 0" in " ".join(tunebatch("compare", "--help").out.split())
    assert "Exits with 6" in " ".join(tunebatch("run", "--help").out.split())
