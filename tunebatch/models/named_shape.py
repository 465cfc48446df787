"""A named shape as a user asks for it: whole, or cut to its first layers."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunebatch.models.architecture import Architecture, architecture
from tunebatch.models.shapes import SHAPES, Config

# Prompts leave out ids below this everywhere; what a vocabulary adds behind its words begins at the first
# special token above.
_FIRST_ORDINARY_ID = 4
_CUT = re.compile(r"([0-9]+)-layers?")
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


class ShapeError(ValueError):
    """A shape that there is not; one line."""


@dataclass(frozen=True, slots=True)
class NamedShape:
    """A published architecture, whose weights are whatever they are.

    Attributes:
        name: ``llama-3.1-8b``, or ``llama-3.1-8b:4-layers``.
        source: The Hugging Face repository whose config it is.
        config: In Hugging Face's keys.
    """

    name: str
    source: str
    config: Config
    note: str = ""

    @property
    def shown(self) -> str:
        """The name in results: nobody must take it for the published model."""
        return f"{self.name} (random weights)"

    @property
    def sizes(self) -> Architecture:
        return architecture(self.config)

    @property
    def num_ordinary(self) -> int:
        """Token ids from 0 on before the special ones at the vocabulary's end."""
        special = (self.config.get(name) for name in _SPECIAL)
        return min(
            (i for i in special if i is not None and i >= _FIRST_ORDINARY_ID), default=self.sizes.vocab
        )


def named_shape(model: str) -> NamedShape | None:
    """The shape that the user named; None where it is the name of something else.

    A folder of that name comes first.

    Raises:
        ShapeError: It is cut to layers that it does not have.
    """
    name, colon, cut = model.lower().partition(":")
    shape = SHAPES.get(name)
    if shape is None or Path(model).expanduser().is_dir():
        return None
    if not colon:
        return NamedShape(name, shape.source, shape.config, shape.note)
    whole = architecture(shape.config).layers
    found = _CUT.fullmatch(cut)
    if found is None:
        raise ShapeError(f"{model}: write it like {name}:4-layers; {name} has {whole}")
    layers = int(found[1])
    if not 1 <= layers <= whole:
        near = min(max(layers, 1), whole)
        raise ShapeError(f"{model}: {name} has {whole} layers; the nearest is {name}:{near}-layers")
    return NamedShape(
        f"{name}:{layers}-layers", shape.source, _first_layers(shape.config, layers), shape.note
    )


def nearest_shape(model: str) -> str:
    """The shape whose name is most like it."""
    return difflib.get_close_matches(model.lower(), SHAPES, n=1, cutoff=0.0)[0]


def _first_layers(config: Config, layers: int) -> Config:
    key = "num_hidden_layers" if "num_hidden_layers" in config else "n_layer"
    changed: dict[str, Any] = {key: layers}
    if "layer_types" in config:
        changed["layer_types"] = config["layer_types"][:layers]
    return {**config, **changed}
