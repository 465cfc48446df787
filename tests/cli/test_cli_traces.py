"""Recorded traffic on the command line: by format, clipped to the model, as long as the SLO needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
    assert "trace: 795 requests, arrivals of trace.csv at 2 req/s" in done.err
    assert "80 of 795 requests were clipped to the context of 2048 tokens" in done.out
    assert "which is what the SLO needs" in done.out
    kept = json.loads(Path("here/result.json").read_text())
    assert kept["num_prompts"] == 795
    assert any("clipped" in note for note in kept["tunebatch"]["workload"]["notes"])


@pytest.mark.parametrize("command", ["run", "compare"])
def test_one_run_of_a_trace_keeps_its_pace_and_says_what_was_clipped(
    tunebatch: Any, trace: str, command: str
) -> None:
    done = tunebatch(command, "-w", "azure", "--trace-file", trace, "-n", "20", *SLO, "-o", "here", "--quiet")
    assert done.code == 0 and "clipped" not in done.out
    done = tunebatch(command, "-w", "azure", "--trace-file", trace, "-n", "20", *SLO, "-o", "here")
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
    assert done.code == 2 and "same tokens" not in fake_model
    assert "needs at least 662 requests to be told, and short gives 100" in done.err
    assert "use a longer trace or a lower percentile" in done.err


def test_a_broken_trace_is_told_before_the_model_is_loaded(tunebatch: Any, fake_model: list[str]) -> None:
    Path("broken.jsonl").write_text(
        '{"arrival_s": 0, "prompt_tokens": 9, "output_tokens": 4}\n{"arrival_s": 1'
    )
    for command in ("run", "compare", "sweep"):
        done = tunebatch(command, "--trace-file", "broken.jsonl")
        assert done.code == 2 and "broken.jsonl, line 2" in done.err
    assert fake_model == []


def test_another_format_than_the_workload_is_refused(tunebatch: Any, trace: str) -> None:
    Path("mine.toml").write_text(
        f'[workload]\nname = "azure"\ntrace_file = "{trace}"\ntrace_format = "jsonl"\n'
    )
    done = tunebatch("run", "-p", "mine.toml")
    assert done.code == 2 and "both name = 'azure' and trace_format = 'jsonl'" in done.err
    done = tunebatch("run", "-w", "chat", "--trace-file", trace)
    assert done.code == 2 and "name the trace's format: azure, jsonl" in done.err


def test_clients_that_hang_up_are_told_and_end_no_sweep(tunebatch: Any) -> None:
    rows = [
        json.dumps(
            {"arrival_s": n / 100, "prompt_tokens": 50, "output_tokens": 40, "cancel_at_s": n / 100 + 0.6}
        )
        for n in range(70)
    ]
    Path("hasty.jsonl").write_text("\n".join(rows))
    limits = ["--slo", "p90_ttft<=2s", "--slo", "p90_tpot<=1s"]
    call = ["--trace-file", "hasty.jsonl", *limits]
    done = tunebatch("run", "sequential", *call, "-o", "run")
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("caution: ")]
    assert line.startswith("caution: clients hung up: sequential ") and "before their first token)" in line
    assert "caution: clients hung up: sequential" in tunebatch("compare", "run", "run").out
    done = tunebatch("sweep", *call, "--strategy", "sequential", "--start-rate", "9", "-o", "swept")
    assert done.code == 0, done.err
    assert "hung up" in done.out
