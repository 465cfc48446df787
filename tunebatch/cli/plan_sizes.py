"""What ``tunebatch plan`` counts of a config: its sizes, and its parameters where anything tells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunebatch.cli.errors import CliError

if TYPE_CHECKING:
    from tunebatch.cli.plan_models import ModelConfig
    from tunebatch.models.architecture import Architecture
    from tunebatch.models.language_model import LanguageModel
    from tunebatch.models.parameters import Parameters


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Of one config.

    Attributes:
        parameters: None: neither follow they from the sizes nor does transformers build the model.
        notes: What was counted, where that is not all of a known model.
    """

    architecture: Architecture
    parameters: Parameters | None
    notes: tuple[str, ...] = ()


def model_sizes(found: ModelConfig) -> ModelSizes:
    """Counted from the config's keys where they tell, or else in a model without memory.

    Raises:
        CliError: An architecture that cannot be served, an unknown KV layout, or an impossible key.
    """
    from tunebatch.models.architecture import ConfigError, NotCountedError, architecture
    from tunebatch.models.parameters import count_parameters

    try:
        try:
            sizes = architecture(found.config)
        except NotCountedError:
            return _within(found)
    except ConfigError as error:
        raise CliError(f"{found.name}: {error}") from None
    return ModelSizes(sizes, count_parameters(sizes))


def _within(found: ModelConfig) -> ModelSizes:
    from tunebatch.models.architecture import NotCountedError, architecture
    from tunebatch.models.built_parameters import built_parameters
    from tunebatch.models.language_model import language_model
    from tunebatch.models.outline import outline
    from tunebatch.models.parameters import count_parameters

    model = language_model(found.config)
    try:
        sizes = architecture(model.config)
        return ModelSizes(sizes, count_parameters(sizes), _part_notes(model))
    except NotCountedError:
        sizes = outline(model.config)
    return ModelSizes(sizes, built_parameters(model, sizes), (*_part_notes(model), *_layout_notes(model)))


def _part_notes(model: LanguageModel) -> tuple[str, ...]:
    if model.part_of is None:
        return ()
    return (
        f"only the language model ({model.kind}) of this {model.part_of} is counted, not what reads images "
        "or sound, whose weights take room too",
    )


def _layout_notes(model: LanguageModel) -> tuple[str, ...]:
    if model.made is not None:
        return (
            "parameters are counted in the model that transformers builds of the config, without weights",
        )
    return (
        f"transformers does not know model_type {model.kind!r}: each layer counts as keeping the keys and "
        "values that its config tells of",
    )
