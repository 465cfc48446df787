"""A draft model, its keys and values, its largest step and its graphs come before the KV cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from graph_stand_ins import Dense
from test_execute_graphs import ALL, MIB, Taking, served_by
from test_execute_peak_step import KV_BYTES, FakeMemory, memory, served
from tiny_models import BLOCK_SIZE, tiny

from tunebatch.cli.session import _kept_lines
from tunebatch.execute.torch import attention, load, peak_step, room
from tunebatch.execute.torch.draft_room import DRAFT_DTYPE, MOST_TOKENS, draft_need
from tunebatch.execute.torch.load import load_executor
from tunebatch.measure.memory_plan import activation_bytes
from tunebatch.measure.shape_room import Need, need
from tunebatch.models.named_shape import named_shape

__all__ = ["memory"]

DRAFT = Need(weight_bytes=50_000, kv_bytes=0, kv_bytes_per_token=KV_BYTES, step_bytes=45_000)


def test_on_a_gpu_beside_the_largest_step(memory: FakeMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_step.run_peak_step, "__defaults__", (300,))
    memory.free = 5 * MIB + 500_000
    executor = served(memory, utilization=0.5, beside=DRAFT)
    assert executor.num_blocks == (500_000 - 305_000 - 95_000) // (2 * KV_BYTES * BLOCK_SIZE)
    assert executor.model_info["kept_free"] == {"draft": {"weights": 50_000, "step": 45_000, "graphs": 0}}


def test_it_has_graphs_as_large_as_the_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.BACKENDS, "dense", Dense)
    monkeypatch.setattr(load, "CAPTURABLE", frozenset({"dense"}))
    graphs, blocks = (50 + 3 * (ALL - 1)) * MIB, 100
    # A block takes 1 KiB of each model, and on a CPU a quarter of what is free is taken.
    monkeypatch.setattr(room, "room_bytes", lambda *_: 4 * blocks * 2 * 2**10 + 2 * graphs + 95_000)
    sized: dict[str, Any] = {"num_blocks": None, "new_capture": Taking, "beside": DRAFT}
    executor = served_by("llama", "dense", **sized)
    assert executor.num_blocks == blocks
    kept = executor.model_info["kept_free"]
    assert kept == {"graphs": graphs, "draft": {"weights": 50_000, "step": 45_000, "graphs": graphs}}


def test_what_a_draft_takes_is_predicted_from_its_config(tmp_path: Path) -> None:
    shape = named_shape("qwen3-0.6b")
    assert shape is not None
    wanted, least = draft_need("qwen3-0.6b"), need(shape.sizes, DRAFT_DTYPE)
    assert wanted is not None and wanted.weight_bytes == least.weight_bytes
    assert least.step_bytes < wanted.step_bytes == activation_bytes(shape.sizes, MOST_TOKENS, 2)
    bundled = draft_need("bundled")
    assert bundled is not None and 0 < bundled.weight_bytes < 10 * MIB
    # What cannot be loaded is refused when it is.
    assert draft_need("no-such-shape") is None
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert draft_need(str(tmp_path)) is None


@pytest.mark.parametrize(("num_blocks", "left"), [(None, True), (64, False)])
def test_any_model_leaves_any_draft_room(
    monkeypatch: pytest.MonkeyPatch, num_blocks: int | None, left: bool
) -> None:
    monkeypatch.setattr(load, "read_network", lambda *_: tiny())
    monkeypatch.setattr(load, "serve", lambda network, **asked: asked)
    asked: Any = load_executor("bundled", device="cpu", draft="bundled", num_blocks=num_blocks)
    assert asked["beside"] == (draft_need("bundled") if left else None)


def test_the_memory_that_is_kept_is_told() -> None:
    kept = {"graphs": 2**30, "draft": {"weights": 2**31, "step": 2**29, "graphs": 2**30}}
    assert _kept_lines(kept) == [
        "  kept free of the KV cache for the draft model: weights 2 GiB, a step 0.5 GiB, CUDA graphs 1 GiB "
        "(predicted)"
    ]
    assert _kept_lines({"graphs": 2**30}) == _kept_lines(None) == []
