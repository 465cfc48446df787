"""A model that takes no time to load: fake tokens, virtual seconds, no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from cli_fake import FakeExecutor

from tunebatch import bench
from tunebatch.cli.main import run_command
from tunebatch.cli.session import Session
from tunebatch.engine.clock import VirtualClock
from tunebatch.models.named_shape import named_shape


class ModelError(ValueError):
    """As the loader's."""


ModelError.__module__ = "tunebatch.execute.torch.load"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Tunebatch = Callable[..., Done]


@pytest.fixture(autouse=True)
def fake_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Replaces the executor's loader and the check of tokens; yields what was asked of them."""
    calls: list[str] = []
    load, same = ModuleType("tunebatch.execute.torch.load"), ModuleType("tunebatch.execute.torch.same_tokens")

    def load_executor(model: str, *, device: str = "auto", **rest: Any) -> FakeExecutor:
        calls.append(f"load {model}")
        if device == "cuda":
            raise ModelError("--device cuda: torch finds no CUDA device here; use --device cpu")
        if model != "bundled" and named_shape(model) is None:
            raise ModelError(
                f"{model}: no such folder; give a local path, a hub id (owner/name) or 'bundled'"
            )
        return FakeExecutor()

    def check_same_tokens(executor: Any, strategies: list[Any]) -> SimpleNamespace:
        calls.append("same tokens")
        names = tuple(one.name for one in strategies)
        return SimpleNamespace(num_requests=5, num_tokens=80, strategies=names, num_ties=0)

    load.load_executor, load.ModelError = load_executor, ModelError  # type: ignore[attr-defined]
    load.DRAFT_DTYPE = "bfloat16"  # type: ignore[attr-defined]
    same.check_same_tokens = check_same_tokens  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, load.__name__, load)
    monkeypatch.setitem(sys.modules, same.__name__, same)
    monkeypatch.setattr(Session, "_new_clock", lambda self: VirtualClock())
    # In virtual time no collection can get into a step, and one takes longer than a run.
    monkeypatch.setattr(bench, "_without_gc", nullcontext)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    yield calls


@pytest.fixture
def tunebatch(capsys: pytest.CaptureFixture[str]) -> Tunebatch:
    """Runs a command line; the exit code and what it printed."""

    def call(*arguments: str) -> Done:
        capsys.readouterr()
        code = run_command(arguments)
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return call
