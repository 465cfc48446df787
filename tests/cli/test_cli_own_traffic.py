"""Traffic that a profile describes, or does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunebatch.cli.traffic import workload_spec
from tunebatch.profile import load_profile
from tunebatch.workload.named import NAMED

LENGTHS = "prompt_tokens = 20\noutput_tokens = 8\nrequests = 80\n"
SLO = '[slo]\np90_ttft = "1s"\n'


def refusal(tunebatch: Any, *call: str) -> str:
    done = tunebatch(*call)
    assert done.code == 2, done
    (line,) = done.err.splitlines()
    return str(line)


def test_what_does_not_go_together_is_told_with_the_file_in_the_words_of_the_profile(
    tunebatch: Any, fake_model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ["run", "-p", written('[workload]\narrivals = "burst"\n')]
    assert refusal(tunebatch, *call).startswith(
        "error: mine.toml: [workload] needs prompt_tokens and output_tokens, for example 'uniform:16-256'"
    )
    written('[workload]\nname = "quickstart"\nprefixes = 3\n')
    told = "mine.toml: [workload] prefixes and prefix_skew are of no use without prefix_tokens"
    assert refusal(tunebatch, *call) == f"error: {told}"
    monkeypatch.setenv("TUNEBATCH_WORKLOAD_ARRIVALS", "closed")
    written(f"[workload]\n{LENGTHS}")
    told = "environment TUNEBATCH_WORKLOAD_ARRIVALS, mine.toml: [workload] a closed loop needs concurrency"
    assert refusal(tunebatch, *call) == f"error: {told}, for example 16"
    assert fake_model == []


def test_traffic_without_a_rhythm_is_named_with_the_file_that_describes_it(
    tunebatch: Any, fake_model: list[str]
) -> None:
    mine = written(f'[workload]\narrivals = "closed"\nconcurrency = 3\n{LENGTHS}{SLO}')
    told = "--rate 3: the requests of custom (mine.toml) come in a closed loop; leave it out"
    assert refusal(tunebatch, "run", "-p", mine, "--rate", "3").startswith(f"error: {told}")
    told = "workload custom (mine.toml) has no arrivals to scale, so no capacity"
    assert refusal(tunebatch, "sweep", "-p", mine).startswith(f"error: {told}")
    mine = written(f"[workload]\nrate_per_s = 1e9\n{LENGTHS}{SLO}")
    told = "mine.toml: [workload] rate_per_s = 1000000000.0: requests have to arrive for"
    assert refusal(tunebatch, "sweep", "-p", mine).startswith(f"error: {told}")
    assert refusal(tunebatch, "run", "-w", "offline", "--rate", "3").startswith(
        "error: --rate 3: the requests of offline come all at once"
    )


def written(text: str) -> str:
    Path("mine.toml").write_text(text)
    return "mine.toml"


@pytest.mark.parametrize(
    "arrivals", ["", 'arrivals = "poisson"\n', 'arrivals = "gamma"\n', 'arrivals = "constant"\n']
)
def test_a_capacity_needs_no_rate(tunebatch: Any, arrivals: str) -> None:
    # Long answers: the rate is low, and runs that last as long have fewer requests.
    lengths = "prompt_tokens = 20\noutput_tokens = 80\nrequests = 80\n"
    search = "[search]\nstrategies = ['continuous']\ntrials = 1\nconfirm = 1\n"
    mine = written(f"[workload]\n{arrivals}{lengths}{SLO}{search}")
    done = tunebatch("sweep", "-p", mine, "-o", "here")
    assert done.code == 0, done.err
    assert "req/s inside the SLO" in done.out


def test_another_objective_needs_one(tunebatch: Any) -> None:
    mine = written(f'[workload]\narrivals = "poisson"\n{LENGTHS}[search]\nobjective = "throughput"\n')
    done = tunebatch("sweep", "-p", mine)
    assert done.code == 2 and "mine.toml: [workload] " in done.err and "need rate_per_s" in done.err


@pytest.mark.parametrize("text", ['[model]\nname = "bundled"\n', SLO, "[workload]\nseed = 3\n"])
def test_where_nothing_is_said_it_is_the_quickstarts(tunebatch: Any, text: str) -> None:
    spec = workload_spec(load_profile(written(text), environ={}))
    assert (spec.name, spec.prompt_lengths) == ("quickstart", NAMED["quickstart"].prompt_lengths)


def test_a_length_that_is_none_is_told_with_its_file_and_key(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = written('[workload]\nprompt_tokens = 5\noutput_tokens = "uniform:9-3"\nrequests = 80\n')
    done = tunebatch("run", "-p", mine)
    assert (
        done.code == 2 and "error: mine.toml: [workload] output_tokens = 'uniform:9-3': low is 9" in done.err
    )
    monkeypatch.setenv("TUNEBATCH_WORKLOAD_OUTPUT_TOKENS", "unifrom:3-9")
    told = (
        "environment TUNEBATCH_WORKLOAD_OUTPUT_TOKENS: [workload] output_tokens = 'unifrom:3-9': unknown law"
    )
    assert told in tunebatch("run", "-p", mine).err
