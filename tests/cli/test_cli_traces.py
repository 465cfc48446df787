"""Recorded traffic on the command line: by format, clipped to the model, as long as the SLO needs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tunebatch.cli.session import Session
from tunebatch.cli.tokenizer import text_to_ids
from tunebatch.models import bundled_target

SLO = ["--slo", "p99_ttft<=2s", "--slo", "p99_tpot<=100ms"]


@pytest.fixture
def trace() -> str:
    """1,000 requests, two a second; every tenth does not fit the fake model's context of 2048."""
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for number in range(1000):
        minute, second = divmod(number // 2, 60)
        prompt = 3000 if number % 10 == 0 else 30
        rows.append(f"2023-11-16 18:{minute:02}:{second:02}.{5 * (number % 2)},{prompt},8")
    Path("trace.csv").write_text("\n".join(rows) + "\n")
    return "trace.csv"


def test_a_workload_may_be_a_format_and_a_p99_gets_the_requests_it_needs(tunebatch: Any, trace: str) -> None:
    call = ["sweep", "--model", "bundled", "--workload", "azure", "--trace-file", trace, *SLO]
    done = tunebatch(*call, "--strategy", "continuous", "--trials", "1", "-o", "here")
    assert done.code == 0, done.err
    assert "trace: 882 requests, arrivals of trace.csv at 2 req/s" in done.err
    assert "89 of 882 requests were clipped to the context of 2048 tokens" in done.out
    assert "which is what the SLO needs" in done.out
    kept = json.loads(Path("here/result.json").read_text())
    assert kept["num_prompts"] == 882
    assert any("clipped" in note for note in kept["tunebatch"]["workload"]["notes"])


@pytest.mark.parametrize("command", ["run", "compare"])
def test_one_run_of_a_trace_keeps_its_pace_and_says_what_was_clipped(
    tunebatch: Any, trace: str, command: str
) -> None:
    few = ["-w", "azure", "--trace-file", trace, "-n", "20", "--slo", "mean_ttft<=2s", "-o", "here"]
    done = tunebatch(command, *few, "--quiet")
    assert done.code == 0, done.err
    assert "note: 2 of 20 requests were clipped to the context of 2048 tokens" in done.out
    done = tunebatch(command, *few)
    assert done.code == 0, done.err
    assert "note: 2 of 20 requests were clipped to the context of 2048 tokens" in done.out
    file = next(Path("here").rglob("result.json"))
    assert json.loads(file.read_text())["request_rate"] == pytest.approx(2.0)


def test_a_trace_that_is_too_short_for_the_slo_is_refused_before_measuring(
    tunebatch: Any, fake_model: list[str]
) -> None:
    rows = [f'{{"arrival_s": {number}, "prompt_tokens": 9, "output_tokens": 4}}' for number in range(100)]
    Path("short.jsonl").write_text("\n".join(rows))
    done = tunebatch("sweep", "-w", "jsonl", "--trace-file", "short.jsonl", *SLO)
    assert done.code == 2 and fake_model == []
    assert "needs at least 735 requests to be told (of which the first 10 % are warm-up)" in done.err
    assert "short.jsonl gives 100; use a longer trace or a lower percentile" in done.err


def test_a_broken_trace_is_told_before_the_model_is_loaded(tunebatch: Any, fake_model: list[str]) -> None:
    Path("broken.jsonl").write_text(
        '{"arrival_s": 0, "prompt_tokens": 9, "output_tokens": 4}\n{"arrival_s": 1'
    )
    for command in ("run", "compare", "sweep"):
        done = tunebatch(command, "--trace-file", "broken.jsonl")
        assert done.code == 2 and "broken.jsonl, line 2" in done.err
    assert fake_model == []


def lengths(path: str, *columns: str) -> str:
    names = columns or ("num_prefill_tokens", "num_decode_tokens", "num_total_tokens", "pd_ratio")
    rows = [",".join(["40", "8", "48", "5.0"][: len(names)])] * 72
    Path(path).write_text("\n".join([",".join(names), *rows]) + "\n")
    return path


@pytest.mark.parametrize("columns", [(), ("num_prefill_tokens", "num_decode_tokens")])
def test_a_trace_of_lengths_comes_at_the_rate_or_all_at_once(
    tunebatch: Any, columns: tuple[str, ...]
) -> None:
    call = ["run", "-w", "vidur", "--trace-file", lengths("l.csv", *columns)]
    done = tunebatch(*call, "--rate", "5", "-o", "paced")
    assert done.code == 0, done.err
    assert "l: 72 requests, Poisson at 5 req/s" in done.err
    assert json.loads(Path("paced/result.json").read_text())["request_rate"] == 5.0
    done = tunebatch(*call, "-o", "saturated")
    assert done.code == 0, done.err
    assert "l: 72 requests, all at once" in done.err
    assert "no arrivals in the trace: Poisson ones at the rate of --rate; all at once without" in done.err


def test_a_trace_of_lengths_can_be_swept_and_keeps_the_rate_of_a_profile(tunebatch: Any) -> None:
    Path("mine.toml").write_text(
        f'[workload]\ntrace_file = "{lengths("l.csv")}"\nrate_per_s = 3\n[slo]\np90_ttft = "2s"\n'
    )
    assert "Poisson at 3 req/s" in tunebatch("run", "-p", "mine.toml", "-o", "run").err
    done = tunebatch("sweep", "-p", "mine.toml", "--strategy", "sequential", "-o", "swept")
    assert done.code == 0 and "req/s inside the SLO" in done.out, done.err


def test_a_profile_that_wants_a_traces_own_arrivals_is_told_where_there_are_none(
    tunebatch: Any, fake_model: list[str]
) -> None:
    Path("mine.toml").write_text(f'[workload]\ntrace_file = "{lengths("l.csv")}"\narrivals = "trace"\n')
    done = tunebatch("run", "-p", "mine.toml")
    assert done.code == 2 and fake_model == []
    assert "l.csv, line 1: the trace has no arrivals" in done.err and "arrivals = 'poisson'" in done.err


def test_a_trace_without_one_request_is_told_with_its_line_before_a_model_is_loaded(
    tunebatch: Any, fake_model: list[str]
) -> None:
    rows = [f"2023-11-16 18:00:0{number}.0,{number % 2},0" for number in range(9)]
    Path("t.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    done = tunebatch("run", "--trace-file", "t.csv")
    assert done.code == 2 and fake_model == []
    assert "error: t.csv, line 2: no row from here on has both prompt and output tokens" in done.err


def test_another_format_than_the_workload_is_refused(tunebatch: Any, trace: str) -> None:
    Path("mine.toml").write_text(
        f'[workload]\nname = "azure"\ntrace_file = "{trace}"\ntrace_format = "jsonl"\n'
    )
    done = tunebatch("run", "-p", "mine.toml")
    assert done.code == 2
    told = "mine.toml: [workload] name = 'azure': is another format than mine.toml: [workload] trace_format"
    assert f"error: {told} = 'jsonl'; leave out one of them" in done.err
    done = tunebatch("run", "-w", "chat", "--trace-file", trace)
    assert done.code == 2 and "name the trace's format: azure, burstgpt" in done.err
    assert f"error: --workload chat: its requests are not those of --trace-file {trace};" in done.err
    Path("mine.toml").write_text(f'[workload]\nname = "chat"\ntrace_file = "{trace}"\n')
    done = tunebatch("run", "-p", "mine.toml")
    told = "mine.toml: [workload] name = 'chat': its requests are not those of mine.toml: [workload]"
    assert done.code == 2 and f"error: {told} trace_file = 'trace.csv'; leave out one" in done.err


def test_a_format_that_is_none_is_told_with_the_profile_and_the_nearest(tunebatch: Any, trace: str) -> None:
    Path("mine.toml").write_text(f'[workload]\ntrace_file = "{trace}"\ntrace_format = "azur"\n')
    done = tunebatch("run", "-p", "mine.toml")
    told = "mine.toml: [workload] trace_format = 'azur': unknown format; did you mean 'azure'? (one of azure,"
    assert done.code == 2 and f"error: {told}" in done.err
    Path("mine.toml").write_text('[workload]\nname = "azure"\n')
    done = tunebatch("run", "-p", "mine.toml")
    told = "mine.toml: [workload] name = 'azure': azure is a format of traces: give its file"
    assert done.code == 2 and f"error: {told}" in done.err


def test_a_prompt_that_may_not_be_clipped_is_told_with_profile_trace_and_line(
    tunebatch: Any, trace: str
) -> None:
    Path("mine.toml").write_text(f'[workload]\ntrace_file = "{trace}"\nclip = false\n')
    done = tunebatch("run", "-p", "mine.toml", "-n", "20")
    told = "mine.toml: [workload] trace.csv, line 2: 3000 prompt + 8 output tokens exceed the context of 2048"
    assert done.code == 2 and f"error: {told}; expected at most that, or clip = true" in done.err


def test_a_slice_behind_the_end_is_told_with_the_last_that_is_not(tunebatch: Any, trace: str) -> None:
    Path("mine.toml").write_text(f'[workload]\ntrace_file = "{trace}"\ntrace_start = 1000\n')
    done = tunebatch("run", "-p", "mine.toml")
    assert done.code == 2
    assert "error: trace.csv: no request after the first 1000; expected to skip 999 at most" in done.err


def test_clients_that_hang_up_are_told_and_end_no_sweep(tunebatch: Any) -> None:
    rows = [
        json.dumps(
            {"arrival_s": n / 100, "prompt_tokens": 50, "output_tokens": 40, "cancel_at_s": n / 100 + 0.6}
        )
        for n in range(80)
    ]
    Path("hasty.jsonl").write_text("\n".join(rows))
    limits = ["--slo", "p90_ttft<=2s", "--slo", "p90_tpot<=1s"]
    call = ["--trace-file", "hasty.jsonl", *limits]
    done = tunebatch("run", "sequential", *call, "-o", "run")
    assert done.code == 6, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("caution: ")]
    assert line.startswith("caution: clients hung up: sequential ") and "before their first token)" in line
    assert "caution: clients hung up: sequential" in tunebatch("compare", "run", "run").out
    done = tunebatch("sweep", *call, "--strategy", "sequential", "--start-rate", "9", "-o", "swept")
    assert done.code == 0, done.err
    assert "hung up" in done.out


def texts(path: str) -> str:
    rows = [
        f'{{"arrival_s": {n}, "text": "def f(x):\\n    return {n}", "output_tokens": 4}}' for n in range(3)
    ]
    Path(path).write_text("\n".join(rows) + "\n")
    return path


def served_prompts(tunebatch: Any, *arguments: str) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    whole = Session.measure_as_asked

    def measure(self: Session, chosen: Any, rate: float | None) -> Any:
        seen.extend(request.prompt for request in self.workload().requests)
        return whole(self, chosen, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "measure_as_asked", measure)
        done = tunebatch("run", *arguments, "-o", "here")
    assert done.code == 0, done.err
    return seen


def test_prompts_in_words_go_through_the_models_own_tokenizer(tunebatch: Any) -> None:
    prompts = served_prompts(tunebatch, "--trace-file", texts("t.jsonl"))
    own = Tokenizer.from_file(str(bundled_target() / "tokenizer.json"))
    assert [own.decode(list(prompt)) for prompt in prompts] == [
        f"def f(x):\n    return {n}" for n in range(3)
    ]


def test_a_folder_without_tokenizer_json_is_transformers_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("slow")
    shutil.copytree(bundled_target(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    expected = text_to_ids(str(folder))("import os")
    whole = AutoTokenizer.from_pretrained(folder)
    (folder / "tokenizer.json").unlink()

    def read(name: str, trust_remote_code: bool) -> Any:
        assert not trust_remote_code
        return whole

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", read)
    assert text_to_ids("./slow")("import os") == expected != ()


def test_a_tokenizer_cuts_and_fills_no_prompt(tmp_path: Path) -> None:
    own = Tokenizer.from_file(str(bundled_target() / "tokenizer.json"))
    own.enable_truncation(2)
    own.enable_padding(length=64)
    own.save(str(tmp_path / "tokenizer.json"))
    assert text_to_ids(str(tmp_path))("def f(x): return x") == text_to_ids("bundled")("def f(x): return x")


def test_half_a_character_is_told_with_file_and_row(tunebatch: Any) -> None:
    Path("t.jsonl").write_text('{"arrival_s": 0, "text": "\\ud800", "output_tokens": 4}\n')
    done = tunebatch("run", "--trace-file", "t.jsonl")
    assert done.code == 2 and "t.jsonl, line 1: a text prompt, but" in done.err
    assert "surrogates not allowed" in done.err


@pytest.mark.parametrize("broken", [None, "{}"])
def test_a_model_without_a_tokenizer_is_told_with_file_and_row(
    tunebatch: Any, fake_model: list[str], broken: str | None
) -> None:
    Path("mute").mkdir()
    if broken is not None:
        Path("mute/tokenizer.json").write_text(broken)
    Path("t.jsonl").write_text('{"arrival_s": 0, "prompt_tokens": 9, "output_tokens": 4}\n')
    assert "tokenizer" not in tunebatch("run", "-m", "./mute", "--trace-file", "t.jsonl").err
    fake_model.clear()
    with Path("t.jsonl").open("a") as file:
        file.write('{"arrival_s": 0, "text": "hello", "output_tokens": 4}\n')
    done = tunebatch("run", "-m", "./mute", "--trace-file", "t.jsonl")
    assert done.code == 2 and fake_model == []
    (line,) = done.err.splitlines()
    assert line.startswith("error: t.jsonl, line 2: a text prompt, but model ")
    assert "mute has no tokenizer that can be read" in line and line.endswith("or 'prompt_tokens'")
