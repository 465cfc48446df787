"""CUDA graphs at the command line: switched by the profile, shown as they come, told with the model."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_fake import FakeExecutor
from rich.console import Console

from tunebatch.report.progress import Progress

CAPTURED = {"graphs": 61, "seconds": 7.25, "mib": 1234.4}


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the loader was asked; it captures three graphs."""
    asked: dict[str, Any] = {"facts": CAPTURED}

    def load_executor(model: str, *, graphs: bool, told: Any, **_: Any) -> FakeExecutor:
        asked["graphs"] = graphs
        for count in (1, 2, 3):
            told(count, 3)
        made = FakeExecutor()
        made.model_info["cuda_graphs"] = asked["facts"]
        return made

    monkeypatch.setattr(sys.modules["tunebatch.execute.torch.load"], "load_executor", load_executor)
    return asked


def test_what_was_captured_is_told_and_kept(tunebatch: Any, loaded: dict[str, Any]) -> None:
    done = tunebatch("run", "continuous", "-o", "here")
    assert done.code == 0 and loaded["graphs"] is True
    lines = done.err.splitlines()
    # Without a terminal each status is a line of its own: one says that the capture has begun.
    assert [line for line in lines if "capturing" in line] == ["capturing CUDA graphs: 1 of 3"]
    assert "  61 CUDA graphs captured in 7.2 s, 1,234 MiB" in lines
    kept = json.loads(Path("here/result.json").read_text())["tunebatch"]
    assert kept["model"]["cuda_graphs"] == CAPTURED


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"graphs": 58, "without": "no memory"}, "  58 CUDA graphs captured in 7.2 s, 1,234 MiB; no memory"),
        (
            {"graphs": 0, "without": "it waits"},
            "  no CUDA graphs, every step is launched kernel by kernel; it waits",
        ),
    ],
)
def test_what_has_no_graph_is_told_in_one_line(
    tunebatch: Any, loaded: dict[str, Any], facts: dict[str, Any], line: str
) -> None:
    loaded["facts"] = CAPTURED | facts
    assert line in tunebatch("run", "continuous", "-o", "here").err.splitlines()


def test_the_profile_switches_them_off(
    tunebatch: Any, loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine.toml").write_text('[workload]\nname = "quickstart"\n[device]\ngraphs = false\n')
    assert tunebatch("run", "continuous", "-p", "mine.toml", "-o", "a").code == 0
    assert loaded["graphs"] is False
    monkeypatch.setenv("TUNEBATCH_DEVICE_GRAPHS", "true")
    assert tunebatch("run", "continuous", "-p", "mine.toml", "-o", "b").code == 0
    assert loaded["graphs"] is True
    monkeypatch.setenv("TUNEBATCH_DEVICE_GRAPHS", "perhaps")
    done = tunebatch("run", "continuous", "-o", "c")
    assert done.code == 2 and "TUNEBATCH_DEVICE_GRAPHS" in done.err and "Traceback" not in done.err


def test_a_sweep_does_not_go_on_with_graphs_where_it_began_without(
    tunebatch: Any, loaded: dict[str, Any]
) -> None:
    sweep = ["sweep", "-p", "smoke", "--strategy", "continuous", "--trials", "1", "-o", "here"]
    loaded["facts"] = {**CAPTURED, "graphs": 0}
    assert tunebatch(*sweep).code == 0
    loaded["facts"] = CAPTURED
    done = tunebatch("sweep", "--resume", "here")
    assert done.code == 2 and "graphs" in done.err


def test_a_terminal_counts_them() -> None:
    from tunebatch.cli.session import _captures_shown

    shown = io.StringIO()
    with Progress(Console(file=shown, force_terminal=True, width=80)) as progress:
        told = _captures_shown(progress)
        for count in (1, 2, 3):
            told(count, 3)
    assert all(f"capturing CUDA graphs: {count} of 3" in shown.getvalue() for count in (1, 2, 3))
    _captures_shown(None)(1, 3)
