"""``--trace``: a file for each strategy, and never in the place of something else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tunebatch.measure import result
from tunebatch.measure.result import ResultError
from tunebatch.report import perfetto
from tunebatch.report.perfetto import is_trace

PROC = pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that root may write, but cannot")


def tracks(file: str) -> set[str]:
    events = json.loads(Path(file).read_text())["traceEvents"]
    return {event["args"]["name"] for event in events if event["ph"] == "M" and "name" in event["args"]}


def test_a_run_leaves_a_trace(tunebatch: Any) -> None:
    done = tunebatch("run", "static", "-s", "max_batch_size=2", "-o", "here", "--trace", "new/trace.json")
    assert done.code == 0, done.err
    assert "static, max_batch_size 2, max_batched_tokens 2048" in tracks("new/trace.json")
    assert {"steps", "slot 0", "slot 1"} <= tracks("new/trace.json")
    assert "process_labels" not in Path("new/trace.json").read_text()  # nothing was drawn, scaled or clipped
    assert "new/trace.json" in done.err and os.listdir("new") == ["trace.json"]
    # Another run may replace it.
    assert tunebatch("run", "-o", "here", "--trace", "new/trace.json", "-q").code == 0
    assert "slot 2" in tracks("new/trace.json")


def test_a_comparison_leaves_one_for_each_strategy(tunebatch: Any) -> None:
    strategies = ["--strategy", "static", "--strategy", "sequential"]
    done = tunebatch("compare", *strategies, "-o", "here", "--trace", "t.json", "-n", "20", "--json")
    assert done.code == 0 and len(json.loads(done.out)["results"]) == 2
    assert sorted(Path().glob("t*.json")) == [Path("t-sequential.json"), Path("t-static.json")]
    assert "sequential" in tracks("t-sequential.json") and "slot 1" not in tracks("t-sequential.json")
    assert tunebatch("compare", *strategies[:2], "-o", "here", "--trace", "t.json").code == 0
    assert is_trace(Path("t.json"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("folder", "a folder; name a file, such as folder/trace.json"),
        ("azure.csv", "is no trace of a run, and it would be replaced"),
        ("azure.csv/trace.json", "azure.csv is not a folder"),
        pytest.param("/proc/trace.json", "/proc is not writable (no such file or directory)", marks=PROC),
        (f"folder/{'x' * 250}", "folder is not writable (file name too long)"),
    ],
)
@pytest.mark.parametrize("command", [["run"], ["compare", "--strategy", "static"]])
def test_what_cannot_be_written_is_refused_before_anything_is_loaded(
    tunebatch: Any, fake_model: list[str], command: list[str], name: str, says: str
) -> None:
    Path("folder").mkdir()
    Path("azure.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    done = tunebatch(*command, "--trace", name)
    assert done.code == 2 and done.err.startswith(f"error: --trace {name}: ") and says in done.err
    assert done.err.count("\n") == 1 and not fake_model
    assert Path("azure.csv").read_text().startswith("TIMESTAMP") and os.listdir("folder") == []


@pytest.mark.parametrize("command", [["run", "static"], ["compare", "--strategy", "static"]])
def test_where_the_results_are_is_said_though_the_trace_could_not_be_written(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    def full(*_: Any) -> None:
        raise ResultError("could not write t.json: input/output error")

    monkeypatch.setattr(perfetto, "write_trace", full)
    done = tunebatch(*command, "-o", "here", "--trace", "t.json", "-q")
    assert done.code == 2 and "static" in done.out
    assert done.err == "written: here\nerror: could not write t.json: input/output error\n"
    monkeypatch.setattr(result, "write_result", full)
    assert "written" not in tunebatch(*command, "-o", "here", "-q").err


def test_saved_results_have_nothing_to_trace(tunebatch: Any) -> None:
    done = tunebatch("compare", "a", "b", "--trace", "t.json")
    assert done.code == 2 and "--trace measures anew" in done.err
