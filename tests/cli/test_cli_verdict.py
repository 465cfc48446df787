"""What `run` says of its SLO, and with which exit code."""

from __future__ import annotations

from typing import Any

import pytest

KEPT, MISSED = "p90_e2e<=10min", "p90_ttft<=1ms"


def verdicts(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("SLO ")]


@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_a_missed_slo_exits_6_and_names_every_limit(tunebatch: Any, quiet: list[str]) -> None:
    limits = ["--slo", MISSED, "--slo", "p90_tpot<=1us", "--slo", KEPT, "--slo", "p99_itl<=10min"]
    done = tunebatch("run", *limits, *quiet, "-o", "here")
    assert done.code == 6, done
    (line,) = verdicts(done.out)
    assert line.startswith("SLO missed: missed p90_ttft ") and " of 1ms, p90_tpot " in line
    assert " of 1us; " in line and "kept p90_e2e " in line and "p99_itl" in line


def test_a_kept_slo_exits_0(tunebatch: Any) -> None:
    done = tunebatch("run", "--slo", KEPT, "-q", "-o", "here")
    assert done.code == 0
    (line,) = verdicts(done.out)
    assert line.startswith("SLO kept: kept p90_e2e ")


def test_an_slo_that_too_few_samples_tell_exits_7(tunebatch: Any) -> None:
    done = tunebatch("run", "-n", "40", "--slo", "p99_e2e<=10min", "--slo", "p50_e2e<=10min", "-o", "here")
    assert done.code == 7, done
    (line,) = verdicts(done.out)
    assert line.startswith("SLO not told: not told p99_e2e n/a (40 of 662) of 600s; kept p50_e2e ")
    done = tunebatch("run", "-n", "40", "--slo", "p99_e2e<=10min", "--slo", "p50_ttft<=1ms", "-o", "there")
    assert done.code == 6 and verdicts(done.out)[0].startswith("SLO missed: missed p50_ttft ")


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
