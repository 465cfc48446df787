"""A model that takes no time to load: fake tokens, virtual seconds, no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tunebatch.cli.main import run_command
from tunebatch.cli.session import Session
from tunebatch.engine.clock import VirtualClock
from tunebatch.engine.plan import StepOutput, StepPlan


class FakeExecutor:
    """A step costs 10 ms and a bit for each sequence and prompt token."""

    block_size, num_blocks, max_slots, max_context, vocab_size = 16, 4096, 64, 2048, 4096
    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self.model_info: dict[str, Any] = {"name": "fake", "dtype": "float32", "device": "cpu"}

    def execute(self, plan: StepPlan) -> StepOutput:
        tokens = [[5] for _ in plan.slices]
        seconds = 0.01 + 0.0003 * plan.num_decodes + 0.0001 * plan.num_slice_tokens
        return StepOutput(tokens, [5] * plan.num_decodes if plan.num_decodes else None, seconds)

    def reset(self) -> None:
        pass


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
        if model != "bundled":
            raise ModelError(
                f"{model}: no such folder; give a local path, a hub id (owner/name) or 'bundled'"
            )
        return FakeExecutor()

    def check_same_tokens(executor: Any, strategies: list[Any]) -> SimpleNamespace:
        calls.append("same tokens")
        names = tuple(one.name for one in strategies)
        return SimpleNamespace(num_requests=5, num_tokens=80, strategies=names)

    load.load_executor, load.ModelError = load_executor, ModelError  # type: ignore[attr-defined]
    same.check_same_tokens = check_same_tokens  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, load.__name__, load)
    monkeypatch.setitem(sys.modules, same.__name__, same)
    monkeypatch.setattr(Session, "_new_clock", lambda self: VirtualClock())
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
