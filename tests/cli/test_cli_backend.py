"""How attention and the forward are computed is asked for by flags, and told where it is no question."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_fake import FakeExecutor


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the loader is asked for."""
    found: list[dict[str, Any]] = []

    def load_executor(model: str, **options: Any) -> FakeExecutor:
        found.append(options)
        return FakeExecutor()

    monkeypatch.setattr(sys.modules["tunebatch.execute.torch.load"], "load_executor", load_executor)
    return found


@pytest.mark.parametrize("command", [
    ["run", "sequential"],
    ["compare", "--strategy", "sequential"],
    ["sweep", "-p", "smoke", "--strategy", "sequential", "--trials", "1"],
])  # fmt: skip
def test_flags_reach_the_loader(tunebatch: Any, asked: list[dict[str, Any]], command: list[str]) -> None:
    done = tunebatch(*command, "--backend", "flashinfer", "--compile", "-o", "here")
    assert done.code == 0, done.err
    assert {(one["backend"], one["compiler"]) for one in asked} == {("flashinfer", "inductor")}


def test_without_flags_it_is_the_profile_s(tunebatch: Any, asked: list[dict[str, Any]]) -> None:
    assert tunebatch("run", "sequential", "-o", "here").code == 0
    Path("mine.toml").write_text(
        '[model]\nbackend = "packed"\ncompile = true\n[workload]\nname = "quickstart"\n'
    )
    assert tunebatch("run", "sequential", "-p", "mine.toml", "-o", "there").code == 0
    assert [(one["backend"], one["compiler"]) for one in asked] == [("auto", None), ("packed", "inductor")]


@pytest.mark.parametrize(("forward", "facts", "line"), [
    (
        "torch.compile",
        {"tokens": 2048, "ms": {"torch.compile": 12.13, "transformers": 14.0}, "seconds": 31.25},
        "  prefill: compiled 12.1 ms, eager 14.0 ms a step of 2,048 tokens; all steps are computed compiled; "
        "compiling and measuring took 31.2 s",
    ),
    (
        "compiled",
        {"tokens": 64, "ms": {"torch.compile": 1212.0, "compiled": 9.0}, "seconds": 3.0},
        "  prefill: compiled 1,212.0 ms, the kernels for CPUs 9.0 ms a step of 64 tokens; all steps are "
        "computed without the compiler; compiling and measuring took 3.0 s",
    ),
    ("transformers", {"without": "no C++ compiler"}, "  without torch.compile: no C++ compiler"),
])  # fmt: skip
def test_what_the_compiler_was_worth_is_told_and_kept(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch, forward: str, facts: dict[str, Any], line: str
) -> None:
    def load_executor(model: str, **_: Any) -> FakeExecutor:
        made = FakeExecutor()
        made.model_info |= {"forward": forward, "torch_compile": facts}
        return made

    monkeypatch.setattr(sys.modules["tunebatch.execute.torch.load"], "load_executor", load_executor)
    done = tunebatch("run", "sequential", "--compile", "-o", "here")
    assert done.code == 0 and line in done.err.splitlines()
    kept = json.loads(Path("here/result.json").read_text())["tunebatch"]
    assert kept["model"]["torch_compile"] == facts


def test_saved_results_are_computed_already(tunebatch: Any) -> None:
    assert tunebatch("run", "sequential", "-o", "here").code == 0
    for flag in (["--backend", "packed"], ["--compile"]):
        done = tunebatch("compare", "here", *flag)
        assert done.code == 2 and flag[0] in done.err
