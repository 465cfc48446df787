"""Where ``tunebatch plan`` has a model's config from: a file, a folder, the hub, or a published shape."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunebatch.cli.errors import CliError

_PATIENCE_S = 5  # with a hub that does not answer


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A config, and what can be said of it.

    Attributes:
        name: For people.
        source: Where the config is from.
        has_weights: The model can be loaded under ``given`` with weights of its own.
        given: What the user wrote.
        loaded_name: Of what random weights make of a named shape; None: they cannot be made.
    """

    name: str
    source: str
    config: Mapping[str, Any]
    has_weights: bool
    given: str
    note: str = ""
    loaded_name: str | None = None


def model_config(model: str) -> ModelConfig:
    """The config of what the user named.

    Raises:
        CliError: There is none, it cannot be read, or the hub does not give it.
    """
    from tunebatch.models.named_shape import named_shape
    from tunebatch.models.shapes import SHAPES

    if not model:
        raise CliError("an empty model name; the nearest valid value is 'bundled'")
    if model == "bundled":
        from tunebatch.models import bundled_target

        return _from_file(bundled_target() / "config.json", "bundled", model, has_weights=True)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CliError(f"{model}: no config.json in this folder; is it a Hugging Face model?")
        return _from_file(path / "config.json", path.resolve().name, model, has_weights=True)
    if path.is_file():
        return _from_file(path, path.stem if path.stem != "config" else path.resolve().parent.name, model)
    shape = named_shape(model)
    if shape is not None:
        source = f"config of {shape.source}"
        return ModelConfig(shape.name, source, shape.config, False, model, shape.note, shape.shown)
    if model.count("/") == 1 and not path.is_absolute() and not model.startswith((".", "~")):
        return _from_hub(model)
    from tunebatch.profile import nearest

    known = nearest(model, ["bundled", *SHAPES])
    raise CliError(f"{model}: no such folder, file or named shape, and no hub id (owner/name){known}")


def _from_file(path: Path, name: str, given: str, has_weights: bool = False) -> ModelConfig:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CliError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise CliError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise CliError(f"{path}: must be a JSON object, as Hugging Face's config.json is")
    return ModelConfig(name, str(path), config, has_weights, given)


def _from_hub(model: str) -> ModelConfig:
    """Its ``config.json`` only, a few kilobytes."""
    import logging

    from tunebatch.cli import output
    from tunebatch.models.shapes import SHAPES

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import hf_hub_download

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    console = output.stderr()
    if console.is_terminal:  # its client tries for half a minute to reach a hub that is not there
        console.print(f"asking the hub for the config of {model}", soft_wrap=True)
    try:
        path = hf_hub_download(model, "config.json", etag_timeout=_PATIENCE_S)
    # Not only OSError: the hub's client and what carries it each raise classes of their own.
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        same = [name for name, shape in SHAPES.items() if shape.source.lower() == model.lower()]
        hint = f"; the named shape {same[0]} is this model and needs no hub" if same else ""
        raise CliError(f"{model}: its config.json is not to be had from the hub: {why}{hint}") from None
    found = _from_file(Path(path), model, model, has_weights=True)
    return ModelConfig(model, f"config of {model}", found.config, True, model)
