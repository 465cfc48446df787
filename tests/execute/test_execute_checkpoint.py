"""What a checkpoint brings beside its weights is never run, and what it lacks is never made up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import tiny

from tunebatch.execute.torch.load import load_executor
from tunebatch.execute.torch.model_error import ModelError


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_tensors_that_are_missing_are_told(saved: Path) -> None:
    path = saved / "model.safetensors"
    weights = load_file(path)
    gone = [name for name in weights if "layers.1." in name]
    save_file({name: weights[name] for name in weights if name not in gone}, path, {"format": "pt"})
    with pytest.raises(
        ModelError, match=rf"model: {len(gone)} tensors are missing from its weights: model\.layers\.1"
    ):
        load_executor(str(saved))


def test_code_of_a_checkpoint_is_not_run_and_nobody_is_asked(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = saved.parent / "ran"
    (saved / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Config: ...\nclass Model: ...\n")
    config = json.loads((saved / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    }
    (saved / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(ModelError) as refused:
        load_executor(str(saved))
    assert not ran.exists() and len(str(refused.value).splitlines()) == 1
    assert capsys.readouterr().out == ""
