"""Bad input: one clear line on stderr, exit code 2, nothing measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunebatch.cli.traffic import workload_spec
from tunebatch.profile import load_profile
from tunebatch.workload.prompts import RandomPrompts
from tunebatch.workload.spec import build

CASES = {
    "strategy": (["run", "contnuous"], ["unknown strategy 'contnuous'", "did you mean 'continuous'"]),
    "compared strategy": (["compare", "--strategy", "statik"], ["statik", "did you mean 'static'"]),
    "swept strategy": (["sweep", "--strategy", "dynamo"], ["dynamo", "did you mean 'dynamic'"]),
    "knob": (["run", "static", "--set", "max_batch=4"], ["no knob 'max_batch'", "'max_batch_size'"]),
    "knob without value": (["run", "--set", "max_batch_size"], ["has no '='"]),
    "knob's value": (
        ["run", "--set", "max_batch_size=many"],
        ["'many' is not a number", "max_batch_size=32"],
    ),
    "knob's unit": (["run", "--set", "max_batch_size=16seqs"], ["not a number", "max_batch_size=16"]),
    "knob's unit after a fraction": (
        ["run", "mixed", "--set", "chunk_size=12.5k"],
        ["'12.5k' is not a number", "--set chunk_size=12"],
    ),
    "switch": (
        ["run", "chunked", "--set", "forecast_kv=yes"],
        ["--set forecast_kv: 'yes' is neither 0 (off) nor 1 (on); write it like --set forecast_kv=1"],
    ),
    "switch off": (["run", "static", "-s", "sort_by_length=Off"], ["--set sort_by_length=0"]),
    "share": (["run", "adaptive", "-s", "target=high"], ["'high' is not a number", "--set target=0.9"]),
    "delay's unit": (["run", "dynamic", "--set", "max_delay_s=50mz"], ["unknown unit 'mz'", "50ms"]),
    "requests": (["run", "--requests", "0"], ["error: --requests 0: impossible", "nearest valid value is 1"]),
    "no strategy": (
        ["run", ""],
        ["'': no strategy is named", "one of sequential, static", "vllm-v0"],
    ),
    "only a feature": (
        ["run", "+prefix"],
        ["no strategy before the first '+'", "one of sequential"],
    ),
    "a feature alone": (
        ["sweep", "--strategy", "prefix"],
        ["error: --strategy prefix: 'prefix' is a feature", "write it like continuous+prefix"],
    ),
    "no folder named": (["run", "-o", ""], ["error: --out is empty; name a folder"]),
    "no trace named": (["run", "--trace", ""], ["error: --trace is empty; name a file, such as trace.json"]),
    "blank trace": (["compare", "--trace", " "], ["error: --trace is empty; name a file"]),
    "no sweep named": (["sweep", "--resume", ""], ["error: --resume is empty; name the folder of a sweep"]),
    "no result named": (["compare", "", "b.json"], ["error: a saved result is empty; name its file or"]),
    "no model": (["run", "-m", " "], ["error: --model ' ': must not be empty", "value is 'bundled'"]),
    "no draft": (["run", "mixed+draft", "--draft", " "], ["error: --draft ' ': must not be empty"]),
    "no trace file": (
        ["run", "--trace-file", ""],
        ["error: --trace-file '': is empty; name a file, or leave"],
    ),
    "blank trace file": (["sweep", "--trace-file", " "], ["error: --trace-file ' ': is empty; name a file"]),
    "no profile": (["run", "-p", ""], ["error: no profile is named; give a TOML file or one of chat-p99,"]),
    "no profile of a sweep": (["sweep", "-p", ""], ["error: no profile is named; "]),
    "backend": (["run", "--backend", "pakced"], ["--backend pakced: unknown value; did you mean 'packed'"]),
    "knob given twice": (
        ["run", "-s", "max_batch_size=4", "-s", "max_batch_size=auto"],
        ["error: --set max_batch_size is given twice; keep one of '4' and 'auto'"],
    ),
    "knob given twice alike": (
        ["run", "-s", "max_batch_size=4", "-s", "max_batch_size=4"],
        ["error: --set max_batch_size is given twice; leave one out"],
    ),
    "strategy given twice": (
        ["compare", "--strategy", "static", "--strategy", "static"],
        ["error: --strategy static, static: static is given twice; leave one out"],
    ),
    "strategy given twice in other words": (
        ["sweep", "--strategy", "mixed+ngram+prefix", "--strategy", "mixed+prefix+ngram"],
        ["mixed+prefix+ngram is given twice"],
    ),
    "all given twice": (["compare", "--strategy", "all", "--strategy", "all"], ["all is given twice"]),
    "endless batch": (
        ["run", "-s", "max_batch_size=1e20"],
        ["max_batch_size = 1e+20: there are 64 batch slots; the nearest valid value is 64, or for more"],
    ),
    "empty feature": (["run", "mixed+"], ["no feature after a '+'", "nearest is 'mixed'", "prefix, ngram"]),
    "several strategies": (["run", "all+prefix"], ["one strategy", "compare --strategy all+prefix"]),
    "several strategies with commas": (
        ["run", "static,mixed"],
        ["run measures one strategy; for static,mixed: tunebatch compare --strategy static,mixed"],
    ),
    "a strategy behind a comma": (
        ["sweep", "--strategy", "static,dynamo"],
        ["error: --strategy static, dynamo: unknown strategy 'dynamo'; did you mean 'dynamic'"],
    ),
    "nothing behind a comma": (
        ["compare", "--strategy", "static,"],
        ["'': no strategy is named; give one of"],
    ),
    "given twice with commas": (["compare", "--strategy", "static,static"], ["static is given twice"]),
    "impossible knob": (
        ["run", "--set", "max_batch_size=0"],
        ["max_batch_size = 0: the least possible value is 1"],
    ),
    "profile": (["sweep", "-p", "quikstart"], ["unknown profile 'quikstart'", "'quickstart'"]),
    "profile file": (["sweep", "-p", "none.toml"], ["none.toml: no such profile file"]),
    "metric": (["run", "--slo", "p90_tftt<=1s"], ["unknown SLO 'p90_tftt'", "p90_ttft"]),
    "unit": (["run", "--slo", "p90_ttft<=500mz"], ["unknown unit 'mz'", "500ms"]),
    "SLO form": (["run", "--slo", "p90_ttft=500ms"], ["has no '<='"]),
    "limit given twice": (
        ["run", "--slo", "p99_ttft<=2s", "--slo", "P99_TTFT <= 1s"],
        ["error: --slo P99_TTFT <= 1s: SLO p99_ttft is given twice; keep one of 2s and 1s"],
    ),
    "limit given twice alike": (
        ["run", "--slo", "p99_ttft<=1s", "--slo", "p99_ttft<=1000ms"],
        ["error: --slo p99_ttft<=1000ms: SLO p99_ttft is given twice; leave one out"],
    ),
    "time": (["sweep", "--time", "3q"], ["unknown unit 'q'"]),
    "trials": (["sweep", "--trials", "0"], ["--trials 0: impossible", "nearest valid value is 1"]),
    "seed": (
        ["sweep", "--seed", "5000000000"],
        ["--seed 5000000000: impossible", "nearest valid value is 4294966295"],
    ),
    "workload": (["run", "-w", "chatt"], ["unknown workload", "did you mean 'chat'"]),
    "batch beyond the slots": (["run", "--set", "max_batch_size=65"], ["there are 64 batch slots"]),
    "trace without its file": (["run", "-w", "azure"], ["azure is a format of traces", "--trace-file"]),
    "model": (["run", "-m", "./nowhere"], ["./nowhere: no such folder"]),
    "GPU": (["run", "--device", "cuda"], ["torch finds no CUDA device"]),
    "device": (["run", "--device", "gpu0"], ["--device gpu0: unknown value", "did you mean"]),
    "knob of another name": (
        ["run", "dynamic", "-s", "max_delay=50ms"],
        ["unknown knob 'max_delay'", "did you mean 'max_delay_s'"],
    ),
    "no start rate": (["sweep", "--start-rate", "0"], ["error: --start-rate 0: must be above 0"]),
    "rate": (["run", "--rate", "-1"], ["--rate -1", "above 0"]),
    "clock": (["run", "--clock", "sundial"], ["unknown clock 'sundial'"]),
    "baseline": (["sweep", "--baseline", "grid"], ["did you mean 'random'"]),
    "baseline of the same kind": (
        ["sweep", "--baseline", "random", "--sampler", "random"],
        ["error: --baseline random: --sampler random would be compared with itself", "auto, gp, tpe"],
    ),
    "resume": (["sweep", "--resume", "nowhere"], ["no sweep was begun there"]),
    "option": (["run", "--no-such"], ["--no-such"]),
    "start rate": (
        ["sweep", "--start-rate", "1e9"],
        ["--start-rate 1e+09", "highest rate to begin at is"],
    ),
    "command": (["swep"], ["swep"]),
    "one result": (["compare", "a.json"], ["at least two"]),
    "no such result": (["compare", "a.json", "b.json"], ["could not read a.json"]),
    "mixed": (["compare", "a.json", "b.json", "--strategy", "all"], ["--strategy", "cannot be mixed"]),
    "capacity without arrivals": (["sweep", "-w", "offline"], ["no arrivals to scale"]),
    "rate without arrivals": (["run", "-w", "offline", "--rate", "3"], ["all at once", "'poisson'"]),
    "draft model": (
        ["compare", "--strategy", "mixed+draft", "--draft", "./none"],
        ["--draft ./none: no folder"],
    ),
    "no draft model": (["run", "mixed+draft", "-m", "./mine"], ["tokenizer of ./mine", "with +ngram"]),
    "no folder": (["compare", "-o", "/dev/null/there"], ["--out /dev/null/there: /dev/null is not a folder"]),
}
MINE = "[workload]\nprompt_tokens = 9\noutput_tokens = 4\nrequests = 100\n"
OF_THE_LOADER = {"model", "GPU"}  # which it refuses before it reads weights


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_exit_2_before_a_model_is_loaded(
    tunebatch: Any, fake_model: list[str], case: str
) -> None:
    arguments, told = CASES[case]
    done = tunebatch(*arguments)
    assert done.code == 2, done
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.err
    assert all(part in lines[0] for part in told), lines
    assert done.out == "" and not Path("results").exists()
    assert fake_model == [] or (case in OF_THE_LOADER and len(fake_model) == 1)


@pytest.mark.parametrize("arrivals", ["closed", "burst", "burst of 200", "burst of 8", "bursts"])
def test_traffic_without_a_rhythm_is_known_before_a_model_is_loaded(
    tunebatch: Any, fake_model: list[str], arrivals: str
) -> None:
    """As the traffic itself says it once it is drawn."""
    how = {
        "closed": 'arrivals = "closed"\nconcurrency = 3',
        "burst": 'arrivals = "burst"',
        "burst of 200": 'arrivals = "burst"\nburst_size = 200\nrate_per_s = 2',
        "burst of 8": 'arrivals = "burst"\nburst_size = 8',
        "bursts": 'arrivals = "burst"\nburst_size = 8\nburst_gap_s = 1',
    }[arrivals]
    head = "[workload]\nprompt_tokens = 9\noutput_tokens = 4\nrequests = 100\n"
    Path("mine.toml").write_text(f"{head}{how}\n")
    done = tunebatch("run", "-p", "mine.toml", "--rate", "5", "-o", "here")
    spec = workload_spec(load_profile("mine.toml", {}, {}))
    rhythm = build(spec, RandomPrompts(99), 2048).unit_arrivals_s is not None
    assert rhythm == (arrivals == "bursts") == (done.code == 0) == (fake_model != [])


def test_a_random_search_of_the_profile_is_no_baseline_for_itself(
    tunebatch: Any, fake_model: list[str]
) -> None:
    Path("mine.toml").write_text(f"{MINE}[search]\nsampler = 'random'\ntrials = 1\n[slo]\np90_ttft = '1s'\n")
    call = ["sweep", "-p", "mine.toml", "--baseline", "random"]
    for more in ([], ["--dry-run"]):
        done = tunebatch(*call, *more)
        assert done.code == 2 and fake_model == []
        (line,) = done.err.splitlines()
        assert line.startswith("error: --baseline random: mine.toml: [search] sampler = 'random' would be")
    assert tunebatch(*call, "--sampler", "tpe", "--dry-run").code == 0


def test_a_limit_given_twice_in_a_profile_names_the_file(tunebatch: Any, fake_model: list[str]) -> None:
    Path("mine.toml").write_text('[slo]\np99_ttft = "2s"\nP99_TTFT = "1s"\n')
    done = tunebatch("run", "-p", "mine.toml")
    assert done.code == 2 and fake_model == []
    told = "error: mine.toml: [slo] P99_TTFT = '1s': SLO p99_ttft is given twice; keep one of 2s and 1s"
    assert done.err == f"{told}\n"
    Path("mine.toml").write_text('[slo]\np99_ttft = "2s"\np99_ttft = "1s"\n')
    done = tunebatch("run", "-p", "mine.toml")
    assert done.code == 2 and "error: mine.toml: not valid TOML:" in done.err and "line 3" in done.err


def test_a_delay_may_have_a_unit(tunebatch: Any) -> None:
    done = tunebatch("run", "dynamic", "--set", "max_delay_s=50ms", "-n", "64", "-o", "here")
    assert done.code == 0, done.err
    assert json.loads(Path("here/result.json").read_text())["tunebatch"]["knobs"]["max_delay_s"] == 0.05


@pytest.mark.parametrize("command", ["run", "compare"])
def test_the_help_names_the_features(tunebatch: Any, command: str) -> None:
    assert "+prefix, +ngram or +draft" in " ".join(tunebatch(command, "--help").out.split())


def test_a_profiles_error_names_file_key_value_and_nearest(tunebatch: Any) -> None:
    Path("mine.toml").write_text("[search]\ntrails = 3\n")
    done = tunebatch("sweep", "-p", "mine.toml")
    assert done.code == 2
    assert "mine.toml: [search] trails = 3: unknown key; did you mean 'trials'?" in done.err


def test_a_broken_trace_row_is_named_by_its_line(tunebatch: Any) -> None:
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    rows += [f"2023-11-16 18:15:{second:02}.0,10,5" for second in range(40)]
    rows[7] = "2023-11-16 18:15:06.0,ten,5"
    Path("t.csv").write_text("\n".join(rows) + "\n")
    done = tunebatch("run", "--trace-file", "t.csv")
    assert done.code == 2 and "t.csv, line 8" in done.err and "ten" in done.err


def test_a_prompt_longer_than_the_context(tunebatch: Any) -> None:
    Path("long.toml").write_text(
        '[workload]\narrivals = "constant"\nrate_per_s = 1\nrequests = 3\nclip = false\n'
        "prompt_tokens = 5000\noutput_tokens = 8\n"
    )
    done = tunebatch("run", "-p", "long.toml")
    assert done.code == 2 and "exceed the context of 2048" in done.err


@pytest.mark.parametrize("seed", ["4294966296", "-1"])
def test_a_seed_that_no_sampler_takes_is_refused_before_loading(
    tunebatch: Any, fake_model: list[str], seed: str
) -> None:
    for command in ("run", "compare", "sweep"):
        done = tunebatch(command, "--seed", seed)
        assert done.code == 2 and f"--seed {seed}: impossible; the nearest valid value is " in done.err
    assert fake_model == []


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_percentile_that_the_requests_cannot_carry_is_refused_before_loading(
    tunebatch: Any, fake_model: list[str], dry: list[str]
) -> None:
    done = tunebatch("sweep", "-n", "96", "--slo", "p99_ttft<=1s", *dry)
    assert done.code == 2
    assert "p99_ttft needs at least 735 requests to be told (of which the first 10 % are warm-up)" in done.err
    assert "--requests 735" in done.err
    assert fake_model == []


def test_where_all_requests_come_at_once_there_is_no_warmup_to_have_requests_for(
    tunebatch: Any, fake_model: list[str]
) -> None:
    call = ["sweep", "--slo", "p90_ttft<=9s", "--objective", "throughput", "--dry-run"]
    done = tunebatch(*call, "-n", "63")
    assert done.code == 2 and "use --requests 64 " in done.err and "warm-up" not in done.err
    done = tunebatch(*call, "-n", "64")
    assert done.code == 0 and "warm-up" not in done.out, done.err
    # At an offered rate the load builds up.
    done = tunebatch(*call, "-n", "70", "--start-rate", "5")
    assert done.code == 2 and "use --requests 71 " in done.err
    done = tunebatch(*call, "-n", "71", "--start-rate", "5")
    assert "warm-up:   the first 10 % of a run's requests, here 7, are in no percentile" in done.out, done.err


def test_gaps_between_tokens_are_no_samples_of_their_own(tunebatch: Any, fake_model: list[str]) -> None:
    done = tunebatch("sweep", "-n", "96", "--slo", "p99_itl<=1s")
    assert done.code == 2 and "p99_itl needs at least 735 requests" in done.err and fake_model == []


def test_a_broken_line_of_a_file_of_lengths(tunebatch: Any, fake_model: list[str]) -> None:
    Path("lengths.csv").write_text("12\nmany\n")
    Path("mine.toml").write_text('[workload]\nname = "quickstart"\nprompt_tokens = "empirical:lengths.csv"\n')
    done = tunebatch("run", "-p", "mine.toml")
    assert done.code == 2 and fake_model == []
    assert (
        "mine.toml: [workload] prompt_tokens = 'empirical:lengths.csv': lengths.csv, line 2: 'many'; use one"
        in done.err
    )


def test_a_burstiness_without_gaps_is_refused_before_loading(tunebatch: Any, fake_model: list[str]) -> None:
    Path("b.toml").write_text('[workload]\nname = "quickstart"\narrivals = "gamma"\nburstiness = 1e-6\n')
    done = tunebatch("run", "-p", "b.toml")
    assert done.code == 2 and fake_model == []
    assert "burstiness is 1e-06; the nearest valid value is 0.001" in done.err


def test_a_rate_at_which_nothing_ever_arrives(tunebatch: Any) -> None:
    done = tunebatch("run", "--rate", "1e-310")
    assert done.code == 2 and "at 1e-310 requests/s: request " in done.err
    assert "would arrive at inf s, which is no time; use a higher rate" in done.err


@pytest.mark.parametrize(
    ("section", "key", "value", "told"),
    [
        ("knobs", "max_batch_size", -3, "tunebatch.knobs: strategy static: max_batch_size = -3: the least"),
        ("workload", "rate_per_s", -4, "tunebatch.workload.rate_per_s: -4 is impossible"),
    ],
)
def test_a_result_that_a_hand_made_impossible_is_named_with_its_key(
    tunebatch: Any, section: str, key: str, value: Any, told: str
) -> None:
    assert tunebatch("run", "static", "-q", "-o", "a").code == 0
    data = json.loads(Path("a/result.json").read_text())
    data["tunebatch"][section][key] = value
    Path("b.json").write_text(json.dumps(data))
    done = tunebatch("compare", "a", "b.json")
    assert done.code == 2 and done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith(f"error: b.json: {told}")
