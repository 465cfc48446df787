"""Profiles: what wins over what, and what is refused how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunebatch.cli.traffic import workload_spec
from tunebatch.engine.strategies import STRATEGIES
from tunebatch.profile import ProfileError, load_profile, profile_names
from tunebatch.profile_sections import parse_time
from tunebatch.workload.lengths import Empirical


@pytest.mark.parametrize("name", ["quickstart", "smoke", "chat-p99"])
def test_the_ready_made_profiles_are_valid(name: str) -> None:
    profile = load_profile(name, environ={})
    assert name in profile_names() and profile.name == name
    assert len(profile.slo) and workload_spec(profile).num_requests


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[search]\ntrials = 7\nseed = 1\ntime = "3m"\n')
    environ = {"TUNEBATCH_SEARCH_TRIALS": "8", "TUNEBATCH_SEARCH_SEED": "2", "TUNEBATCH_DEBUG": "1"}
    search = load_profile(path, {"search": {"trials": 9, "seed": None}}, environ).search
    assert (search.trials, search.seed, search.time, search.confirm) == (9, 2, 180.0, 5)


def test_environment_lists_and_limits() -> None:
    environ = {"TUNEBATCH_SEARCH_STRATEGIES": "static,dynamic", "TUNEBATCH_SLO_P90_TTFT": "80ms"}
    profile = load_profile("quickstart", environ=environ)
    assert profile.search.strategies == ["static", "dynamic"]
    assert "p90_ttft<=80ms" in profile.slo.texts() and len(profile.slo) == 2


@pytest.mark.parametrize("words", [["all"], ["all", "static"], ["static", "all"], ["mixed", "all"]])
def test_all_anywhere_is_every_strategy(words: list[str]) -> None:
    for given, environ in (
        ({"search": {"strategies": words}}, {}),
        ({}, {"TUNEBATCH_SEARCH_STRATEGIES": ",".join(words)}),
    ):
        assert load_profile("smoke", given, environ).search.strategies == list(STRATEGIES)
    with pytest.raises(ProfileError, match="unknown strategy 'statik'; did you mean 'static'"):
        load_profile("smoke", {"search": {"strategies": ["all", "statik"]}}, {})


def test_presets_are_searched_where_they_are_named_and_not_with_all() -> None:
    chosen = load_profile("smoke", {"search": {"strategies": ["sarathi", "all"]}}, {}).search.strategies
    assert chosen == [*STRATEGIES, "sarathi"]
    with pytest.raises(ProfileError, match="unknown strategy 'sarati'; did you mean 'sarathi'"):
        load_profile("smoke", {"search": {"strategies": ["sarati"]}}, {})


def test_limits_on_the_command_line_replace_the_files() -> None:
    assert load_profile("quickstart", {"slo": {"p50_e2e": "3s"}}, {}).slo.texts() == ["p50_e2e<=3s"]


def test_another_workload_replaces_the_traffic_but_not_its_size() -> None:
    workload = load_profile("quickstart", {"workload": {"name": "chat"}}, {}).workload
    own = load_profile("quickstart", environ={}).workload
    assert workload.given() == {"name": "chat", "requests": own.requests, "seed": own.seed}


REFUSED: list[tuple[str, str]] = [
    ("[serch]\ntrials = 3", "unknown section [serch]; did you mean 'search'?"),
    ("[search]\ntrials = 0", "[search] trials = 0: impossible; the nearest valid value is 1"),
    ("[search]\ntrials = true", "true is not a number"),
    ("[search]\ntrials = 2.5", "[search] trials = 2.5"),
    ('[search]\ntime = "3"', "has no unit; did you mean 3s?"),
    ('[search]\nobjective = "capasity"', "did you mean 'capacity'?"),
    (
        "[search]\nseed = 4294966296",
        "[search] seed = 4294966296: impossible; the nearest valid value is 4294966295",
    ),
    (
        "[workload]\nseed = 5000000000",
        "[workload] seed = 5000000000: impossible; the nearest valid value is 4294966295",
    ),
    ("[workload]\nseed = -1", "[workload] seed = -1: impossible; the nearest valid value is 0"),
    ("[device]\nutilization = 1.5", "the nearest valid value is 1.0"),
    ('[workload]\nprompt_token = "8"', "unknown key; did you mean 'prompt_tokens'?"),
    ("[workload]\nrate_per_s = -1", "[workload] rate_per_s = -1: must be above 0, such as 1"),
    ("[device]\nprice_per_hour = -2", "[device] price_per_hour = -2: must be above 0, such as 2"),
    ('[workload]\nrequests = "ten"', "[workload] requests = 'ten': must be a whole number, such as 100"),
    ('[workload]\nrequests = "70x"', "requests = '70x': must be a whole number, such as 70"),
    ('[workload]\narrivals = "poison"', "arrivals = 'poison': unknown value; did you mean 'poisson'?"),
    ("[workload]\nprompt_tokens = true", "[workload] prompt_tokens = True: true is not a number"),
    ('[slo]\np90_ttft = "1s"\nP90_TTFT = "2s"', "[slo] P90_TTFT = '2s': SLO p90_ttft is given twice"),
    ('[model]\nname = ""', "[model] name = '': must not be empty; the nearest valid value is 'bundled'"),
    ('[slo]\np90_ttft = "500 mz"', "[slo] p90_ttft = '500 mz'"),
    ("[slo]\np90_ttft = 500", "500 has no unit; did you mean 500ms?"),
    ("model = 3", "must be a section; write [model]"),
    ("[model", "not valid TOML"),
]


@pytest.mark.parametrize(("text", "told"), REFUSED)
def test_one_line_with_the_file(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(ProfileError) as error:
        load_profile(path, environ={})
    assert str(error.value).startswith(str(path)) and told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(ProfileError, match="environment TUNEBATCH_MODEL_DEVICE"):
        load_profile("quickstart", environ={"TUNEBATCH_MODEL_DEVICE": "gpu"})


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("TUNEBATCH_WORKLOD_SEED", "TUNEBATCH_WORKLOAD_SEED"),
        ("TUNEBATCH_SLOS_P90_TTFT", "TUNEBATCH_SLO_P90_TTFT"),
        ("TUNEBATCH_NUM_BLOCKS", "TUNEBATCH_DEVICE_NUM_BLOCKS"),
        ("TUNEBATCH_SEARCH", "TUNEBATCH_SEARCH_TIME"),
        ("TUNEBATCH_DEBGU", "TUNEBATCH_DEBUG"),
    ],
)
def test_a_variable_that_sets_nothing_is_refused(variable: str, meant: str) -> None:
    with pytest.raises(ProfileError) as error:
        load_profile("quickstart", environ={variable: "1"})
    assert str(error.value).startswith(
        f"environment {variable} = '1': no such setting; did you mean {meant}?"
    )
    assert "\n" not in str(error.value)


def test_variables_of_others_are_left_alone() -> None:
    others = {"TUNEBATCH_DEBUG": "1", "TUNEBATCHER_SEED": "1", "TUNEBATCH": "x", "SEARCH_SEED": "9"}
    assert load_profile("quickstart", environ=others).search.seed == 0


def test_a_mistyped_key_in_the_environment_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"environment TUNEBATCH_WORKLOAD_SED: .*did you mean 'seed'"):
        load_profile("quickstart", environ={"TUNEBATCH_WORKLOAD_SED": "1"})


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("3m", 180), ("1.5h", 5400), ("2 min", 120)])
def test_times(text: Any, seconds: float) -> None:
    assert parse_time(text) == seconds


LENGTHS = """[workload]
arrivals = "constant"
rate_per_s = 1
requests = 3
prompt_tokens = "Empirical: lengths.txt"
output_tokens = "Empirical: here.txt"
"""


def test_files_are_beside_the_profile_or_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p").mkdir()
    for name, length in (("p/lengths.txt", 11), ("lengths.txt", 12), ("here.txt", 13)):
        (tmp_path / name).write_text(f"{length}\n")
    (tmp_path / "p/p.toml").write_text(LENGTHS)
    monkeypatch.chdir(tmp_path)
    spec = workload_spec(load_profile("p/p.toml", environ={}))
    assert (spec.prompt_lengths, spec.output_lengths) == (Empirical((11,)), Empirical((13,)))
    environ = {"TUNEBATCH_WORKLOAD_PROMPT_TOKENS": "empirical:lengths.txt"}
    assert workload_spec(load_profile("p/p.toml", environ=environ)).prompt_lengths == Empirical((12,))
    (tmp_path / "p/t.toml").write_text('[workload]\ntrace_file = "lengths.txt"\n')
    assert load_profile("p/t.toml", environ={}).workload.trace_file == "p/lengths.txt"
    flags = {"workload": {"trace_file": "lengths.txt"}}
    assert load_profile("p/t.toml", flags, {}).workload.trace_file == "lengths.txt"
