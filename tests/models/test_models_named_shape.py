"""Shapes by the names that users give."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunebatch.models.named_shape import ShapeError, named_shape, nearest_shape
from tunebatch.models.shapes import SHAPES


def test_a_name_in_any_case_and_what_is_none() -> None:
    found = named_shape("Llama-3.1-8B")
    assert found is not None and found.name == "llama-3.1-8b" and found.sizes.layers == 32
    assert found.shown == "llama-3.1-8b (random weights)"
    for other in ("bundled", "auto", "meta-llama/Llama-3.1-8B", "./llama-3.1-8b", "lama"):
        assert named_shape(other) is None


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert named_shape("gpt2") is None and named_shape("gpt2:2-layers") is not None


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_can_be_cut(name: str) -> None:
    whole, cut = named_shape(name), named_shape(f"{name}:2-layers")
    assert whole is not None and cut is not None
    assert cut.name == f"{name}:2-layers" and cut.sizes.layers == 2
    assert cut.sizes.windows == whole.sizes.windows[:2]
    assert (cut.sizes.hidden, cut.sizes.vocab) == (whole.sizes.hidden, whole.sizes.vocab)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gpt2:0-layers", "nearest is gpt2:1-layers"),
        ("gpt2:13-layers", "nearest is gpt2:12-layers"),
        ("gpt2:", "write it like gpt2:4-layers; gpt2 has 12"),
        ("gpt2:four", "write it like gpt2:4-layers"),
    ],
)
def test_layers_that_there_are_not(name: str, told: str) -> None:
    with pytest.raises(ShapeError, match=told):
        named_shape(name)
    assert named_shape("gpt2:1-layer") is not None


@pytest.mark.parametrize(
    ("name", "ordinary"),
    [("llama-3.1-8b", 128_000), ("qwen3-0.6b", 151_643), ("llama-2-7b", 32_000), ("gpt2", 50_256)],
)
def test_special_tokens_at_the_end_are_no_words(name: str, ordinary: int) -> None:
    shape = named_shape(name)
    assert shape is not None and shape.num_ordinary == ordinary


def test_the_nearest_name() -> None:
    assert nearest_shape("Lama-3.1-8b") == "llama-3.1-8b"
